"""Generators that are not the global ones: given to stateful=, and in variables of users' Python modules."""

from __future__ import annotations

import contextvars
import random
import sys
import threading
import warnings
import weakref
from collections import ChainMap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from neuromanifold_gpt import load_checkpoint, resumable, save_checkpoint
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning, StateMismatchError
from neuromanifold_gpt.data.positioned_loader import PositionedLoader
from neuromanifold_gpt.state.owned_state import OwnedState

KINDS: dict[str, tuple[Callable[[], Any], Callable[[Any], float]]] = {
    "random.Random": (lambda: random.Random(1), lambda generator: generator.gauss(0, 1)),
    "numpy.random.Generator": (lambda: np.random.default_rng(1), lambda generator: generator.normal()),
    "numpy.random.RandomState": (lambda: np.random.RandomState(1), lambda generator: generator.normal()),
    "numpy.random.PCG64": (lambda: np.random.PCG64(1), lambda generator: generator.random_raw()),
    "torch.Generator": (
        lambda: torch.Generator().manual_seed(1),
        lambda generator: float(torch.randn((), generator=generator)),
    ),
}
USERS_CODE = """
import argparse
import functools
import contextvars
import random
from collections import defaultdict
from dataclasses import dataclass, field

system = random.SystemRandom()
rng = random.Random(1)
same = [rng]
count = 0
last_time = 0.0

class Draws:
    rng = random.Random(2)

@dataclass
class Config:
    rng: random.Random = field(default_factory=lambda: random.Random(3))

config = Config()

class Outer:
    class Inner:
        rng, seen = random.Random(4), []

def closed_over(rng):
    return lambda: rng.random()

def defaulting(x, rng=random.Random(6)):
    return rng.random()

def remembering(x, seen=[]):
    seen.append(x)

def generating(rng):
    while True:
        yield rng.random()

closure = closed_over(random.Random(5))
method = random.Random(7).uniform
builtin_method = random.Random(8).random
by_default = defaultdict(list, rng=random.Random(9))
namespace = argparse.Namespace(rng=random.Random(10), temperature=1.0)
generator = generating(random.Random(11))
partial = functools.partial(defaulting, rng=random.Random(12))
many = [random.Random(number) for number in range(200)]

def draw():
    return rng.random(), Draws.rng.random(), config.rng.random()
"""
PATHS = [
    "rng",
    "Draws.rng",
    "config.rng",
    "Outer.Inner.rng",
    "defaulting.default 0",
    "closure.rng",
    "method.self",
    "builtin_method.self",
    "by_default.rng",
    "namespace.rng",
    "generator.rng",
    "partial.keywords.rng",
    *[f"many.{number}" for number in range(200)],
]


def model_and_optimizer() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(1, 1)
    return model, torch.optim.SGD(model.parameters(), 0.1)


def loaded() -> ModuleType:
    import users_code  # type: ignore[import-not-found]

    return cast(ModuleType, users_code)


@pytest.fixture
def users_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    (tmp_path / "users_code.py").write_text(USERS_CODE)
    monkeypatch.syspath_prepend(tmp_path)
    yield loaded()
    sys.modules.pop("users_code", None)


