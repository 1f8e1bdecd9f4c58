"""State in places where it is easily overlooked: a plain loop that saves it nowhere is told so."""

from __future__ import annotations

import datetime
import functools
import gc
import io
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from neuromanifold_gpt import ResumableDataLoader, latest_checkpoint, load_checkpoint, resumable, save_checkpoint


class Training:
    """A model that is trained and saved; others hold what is not."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.model = nn.Linear(2, 2)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1)

    def save(self, **others: Any) -> None:
        save_checkpoint(self._directory, step=1, model=self.model, optimizers=self.optimizer, name="a", **others)


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training(tmp_path)


def changed(network: nn.Module) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)


def in_a_dict(network: nn.Module) -> Any:
    return {"networks": {"teacher": network}}


def in_a_list(network: nn.Module) -> Any:
    return [network]


def in_a_function(network: nn.Module) -> Any:
    def apply(x: Any) -> Any:
        return network(x)

    return apply


def in_a_partial(network: nn.Module) -> Any:
    return functools.partial(nn.Module.__call__, network)


class Holder:
    def __init__(self, network: nn.Module) -> None:
        self.parts = {"teacher": network}


class TestObjectsWithState:
    @pytest.mark.parametrize("hold", [in_a_dict, in_a_list, in_a_function, in_a_partial, Holder])
    def test_are_found_in_what_holds_them(self, hold: Any, training: Training, said: Callable[[], str]) -> None:
        held = hold(nn.Linear(1, 1))
        network = held.args[0] if hold is in_a_partial else None
        training.save()
        network = network or next(part for part in _networks(held))
        changed(network)
        del network
        training.save()
        assert "values change in training that no checkpoint has" in said()

    def test_but_not_what_is_saved(self, training: Training, said: Callable[[], str]) -> None:
        networks = {"model": training.model, "layers": list(training.model.children())}
        training.save()
        changed(networks["model"])
        training.save()
        assert said() == ""

    def test_metrics_in_variables(self, training: Training, said: Callable[[], str]) -> None:
        losses = MeanMetric()
        for _ in range(2):
            losses.update(1.0)
            training.save()
        assert ".losses. If" in said()

    def test_but_not_where_they_are_reset_before_each_save(self, training: Training, said: Callable[[], str]) -> None:
        losses = MeanMetric()
        for _ in range(2):
            losses.update(1.0)
            losses.reset()
            training.save()
        assert said() == ""


def test_weights_in_a_file_in_memory(training: Training, said: Callable[[], str]) -> None:
    best, anew = io.BytesIO(), io.BytesIO()
    for _ in range(3):
        anew = io.BytesIO()
        torch.save(training.model.state_dict(), anew)
        best.seek(0)
        best.write(anew.getvalue())
        training.save()
        changed(training.model)
    assert said().count(".best. If") == 1
    assert ".anew" not in said()


class Hook:
    """Of a trainer, which it refers to, as those of detectron2 do."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.calls = trainer, 0


class Hooked:
    def __init__(self, training: Training, refer: Callable[[Any], Any]) -> None:
        self.training, self.mean = training, torch.zeros(2)
        self.hooks = [Hook(refer(self))]
        self.own = [torch.zeros(2)]

    def train(self) -> None:
        for _ in range(2):
            self.training.save()
            self.mean += 1
            self.hooks[0].calls += 1
            self.own[0] += 1


class HookedWithState(Hooked):
    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean = state["mean"]


def itself(thing: Any) -> Any:
    return thing


@pytest.mark.parametrize("refer", [itself, weakref.proxy])
@pytest.mark.parametrize("kind", [Hooked, HookedWithState])
def test_a_trainer_is_not_found_again_in_its_hooks(
    kind: type[Hooked], refer: Any, training: Training, said: Callable[[], str]
) -> None:
    kind(training, refer).train()
    names = "HookedWithState" if kind is HookedWithState else "Hooked.mean; Hooked.own"
    assert f": {names}. If" in said()


