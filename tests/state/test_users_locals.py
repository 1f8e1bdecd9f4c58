"""Plain loops as users write them: in functions and classes, with generators and loaders in local variables."""

from __future__ import annotations

import copy
import functools
import random
import re
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from neuromanifold_gpt import ResumableDataLoader, latest_checkpoint, load_checkpoint, resumable, save_checkpoint
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.data.positioned_loader import PositionedLoader

STEPS = 9


class Samples(Dataset[Any]):
    def __init__(self, noise: float = 0.0) -> None:
        self.noise, self.rng = noise, np.random.default_rng(3)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.full((2,), i / 12 + self.noise * self.rng.random())


def closure(seed: int) -> Callable[[], float]:
    rng = random.Random(seed)

    def draw() -> float:
        return rng.random()

    return draw


def validate(loader: Any) -> float:
    return float(sum((number + 1) * batch.sum() for number, batch in enumerate(loader)))


def in_a_function(directory: Path, steps: int) -> list[float]:
    """With all that draws in its local variables."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    loader = resumable(DataLoader(Samples(0.1), 4, shuffle=True))
    rng, noise = np.random.default_rng(5), closure(6)
    generators = {"a": [torch.Generator().manual_seed(7)]}
    validation = DataLoader(Samples(0.1), 4, shuffle=True, generator=torch.Generator().manual_seed(8))
    drawn: list[float] = []
    step = 0
    if directory.exists() and (newest := latest_checkpoint(directory)):
        step = load_checkpoint(newest).restore(model=model, loaders=loader).global_step
    while step < steps:
        for batch in loader:
            others = rng.random() + noise() + float(torch.rand((), generator=generators["a"][0])) + validate(validation)
            drawn.append(float(batch.sum()) + others)
            step += 1
            save_checkpoint(directory, step=step, model=model, loaders=loader)
            if step == steps:
                break
    return drawn


class Trainer:
    """It saves and restores in methods, where it is called ``self``."""

    def __init__(self, directory: Path, restores: bool = False) -> None:
        torch.manual_seed(0)
        self.directory, self.step = directory, 0
        self.model, self.loader = nn.Linear(2, 1), ResumableDataLoader(Samples(), 4, shuffle=True)
        self.parts = [random.Random(4)]
        self.validation = DataLoader(Samples(0.1), 4, shuffle=True, generator=torch.Generator().manual_seed(8))
        if restores:
            self.restore()

    def restore(self) -> None:
        if self.directory.exists() and (newest := latest_checkpoint(self.directory)):
            self.step = load_checkpoint(newest).restore(model=self.model, loaders=self.loader).global_step

    def save(self) -> None:
        save_checkpoint(self.directory, step=self.step, model=self.model, loaders=self.loader)

    def fit(self, steps: int) -> list[float]:
        drawn: list[float] = []
        while self.step < steps:
            for batch in self.loader:
                drawn.append(float(batch.sum()) + self.parts[0].random() + validate(self.validation))
                self.step += 1
                self.save()
                if self.step == steps:
                    break
        return drawn


def by_a_class(directory: Path, steps: int) -> list[float]:
    trainer = Trainer(directory)
    trainer.restore()
    return trainer.fit(steps)


def by_a_class_that_restores_when_it_is_made(directory: Path, steps: int) -> list[float]:
    trainer = Trainer(directory, restores=True)
    return trainer.fit(steps)


@pytest.mark.parametrize("program", [in_a_function, by_a_class, by_a_class_that_restores_when_it_is_made])
def test_what_draws_in_local_variables_goes_on(tmp_path: Path, program: Callable[[Path, int], list[float]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", InexactResumeWarning)
        whole = program(tmp_path / "a", STEPS)
        for stops in ((1, STEPS), (3, 5, STEPS)):
            drawn = []
            for stop in stops:
                drawn += program(tmp_path / str(stops), stop)
            assert drawn == whole


def test_names_are_those_of_the_outermost_function(tmp_path: Path) -> None:
    def save_it(name: str, rng: random.Random) -> list[str]:
        save_checkpoint(tmp_path / name, step=1, model=nn.Linear(1, 1))
        return [*load_checkpoint(tmp_path / name).own_generators[0]]

    rng, own = random.Random(1), Draws()
    own.rng = random.Random(3)
    here = "locals.test_names_are_those_of_the_outermost_function"
    assert save_it("same", rng) == ["Draws.rng", f"{here}.rng"]
    assert save_it("other", random.Random(2)) == ["Draws.rng", f"{here}.rng", f"{here}.save_it.rng"]


def test_of_several_objects_of_one_class_each_has_the_name_of_its_variable(tmp_path: Path) -> None:
    def save_it(first: Draws | None, second: Draws) -> list[str]:
        save_checkpoint(tmp_path / str(bool(first)), step=1, model=nn.Linear(1, 1))
        return [*load_checkpoint(tmp_path / str(bool(first))).own_generators[0]]

    def made() -> Draws:
        own = Draws()
        own.rng = random.Random(3)
        return own

    save = "test_of_several_objects_of_one_class_each_has_the_name_of_its_variable.save_it"
    assert save_it(made(), made()) == [f"Draws.{save}.first.rng", f"Draws.{save}.second.rng"]
    assert save_it(None, made()) == ["Draws.rng"]


def test_one_that_is_made_behind_the_restore_is_missed(tmp_path: Path) -> None:
    def run() -> None:
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        if tmp_path.exists() and (newest := latest_checkpoint(tmp_path)):
            load_checkpoint(newest).restore(model=model, optimizers=optimizer)
        late_rng = random.Random(1)
        save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer)
        late_rng.random()

    run()
    with pytest.warns(InexactResumeWarning, match=r"that nobody has here: locals\.\S+\.run\.late_rng\."):
        run()


def test_the_look_at_local_variables_leaves_nothing_behind(tmp_path: Path) -> None:
    def save_it() -> None:
        save_checkpoint(tmp_path, step=1, model=nn.Linear(1, 1))

    logits = nn.Identity()
    gone = weakref.ref(logits)
    save_it()
    del logits
    assert gone() is None
    mine, rng = locals(), random.Random(1)
    save_it()
    assert mine["tmp_path"] == tmp_path
    assert isinstance(rng, random.Random)


class TestALoaderThatIsNotSaved:
    LEFT_OUT = r"a loader was iterated that is not saved: locals\.\S+\.loader\. Its order, or what its samples draw"

    def save(self, directory: Path, **options: Any) -> None:
        save_checkpoint(directory, step=1, model=nn.Linear(1, 1), **options)

    @pytest.mark.parametrize("workers", [0, 1])
    @pytest.mark.parametrize("kind", ["shuffled", "draws", "collation draws", "own sampler"])
    def test_is_said_once_if_its_passes_differ(self, tmp_path: Path, kind: str, workers: int) -> None:
        make: dict[str, Callable[[], PositionedLoader]] = {
            "shuffled": lambda: ResumableDataLoader(range(8), 4, shuffle=True, num_workers=workers),
            "draws": lambda: ResumableDataLoader(Samples(0.1), 4, num_workers=workers),
            "collation draws": lambda: ResumableDataLoader(range(8), 4, collate_fn=Draws(), num_workers=workers),
            "own sampler": lambda: resumable(DataLoader(range(8), 4, shuffle=True, num_workers=workers)),
        }
        loader = make[kind]()
        self.save(tmp_path)
        list(loader)
        with pytest.warns(InexactResumeWarning, match=self.LEFT_OUT):
            self.save(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("error", InexactResumeWarning)
            self.save(tmp_path)

    @pytest.mark.parametrize("kind", ["fixed", "saved", "told", "among others"])
    def test_is_no_reason_to_doubt_otherwise(self, tmp_path: Path, kind: str) -> None:
        dataset: Any = range(12) if kind == "fixed" else Samples()
        loader: Any = ResumableDataLoader(dataset, 4, shuffle=kind != "fixed")
        if kind == "told":
            loader.set_epoch(0)
        list(loader)
        saved = {"saved": {"loaders": loader}, "among others": {"stateful": {"validation": loader}}}
        with warnings.catch_warnings():
            warnings.simplefilter("error", InexactResumeWarning)
            self.save(tmp_path, **saved.get(kind, {}))


class Draws:
    rng: random.Random | None = None

    def __call__(self, samples: list[int]) -> float:
        return sum(samples) + random.random()


class TestAnObjectWithStateThatIsNotSaved:
    """It is forgotten, or saved elsewhere."""

    class Trains:
        def __init__(self) -> None:
            self.model = nn.Linear(2, 1)
            self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1, momentum=0.9)
            self.ema = torch.optim.swa_utils.AveragedModel(self.model)
            self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1)
            self.teacher = copy.deepcopy(self.model)
            self.compiled = torch.compile(self.model, backend="eager")

        def step(self) -> None:
            self.model(torch.ones(1, 2)).sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.scheduler.step()
            self.ema.update_parameters(self.model)

    def save(self, directory: Path, trains: Trains, **options: Any) -> None:
        save_checkpoint(directory, step=1, model=trains.model, **options)

    def test_is_said_once(self, tmp_path: Path) -> None:
        trains, scaler = self.Trains(), torch.amp.GradScaler("cpu", init_scale=2.0)
        self.save(tmp_path, trains)
        trains.step()
        scaler.load_state_dict({**scaler.state_dict(), "scale": 4.0})
        with pytest.warns(InexactResumeWarning, match="no checkpoint has") as said:
            self.save(tmp_path, trains)
        text = str(said[0].message)
        for name in ("Trains.ema", "Trains.scheduler", "Trains.optimizer", "test_is_said_once.scaler"):
            assert re.search(rf"{re.escape(name)}[;.]", text), text
        assert "teacher" not in text
        assert "compiled" not in text
        trains.step()
        with warnings.catch_warnings():
            warnings.simplefilter("error", InexactResumeWarning)
            self.save(tmp_path, trains)

    def test_is_no_reason_to_doubt_if_all_are_saved(self, tmp_path: Path) -> None:
        trains, other = self.Trains(), self.Trains()
        with warnings.catch_warnings():
            warnings.simplefilter("error", InexactResumeWarning)
            for _ in range(3):
                for name, one in (("one", trains), ("other", other)):
                    parts = {"optimizers": one.optimizer, "schedulers": one.scheduler, "stateful": {"ema": one.ema}}
                    self.save(tmp_path / name, one, **parts)
                trains.step()
                other.step()

    def test_is_no_reason_to_doubt_if_another_saves_it(self, tmp_path: Path) -> None:
        """torch's schedulers of schedulers, users' wrappers and trainers."""
        model = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        inner = [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9) for _ in range(4)]
        first, second, third, fourth = inner  # each in a variable
        scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [first, second], [2])
        both = torch.optim.lr_scheduler.ChainedScheduler([third, fourth])
        average = Keeps(Keeps(copy.deepcopy(model)))
        for _ in range(2):
            saved = {"optimizers": optimizer, "schedulers": [scheduler, both], "stateful": {"average": average}}
            save_checkpoint(tmp_path, step=1, model=model, name="a", **saved)
            optimizer.step()
            scheduler.step()
            both.step()
            with torch.no_grad():
                average.kept.kept.weight += 1

    def test_an_optimizer_within_another_that_does_not_save_it_is_said(self, tmp_path: Path) -> None:
        class Sharpness(torch.optim.SGD):
            def __init__(self, *arguments: Any, **options: Any) -> None:
                super().__init__(*arguments, lr=0.1, momentum=0.9)
                self.base = torch.optim.SGD(self.param_groups)

        model = nn.Linear(2, 2)
        optimizer = Sharpness(model.parameters())
        save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer, name="a")
        model(torch.ones(1, 2)).sum().backward()
        optimizer.base.step()
        with pytest.warns(InexactResumeWarning, match=r"\.base[;. ]"):
            save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer, name="a")


class Keeps:
    """Something with state around something with state."""

    def __init__(self, kept: Any) -> None:
        self.kept = kept

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kept.load_state_dict(state["kept"])


class TestALookChangesNothing:
    """The interpreter shows variables by dicts that others may hold."""

    @staticmethod
    def save(directory: Path) -> None:
        save_checkpoint(directory, step=1, model=nn.Linear(1, 1), name="a")

    def test_for_a_function_that_holds_its_variables(self, tmp_path: Path) -> None:
        rate = 0.1
        held = locals()
        names = {*held}
        later = rate  # not in it
        self.save(tmp_path)
        assert ({*held}, held["rate"], later) == (names, 0.1, 0.1)

    @pytest.mark.skipif(sys.version_info >= (3, 13), reason="from Python 3.13 on, exec makes no names in a function")
    def test_for_names_that_exec_has_made(self, tmp_path: Path) -> None:
        exec("alpha = 0.5")
        self.save(tmp_path)
        assert eval("alpha") == 0.5

    def test_under_a_debugger(self, tmp_path: Path) -> None:
        saves = []

        def trace(frame: Any, event: str, _: Any) -> Any:
            if frame.f_code.co_name == "traced" and event == "line" and "value" in frame.f_locals and not saves:
                saves.append(frame.f_lineno)
                self.save(tmp_path)
            return trace if frame.f_code.co_name == "traced" else None

        def traced() -> int:
            value = 3
            other = value + 1
            return value + other

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            result = traced()
        finally:
            sys.settrace(before)
        assert (result, len(saves)) == (7, 1)

    def test_generator_functions_let_go_of_what_they_have_deleted(self, tmp_path: Path) -> None:
        def numbers() -> Iterator[Any]:
            held = nn.Identity()
            yield weakref.ref(held)
            del held
            yield None

        running = numbers()
        gone = next(running)
        self.save(tmp_path)
        next(running)
        assert gone() is None


def test_arguments_that_a_decorator_passes_on_are_named_further_in(tmp_path: Path) -> None:
    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*arguments: Any, **options: Any) -> Any:
            return function(*arguments, **options)

        return run

    @timed
    def train(draws: Draws) -> list[str]:
        save_checkpoint(tmp_path, step=1, model=nn.Linear(1, 1), name="a")
        return [*load_checkpoint(tmp_path / "a").own_generators[0]]

    def made() -> Draws:
        own = Draws()
        own.rng = random.Random(1)
        return own

    assert train(made()) == ["Draws.rng"]


def test_a_loader_of_a_users_class_is_not_asked(tmp_path: Path) -> None:
    class Fast(DataLoader[int]):
        def __init__(self) -> None:
            self.rng = random.Random(1)

        @property
        def dataset(self) -> Any:  # type: ignore[override]
            raise AssertionError("asked")

    fast = Fast()
    save_checkpoint(tmp_path, step=1, model=nn.Linear(1, 1), name="a")
    assert fast.rng.random() == random.Random(1).random()


def test_one_that_is_made_when_it_is_needed_is_missed_without_optimizers_too(tmp_path: Path) -> None:
    class Noisy(nn.Linear):
        rng: random.Random | None = None

    def run() -> None:
        model, loader = Noisy(1, 1), ResumableDataLoader(Samples(), 4)
        if tmp_path.exists() and (newest := latest_checkpoint(tmp_path)):
            load_checkpoint(newest).restore(model=model, loaders=loader)
        next(iter(loader))
        model.rng = random.Random(1)
        save_checkpoint(tmp_path, step=1, model=model, loaders=loader)

    run()
    with pytest.warns(InexactResumeWarning, match="that nobody has here: rng"):
        run()