class TestGivenToStateful:
    @pytest.mark.parametrize("kind", KINDS)
    def test_go_on(self, kind: str, tmp_path: Path) -> None:
        make, draw = KINDS[kind]
        model, optimizer = model_and_optimizer()
        generator = make()
        draw(generator)
        save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer, stateful={"rng": generator})
        expected = [draw(generator), draw(generator)]
        resumed = make()
        load_checkpoint(tmp_path).restore(model=model, optimizers=optimizer, stateful={"rng": resumed})
        assert [draw(resumed), draw(resumed)] == expected

    def test_alone_too(self, tmp_path: Path) -> None:
        generator = random.Random(1)
        generator.random()
        save_checkpoint(tmp_path, step=1, model=nn.Linear(1, 1), stateful={"rng": generator})
        resumed = random.Random(7)
        load_checkpoint(tmp_path).restore(stateful={"rng": resumed})
        assert resumed.random() == generator.random()

    def test_but_not_saved(self, tmp_path: Path) -> None:
        save_checkpoint(tmp_path, step=1, model=nn.Linear(1, 1))
        with pytest.raises(StateMismatchError, match=r"no state of \['rng'\]"):
            load_checkpoint(tmp_path).restore(stateful={"rng": random.Random(1)})

    def test_but_not_given_again(self, tmp_path: Path) -> None:
        model, optimizer = model_and_optimizer()
        save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer, stateful={"rng": random.Random(1)})
        with pytest.warns(InexactResumeWarning, match="state that nobody takes.*: rng"):
            load_checkpoint(tmp_path).restore(model=model, optimizers=optimizer)

    def test_of_another_kind(self, tmp_path: Path) -> None:
        save_checkpoint(tmp_path, step=1, model=nn.Linear(1, 1), stateful={"rng": random.Random(1)})
        with pytest.raises(StateMismatchError, match="stateful: rng: expected the state of a Generator"):
            load_checkpoint(tmp_path).restore(stateful={"rng": np.random.default_rng(1)})

    def test_under_a_name_that_the_model_has_too_and_twice(self, tmp_path: Path) -> None:
        def drawn(model: nn.Module, beside: random.Random) -> list[float]:
            return [model.rng.random(), model.other.random(), beside.random()]

        def make() -> tuple[nn.Module, torch.optim.Optimizer, random.Random]:
            model, optimizer = model_and_optimizer()
            model.rng, model.other = random.Random(1), random.Random(2)  # type: ignore[assignment]
            return model, optimizer, random.Random(3)

        model, optimizer, beside = make()
        drawn(model, beside)
        stateful = {"rng": beside, "own": model.other, "again": beside}
        save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer, stateful=stateful)  # type: ignore[arg-type]
        expected = drawn(model, beside)
        resumed, optimizer_here, beside_here = make()
        stateful = {"rng": beside_here, "own": resumed.other, "again": beside_here}
        restore = load_checkpoint(tmp_path).restore
        restore(model=resumed, optimizers=optimizer_here, stateful=stateful)  # type: ignore[arg-type]
        assert drawn(resumed, beside_here) == expected

    def test_what_has_no_state_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match=r"stateful: .* found a dict"):
            save_checkpoint(tmp_path, step=1, model=nn.Linear(1, 1), stateful={"counts": {}})  # type: ignore[dict-item]
        assert not list(tmp_path.iterdir())