def _networks(held: Any) -> Iterator[nn.Module]:
    if isinstance(held, nn.Module):
        yield held
    elif isinstance(held, dict):
        for part in held.values():
            yield from _networks(part)
    elif isinstance(held, list):
        for part in held:
            yield from _networks(part)
    elif isinstance(held, Holder):
        yield from _networks(held.parts)
    elif callable(held):
        yield from _networks([cell.cell_contents for cell in held.__closure__])


def counting_hook() -> Callable[..., None]:
    calls = 0.0

    def hook(*_: Any) -> None:
        nonlocal calls
        calls += 0.5

    return hook


class Mean:
    """Begins anew when it is asked for its state, as some meters do that are logged."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.in_all = 0

    def state_dict(self) -> dict[str, Any]:
        state = {"losses": [*self.losses], "in_all": self.in_all}
        self.losses.clear()
        self.in_all = 0
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses, self.in_all = state["losses"], state["in_all"]


def test_what_nobody_gives_does_not_change_by_being_looked_at(training: Training, said: Callable[[], str]) -> None:
    mean = Mean()
    for number in range(1, 4):
        mean.losses.append(1.0)
        mean.in_all += 1
        training.save()
        assert (len(mean.losses), mean.in_all) == (number, number)
    assert "no checkpoint has: Mean. If" in said()


class TestFunctionsThatKeepSomething:
    @pytest.mark.parametrize(
        ("attach", "name"),
        [
            (lambda model, hook: model.register_forward_hook(hook), "_forward_hooks"),
            (lambda model, hook: model.weight.register_hook(hook), "weight._backward_hooks"),
            (
                lambda model, hook: model.bias.register_post_accumulate_grad_hook(hook),
                "bias._post_accumulate_grad_hooks",
            ),
        ],
    )
    def test_hooks(self, attach: Any, name: str, training: Training, said: Callable[[], str]) -> None:
        hook = counting_hook()
        attach(training.model, hook)
        training.save()
        hook()
        training.save()
        assert f"no checkpoint has: {name}. If" in said()
        training.save()
        assert said() == ""

    def test_what_a_scheduler_calls(self, training: Training, said: Callable[[], str]) -> None:
        factor = 1.0

        def falling(_: int) -> float:
            nonlocal factor
            factor *= 0.9
            return factor

        scheduler = torch.optim.lr_scheduler.LambdaLR(training.optimizer, falling)
        training.save(schedulers=scheduler)
        training.optimizer.step()
        scheduler.step()
        training.save(schedulers=scheduler)
        assert "schedulers.0.lr_lambdas" in said()

    @pytest.mark.parametrize("when", ["pre", "post"])
    def test_what_hooks_of_an_optimizer_keep(self, when: str, training: Training, said: Callable[[], str]) -> None:
        mean = 1.0

        def clip(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            nonlocal mean
            mean = 0.9 * mean + 0.1 * len(optimizer.param_groups[0]["params"])

        getattr(training.optimizer, f"register_step_{when}_hook")(clip)
        training.save()
        training.optimizer.step()
        training.save()
        assert f"optimizers.0._optimizer_step_{when}_hooks" in said()

    def test_but_not_functions_that_keep_nothing(self, training: Training, said: Callable[[], str]) -> None:
        warm_up_steps = 3
        scheduler = torch.optim.lr_scheduler.LambdaLR(training.optimizer, lambda step: min(1, step / warm_up_steps))
        training.model.register_forward_hook(lambda *_: None)
        for _ in range(2):
            training.optimizer.step()
            scheduler.step()
            training.save(schedulers=scheduler)
        assert said() == ""


class Lookahead(torch.optim.Optimizer):
    """Wraps another optimizer, as that of timm; ``slow`` weights are saved, or not."""

    def __init__(self, base: torch.optim.Optimizer, *, saves_slow: bool) -> None:
        super().__init__(base.param_groups, {})
        self.base, self.param_groups, self.saves_slow = base, base.param_groups, saves_slow
        self.slow = [parameter.detach().clone() for parameter in base.param_groups[0]["params"]]

    def step(self, closure: Any = None) -> Any:
        self.base.step(closure)
        for slow, parameter in zip(self.slow, self.param_groups[0]["params"], strict=True):
            slow.lerp_(parameter.detach(), 0.5)

    def state_dict(self) -> dict[str, Any]:
        state = self.base.state_dict()
        return {**state, "state": {**state["state"], "slow": self.slow}} if self.saves_slow else state


@pytest.mark.parametrize("saves_slow", [True, False])
def test_what_a_wrapped_optimizer_saves_itself_is_not_said(
    saves_slow: bool, training: Training, said: Callable[[], str]
) -> None:
    base = torch.optim.Adam(training.model.parameters(), 0.1)
    training.optimizer = Lookahead(base, saves_slow=saves_slow)  # type: ignore[assignment]
    for _ in range(3):
        training.optimizer.zero_grad()
        training.model(torch.ones(2)).sum().backward()
        training.optimizer.step()
        training.save()
    text = said()
    assert ("no checkpoint has: optimizers.0.slow. If" in text) is not saves_slow
    assert (text == "") is saves_slow


class Counts(torch.optim.SGD):
    """Counts its steps, in its state dict or not."""

    saves_count = True

    def __init__(self, parameters: Any, rate: float) -> None:
        super().__init__(parameters, rate)
        self._step = 0

    def step(self, closure: Any = None) -> Any:
        self._step += 1
        return super().step(closure)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **({"step": self._step} if self.saves_count else {})}


@pytest.mark.parametrize("saves_count", [True, False])
def test_a_count_of_an_optimizer(saves_count: bool, training: Training, said: Callable[[], str]) -> None:
    optimizer = Counts(training.model.parameters(), 0.1)
    optimizer.saves_count = saves_count
    training.optimizer = optimizer
    for _ in range(2):
        optimizer.step()
        training.save()
    assert ("no checkpoint has: optimizers.0._step. If" in said()) is not saves_count


def test_attributes_of_parameters(training: Training, said: Callable[[], str]) -> None:
    training.model.weight.average = torch.zeros(2)
    training.save()
    training.model.weight.average.add_(1)
    training.save()
    assert "no checkpoint has: weight.average. If" in said()


@pytest.mark.parametrize("is_saved", [False, True])
def test_an_iterator_over_a_loader(is_saved: bool, training: Training, said: Callable[[], str]) -> None:
    loader: Any = ResumableDataLoader([1, 2, 3, 4])
    training.model.batches = iter(loader)
    for _ in range(2):
        next(training.model.batches)
        training.save(**({"loaders": loader} if is_saved else {"loaders": resumable(DataLoader([1]))}))
    assert ("no checkpoint has: batches. If" in said()) is not is_saved


class Meter:
    """As programs have it that print how long a batch took."""

    def __init__(self, last: float) -> None:
        self.name, self.last, self.recent, self.is_on, self.sums = "batch", last, deque([last]), last > 0, {"all": last}


class Teacher:
    def __init__(self, rate: float) -> None:
        self.weights = torch.full((2,), rate)


@pytest.mark.parametrize(
    ("name", "made", "is_a_time"),
    [
        ("t", float, False),
        ("t0", float, True),
        ("t0", np.float64, True),
        ("step_time", float, True),
        ("step_times", lambda number: [[number]], True),
        ("start_time", lambda number: datetime.datetime.fromtimestamp(number, datetime.UTC), True),
        ("batch_time", Meter, True),
        ("is_time", bool, False),
        ("t1", lambda number: [nn.Linear(1, 1).requires_grad_(False)], False),
        ("t1", lambda number: torch.full((2,), number), False),
        ("clock", Teacher, False),
        ("clock", lambda number: {"a": [Teacher(number)]}, False),
    ],
)
def test_what_is_called_after_a_time_and_may_be_one_is_passed_over(
    name: str, made: Callable[[float], Any], is_a_time: bool, training: Training, said: Callable[[], str]
) -> None:
    for value in (0.0, 1.0):
        setattr(training.model, name, made(value))
        training.save()
    assert (said() == "") is is_a_time


class TestOddThings:
    """A look at what a program holds ends no training."""

    def test_layers_without_their_weights(self, training: Training) -> None:
        training.model.generated = nn.Linear(1, 1)
        del training.model.generated.bias
        training.save()

    def test_modules_that_are_half_made(self, training: Training) -> None:
        class HalfMade(nn.Module):
            def __init__(self) -> None:
                """Nothing of a module is there."""

        held = [HalfMade()]
        training.save()
        assert held

    def test_classes_that_are_from_nowhere(self, training: Training) -> None:
        names: dict[str, Any] = {"__builtins__": __builtins__}
        exec("thing = type('Thing', (), {})()", names)
        thing = names["thing"]
        training.save()
        assert thing

    def test_lists_that_are_not_asked(self, training: Training) -> None:
        class Shuffled(list[Any]):
            def __iter__(self) -> Any:
                raise AssertionError("somebody iterates")

        held = {"items": Shuffled([torch.ones(2)])}
        for _ in range(2):
            training.save()
        assert held

    def test_learning_rates_of_numpy(self, training: Training) -> None:
        training.optimizer.param_groups[0]["lr"] = np.linspace(0.1, 0.2, 3)[1]
        training.save()


def test_of_a_program_that_ends_no_weights_stay(tmp_path: Path) -> None:
    """Behind the last save, a loader that waits for its next batch holds none."""
    loader = ResumableDataLoader([1, 2, 3, 4])

    def trains() -> weakref.ref[nn.Module]:
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer, schedulers=scheduler, loaders=loader)
        return weakref.ref(model)

    model = trains()
    gc.collect()
    assert model() is None


def test_classes_of_a_program_that_ends_do_not_stay_either(tmp_path: Path) -> None:
    class Model(nn.Linear):
        factor = 0.5

        def scaled(self) -> Any:
            return super().forward(torch.ones(2)) * self.factor

    model = Model(2, 2)
    model.own = Holder(model)
    kept = weakref.ref(Model)
    for step in (1, 2):
        save_checkpoint(tmp_path, step=step, model=model)
    del model, Model
    gc.collect()
    assert kept() is None


def test_what_a_loop_reads_later_in_a_round_is_not_missed_behind_that(tmp_path: Path, said: Callable[[], str]) -> None:
    def fit(place: str, evaluated: torch.Tensor) -> None:
        training = Training(tmp_path)
        if newest := latest_checkpoint(tmp_path):
            load_checkpoint(newest).restore(model=training.model, optimizers=training.optimizer)
        for _ in range(2):
            for _ in range(3):
                if place == "inside":
                    training.save()
                    return
            training.model(evaluated).sum()
            training.save()
            return

    fit("inside", torch.ones(2))
    fit("behind", torch.ones(2))
    assert said() == ""
    fit("inside", torch.ones(2))
    fit("inside", torch.zeros(2))
    assert "were others at the save, and stay as they are now: locals" in said()


class Prefetcher:
    """As detectors have it: one batch ahead."""

    def __init__(self, loader: Any) -> None:
        self.batches = iter(loader)
        self.fetch()

    def fetch(self) -> None:
        self.ahead = next(self.batches, None)

    def next(self) -> Any:
        batch = self.ahead
        self.fetch()
        return batch


class Trainer:
    """Saves itself; its prefetcher is in no state."""

    def __init__(self, prefetcher: Prefetcher) -> None:
        self.prefetcher = prefetcher

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def test_a_batch_ahead_in_what_is_saved_itself(tmp_path: Path, said: Callable[[], str]) -> None:
    loader = ResumableDataLoader(torch.arange(40.0).view(20, 2), 2)
    trainer, model = Trainer(Prefetcher(loader)), nn.Linear(1, 1)
    for step in range(3):
        trainer.prefetcher.next()
        save_checkpoint(tmp_path, step=step, model=model, loaders=loader, stateful={"trainer": trainer})
    assert ".prefetcher. If" in said()