class Noising(torch.optim.SGD):
    """Adds noise of its own, and counts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), 0.1)
        self.rng, self.number = random.Random(1), 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step(closure)
        self.number += 1


def in_thread_local(rng: random.Random) -> threading.local:
    held = threading.local()
    held.rng = rng
    return held


def in_context(rng: random.Random) -> contextvars.ContextVar[random.Random]:
    variable: contextvars.ContextVar[random.Random] = contextvars.ContextVar("rng")
    variable.set(rng)
    return variable


HOLDERS: dict[str, Callable[[random.Random], Any]] = {
    "a mapping that cannot be changed": lambda rng: MappingProxyType({"rng": rng}),
    "several mappings": lambda rng: ChainMap({}, {"rng": rng}),
    "a thread's variable": in_thread_local,
    "a context's variable": in_context,
}


def training(owner: str) -> tuple[dict[str, Any], Callable[[], float]]:
    """What is saved, and draws from what ``owner`` holds."""
    model, rng = nn.Linear(1, 1), random.Random(1)
    optimizer = Noising(model)
    held = rng if owner == "scheduler" else None
    if owner == "hook of a parameter":
        model.weight.register_hook(lambda _: (None, rng)[0])
    if owner == "hook behind a parameter's gradient":
        model.bias.register_post_accumulate_grad_hook(lambda _: (None, rng)[0])
    if owner in HOLDERS:
        model.held = HOLDERS[owner](rng)  # type: ignore[assignment]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: (1.0, held)[0])
    if owner == "hook":
        nn.Identity().register_forward_hook(lambda *_: None)  # the keys of hooks count those of the process
        model.register_forward_hook(lambda *_: (None, rng)[0])
    draw = optimizer.rng.random if owner == "optimizer" else rng.random
    return {"model": model, "optimizers": optimizer, "schedulers": scheduler}, draw


class TestOfWhatTrains:
    @pytest.mark.parametrize(
        "owner",
        ["optimizer", "scheduler", "hook", "hook of a parameter", "hook behind a parameter's gradient", *HOLDERS],
    )
    def test_go_on(self, owner: str, tmp_path: Path) -> None:
        saved, draw = training(owner)
        draw()
        save_checkpoint(tmp_path, step=1, **saved)
        expected = draw()
        restored, draw_again = training(owner)
        load_checkpoint(tmp_path).restore(**restored)
        assert draw_again() == expected

    def test_that_have_spawned_others_go_on_to_spawn(self, tmp_path: Path) -> None:
        def spawning() -> tuple[nn.Module, np.random.Generator]:
            model = nn.Linear(1, 1)
            model.rng = np.random.default_rng(3)  # type: ignore[assignment]
            return model, model.rng  # type: ignore[return-value]

        model, rng = spawning()
        rng.spawn(2)
        save_checkpoint(tmp_path, step=1, model=model)
        expected = rng.spawn(1)[0].random(), rng.random()
        other, other_rng = spawning()
        load_checkpoint(tmp_path).restore(model=other)
        assert (other_rng.spawn(1)[0].random(), other_rng.random()) == expected
        (states,) = load_checkpoint(tmp_path).own_generators
        assert OwnedState({"rng": other_rng}).restore_generators(states) == ["rng"]  # which it cannot take back

    def test_seeds_that_have_spawned_others_are_said(self, tmp_path: Path) -> None:
        class Own(nn.Linear):
            pass

        own = Own(1, 1)
        own.seeds = np.random.SeedSequence(3)  # type: ignore[assignment]
        save_checkpoint(tmp_path, step=1, model=own)
        own.seeds.spawn(1)  # type: ignore[operator, union-attr]
        with pytest.warns(InexactResumeWarning, match=r"no checkpoint has: seeds\."):
            save_checkpoint(tmp_path, step=2, model=own)

    def test_made_when_it_is_first_needed_in_what_was_searched_before(self, tmp_path: Path) -> None:
        saved = training("optimizer")[0]
        saved["optimizers"].rng = None
        save_checkpoint(tmp_path / "1", step=1, **saved)
        saved["optimizers"].rng = random.Random(1)
        second = save_checkpoint(tmp_path / "2", step=2, **saved)
        assert [*load_checkpoint(second).own_generators[0]] == ["optimizers.0.rng"]

    def test_what_an_optimizer_counts_is_said(self, tmp_path: Path) -> None:
        saved, _ = training("optimizer")
        save_checkpoint(tmp_path, step=1, **saved)
        saved["optimizers"].step()
        with pytest.warns(InexactResumeWarning, match=r"no checkpoint has: optimizers\.0\.number\."):
            save_checkpoint(tmp_path, step=2, **saved)

    def test_what_is_annealed_in_a_layer_of_torch_is_said(self, tmp_path: Path) -> None:
        model = nn.Sequential(nn.Dropout(0.5))
        save_checkpoint(tmp_path, step=1, model=model)
        model[0].p = 0.4
        with pytest.warns(InexactResumeWarning, match=r"no checkpoint has: 0\.p\."):
            save_checkpoint(tmp_path, step=2, model=model)


class TestOfPythonModules:
    def loader(self) -> PositionedLoader:
        return resumable(DataLoader([1, 2, 3]))  # type: ignore[arg-type]

    def test_go_on(self, users_code: ModuleType, tmp_path: Path) -> None:
        model, optimizer = model_and_optimizer()
        users_code.draw()
        save_checkpoint(tmp_path / "run", step=1, model=model, optimizers=optimizer, loaders=self.loader())
        expected = users_code.draw()
        load_checkpoint(tmp_path / "run").restore(model=model, optimizers=optimizer, loaders=self.loader())
        assert users_code.draw() == expected

    def test_are_left_alone_where_the_loop_finds_its_position(self, users_code: ModuleType, tmp_path: Path) -> None:
        model, optimizer = model_and_optimizer()
        save_checkpoint(tmp_path / "run", step=1, model=model, optimizers=optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("error", InexactResumeWarning)
            load_checkpoint(tmp_path / "run").restore(model=model, optimizers=optimizer)
        users_code.Draws.rng.random()
        expected = users_code.Draws.rng.getstate()
        with pytest.warns(InexactResumeWarning, match=r"in other states at the save: users_code.Draws.rng\."):
            load_checkpoint(tmp_path / "run").restore(model=model, optimizers=optimizer)
        assert users_code.Draws.rng.getstate() == expected

    def test_are_said_too_where_the_loop_steps_by_hand(self, users_code: ModuleType, tmp_path: Path) -> None:
        saved = save_checkpoint(tmp_path / "run", step=1, model=nn.Linear(1, 1))
        users_code.Draws.rng.random()
        with pytest.warns(InexactResumeWarning, match=r"in other states at the save: users_code.Draws.rng\."):
            load_checkpoint(saved).restore(model=nn.Linear(1, 1))

    def test_are_found_wherever_they_are_and_stored_once(self, users_code: ModuleType, tmp_path: Path) -> None:
        save_checkpoint(tmp_path / "run", step=1, model=nn.Linear(1, 1))
        stored = [path for path in load_checkpoint(tmp_path / "run").own_generators[0] if "users_code" in path]
        assert stored == sorted(f"users_code.{path}" for path in PATHS)

    def test_are_missed(self, users_code: ModuleType, tmp_path: Path) -> None:
        model, optimizer = model_and_optimizer()
        save_checkpoint(tmp_path / "run", step=1, model=model, optimizers=optimizer, loaders=self.loader())
        del users_code.rng, users_code.same
        users_code.Draws.rng = np.random.default_rng(1)  # type: ignore[attr-defined]
        loader = self.loader()
        load_checkpoint(tmp_path / "run").restore(model=model, optimizers=optimizer, loaders=loader)
        with pytest.warns(InexactResumeWarning, match=r"nobody has here: users_code.Draws.rng; users_code.rng\."):
            next(iter(loader))  # whose samples might have made them
        with warnings.catch_warnings():
            warnings.simplefilter("error", InexactResumeWarning)
            load_checkpoint(tmp_path / "run").restore(model=model)

    def test_values_are_said_after_a_restore_too(self, users_code: ModuleType, tmp_path: Path) -> None:
        model, optimizer = model_and_optimizer()
        save_checkpoint(tmp_path / "run", step=1, model=model, optimizers=optimizer)
        load_checkpoint(tmp_path / "run").restore(model=model, optimizers=optimizer)
        users_code.count, users_code.namespace.temperature = 1, 0.5
        users_code.Outer.Inner.seen.append(1)
        users_code.remembering(1)
        said = r"users_code.Outer.Inner.seen; users_code.count; users_code.namespace; users_code.remembering\."
        with pytest.warns(InexactResumeWarning, match=said):
            save_checkpoint(tmp_path / "run", step=2, model=model, optimizers=optimizer)

    def test_values_are_said_at_the_first_save(self, users_code: ModuleType, tmp_path: Path) -> None:
        model, loader = nn.Linear(1, 1), self.loader()
        for _ in loader:
            users_code.count += 1
        with pytest.warns(InexactResumeWarning, match=r"no checkpoint has: users_code.count\."):
            save_checkpoint(tmp_path / "run", step=1, model=model, loaders=loader)
        another, begun_later = nn.Linear(1, 1), self.loader()
        next(iter(begun_later))
        with warnings.catch_warnings():
            warnings.simplefilter("error", InexactResumeWarning)
            save_checkpoint(tmp_path / "other", step=1, model=another, loaders=begun_later)

    def test_one_large_table_hides_no_other(self, users_code: ModuleType, tmp_path: Path) -> None:
        users_code.a_table = {i: {j: [j] * 10 for j in range(10)} for i in range(1000)}  # type: ignore[attr-defined]
        users_code.z = {"state": {"temperature": 1.0}}  # type: ignore[attr-defined]
        model = nn.Linear(1, 1)
        save_checkpoint(tmp_path / "run", step=1, model=model)
        users_code.z["state"]["temperature"] = 0.5
        with pytest.warns(InexactResumeWarning, match=r"no checkpoint has: users_code.z\."):
            save_checkpoint(tmp_path / "run", step=2, model=model)

    def test_what_goes_with_the_position_is_no_reason_to_doubt(self, users_code: ModuleType, tmp_path: Path) -> None:
        users_code.data = Counts()  # type: ignore[attr-defined]
        loader = resumable(DataLoader(users_code.data))
        model = nn.Linear(1, 1)
        save_checkpoint(tmp_path / "run", step=1, model=model, loaders=loader)
        assert len(list(loader)) == users_code.data.count == 3
        with warnings.catch_warnings():
            warnings.simplefilter("error", InexactResumeWarning)
            save_checkpoint(tmp_path / "run", step=2, model=model, loaders=loader)

    def test_odd_things_are_in_nobody_s_way(self, users_code: ModuleType, tmp_path: Path) -> None:
        class OfNowhere:
            __module__ = None  # type: ignore[assignment]

        class Fails(type):
            def __getattribute__(cls, name: str) -> Any:
                raise RuntimeError(name)

        asked = Fails("Asked", (), {})
        instance = object.__new__(asked)
        users_code.nowhere, users_code.failing, users_code.gone = OfNowhere(), asked, weakref.proxy(Counts())  # type: ignore[attr-defined]
        users_code.instance = instance  # type: ignore[attr-defined]
        vars(users_code)[3] = 4  # type: ignore[index]
        save_checkpoint(tmp_path / "run", step=1, model=nn.Linear(1, 1))
        del vars(users_code)[3]  # type: ignore[arg-type]

    def test_values_are_not_stored_but_said(self, users_code: ModuleType, tmp_path: Path) -> None:
        model = nn.Linear(1, 1)
        save_checkpoint(tmp_path / "run", step=1, model=model)
        users_code.count, users_code.last_time = 1, 2.0
        users_code.draw()
        with pytest.warns(InexactResumeWarning, match=r"no checkpoint has: users_code.count\."):
            save_checkpoint(tmp_path / "run", step=2, model=model)

    def test_those_of_the_script_are_its_own_affair(
        self, users_code: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "__main__", users_code)
        monkeypatch.delitem(sys.modules, "users_code")
        model = nn.Linear(1, 1)
        save_checkpoint(tmp_path / "run", step=1, model=model)
        users_code.count = 1
        with warnings.catch_warnings():
            warnings.simplefilter("error", InexactResumeWarning)
            save_checkpoint(tmp_path / "run", step=2, model=model)


class Lazily(Sampler[int]):
    """Draws while it goes on, from what others draw from."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def __len__(self) -> int:
        return 12

    def __iter__(self) -> Iterator[int]:
        left = list(range(12))
        while left:
            yield left.pop(int(torch.randint(len(left), (), generator=self.generator)))


class Noisy(Dataset[float]):
    """Makes itself a new generator when it is told to."""

    def __init__(self) -> None:
        self.rng = random.Random(1)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> float:
        return self.rng.random()


class Counts:
    """Counts its samples."""

    def __init__(self) -> None:
        self.count = 0

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> int:
        self.count += 1
        return index


class MakesOne(Noisy):
    """Makes its generator when it first needs it, as workers do; and counts."""

    def __init__(self, counts: bool) -> None:
        self.rng: random.Random | None = None  # type: ignore[assignment]
        self.counts, self.count = counts, 0

    def __getitem__(self, index: int) -> float:
        self.count += 1
        self.rng = self.rng or random.Random(1)
        return self.rng.random() + self.count * self.counts


class TestThatAreMadeAtTheFirstSample:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_samples_are_those_of_any_process(self, workers: int) -> None:
        def make() -> PositionedLoader:  # counts are lost with workers
            return resumable(DataLoader(MakesOne(counts=not workers), 2, num_workers=workers), seed=1)

        whole = [batch.tolist() for batch in make()]
        begun, resumed = make(), make()
        first = next(iter(begun)).tolist()
        resumed.load_state_dict(begun.state_dict())
        assert [first, *(batch.tolist() for batch in resumed)] == whole


class TestThatSeveralDrawFrom:
    def test_a_sampler_leaves_them_alone_and_they_the_sampler(self) -> None:
        generator = torch.Generator().manual_seed(3)
        loader = resumable(DataLoader(range(12), 2, sampler=Lazily(generator)), seed=1)
        undisturbed = [batch.tolist() for batch in loader]
        loader.set_epoch(0)
        disturbed, drawn = [], []
        for batch in loader:
            disturbed.append(batch.tolist())
            drawn.append(torch.rand((), generator=generator))
        alone = torch.Generator().manual_seed(3)
        assert disturbed == undisturbed
        assert drawn == [torch.rand((), generator=alone) for _ in drawn]

    def test_samples_leave_them_alone(self) -> None:
        data = Noisy()
        expected = random.Random(1).random()
        list(resumable(DataLoader(data, 2)))  # type: ignore[arg-type]
        assert data.rng.random() == expected

    def test_one_that_is_made_anew_is_followed(self) -> None:
        data = Noisy()
        loader = resumable(DataLoader(data, 2), seed=1)
        first = [batch.tolist() for batch in loader]
        loader.set_epoch(0)
        data.rng = random.Random(5)
        assert [batch.tolist() for batch in loader] == first
