"""Numbers that a plain loop carries, and a resume does not have, are said when the first batch is asked for."""

from __future__ import annotations

import array
import contextvars
import functools
import math
import re
import signal
import time
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from tqdm import tqdm

from neuromanifold_gpt import ResumableDataLoader, latest_checkpoint, load_checkpoint, save_checkpoint
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.state.inspection.clocks import _CLOCKS
from tests import warm_process

BATCHES = 4  # of an epoch
SAID = "numbers that the loop carries from round to round were others at the save: "


class Run:
    """A model, its optimizer and loader, restored from the newest checkpoint."""

    def __init__(self, directory: Path, **stateful: Any) -> None:
        self._directory, self._stateful = directory, stateful
        self._model = nn.Linear(1, 1)
        self._optimizer = torch.optim.SGD(self._model.parameters(), 0.01)
        self._loader = ResumableDataLoader(torch.arange(1.0, 1.0 + 2 * BATCHES).unsqueeze(1), batch_size=2)
        self._steps, self._rounds = 0, iter(range(1, BATCHES + 2))
        self._is_over = False
        if checkpoint := latest_checkpoint(directory):
            restored = load_checkpoint(checkpoint).restore(**self._objects())
            self._steps = restored.global_step

    def _objects(self) -> dict[str, Any]:
        stateful = {"stateful": self._stateful} if self._stateful else {}
        return {"model": self._model, "optimizers": self._optimizer, "loaders": self._loader, **stateful}

    @property
    def steps(self) -> int:
        return self._steps

    def epochs(self) -> Iterator[ResumableDataLoader]:
        while not self._is_over:
            yield self._loader

    def epoch(self) -> ResumableDataLoader:
        return self._loader

    @property
    def is_over(self) -> bool:
        return self._is_over

    def step(self, batch: torch.Tensor) -> float:
        self._optimizer.zero_grad()
        loss = self._model(batch).square().mean()
        loss.backward()
        self._optimizer.step()
        self._steps += 1
        return loss.item()

    def save(self) -> bool:
        """Whether it is time to stop."""
        save_checkpoint(self._directory, step=self._steps, **self._objects())
        self._is_over = next(self._rounds, None) is None
        return self._is_over


def in_variables(directory: Path) -> None:
    run, best, waited, temperature, mean = Run(directory), math.inf, 0, 1.0, None
    means, recent = {"loss": 0.0, "of": {"two": 0.0}}, deque([0.0], maxlen=3)
    values, seen, phase = defaultdict(float), set(), "warm-up"
    for loader in run.epochs():
        for batch in loader:
            loss = temperature * run.step(batch)
            temperature *= 0.9
            mean = loss if mean is None else 0.9 * mean + 0.1 * loss
            best, waited = min(best, loss), waited + 2
            means["loss"], means["of"]["two"] = loss, means["loss"]
            recent.append(loss)
            values["a", 1] += loss
            seen.add(int(batch[0]))
            phase = "main" if temperature < 0.8 else phase
            if run.save():
                break


def in_containers_that_are_read(directory: Path) -> None:
    run, losses, by_sample, last = Run(directory), [0.0], {0: 0.0}, [0.0]
    for loader in run.epochs():
        for batch in loader:
            losses.append(run.step(batch))
            by_sample[int(batch[0]) + 1] = sum(losses[-3:]) + by_sample[0]
            last[0] = last[0] + 1.0
            if run.save():
                break


def in_a_function_within(directory: Path) -> None:
    run, baseline = Run(directory), 0.0

    def train_on(batch: torch.Tensor) -> None:
        nonlocal baseline
        baseline = 0.9 * baseline + 0.1 * run.step(batch)

    for loader in run.epochs():
        for batch in loader:
            train_on(batch)
            if run.save():
                break


@dataclass
class Progress:
    best: float = math.inf
    scores: list[float] = field(default_factory=list)


class Trainer:
    def __init__(self, directory: Path) -> None:
        self.run, self.epsilon, self.progress = Run(directory), 1.0, Progress()

    def fit(self) -> None:
        for loader in self.run.epochs():
            for batch in loader:
                loss = self.epsilon * self.run.step(batch)
                self.epsilon *= 0.9
                self.progress.best = min(self.progress.best, loss)
                if self.run.save():
                    break


def in_a_trainer(directory: Path) -> None:
    Trainer(directory).fit()


def in_a_namespace(directory: Path) -> None:
    run, state = Run(directory), SimpleNamespace(seen=0)
    for loader in run.epochs():
        for batch in loader:
            run.step(batch)
            state.seen += len(batch)
            if run.save():
                break


def in_turns(directory: Path) -> None:
    """What falls by one, and begins anew, is no count that is raised behind the save."""
    run, turn, left = Run(directory), 1, 9
    for loader in run.epochs():
        for batch in loader:
            if turn and left:
                run.step(batch)
            turn, left = 0, 8
            if run.save():
                break


def in_steps_of_events(directory: Path) -> None:
    """What a program sets to the step that it begins with, and then to that of some event."""
    run = Run(directory)
    improved_at = last_improved = run.steps
    for loader in run.epochs():
        for batch in loader:
            if run.step(batch) > 0 and run.steps % 6 == 2:
                improved_at = last_improved = run.steps
            if run.save():
                break
    assert improved_at == last_improved


def half(loss: float) -> float:
    return 0.5 * loss


def whole(loss: float) -> float:
    return loss


class Weighting:
    def __init__(self) -> None:
        self.by = functools.partial(math.pow, 1.0)


def in_functions(directory: Path) -> None:
    run, weigh, weighting = Run(directory), half, Weighting()
    for loader in run.epochs():
        for batch in loader:
            if weigh(run.step(batch)) * weighting.by(1.0) > 0:
                weigh = whole
            weighting.by = functools.partial(math.pow, 1.0 + run.steps)
            if run.save():
                break


class Annealer:
    beta = 0.0  # until an object has one of its own

    def __init__(self) -> None:
        self.inner = SimpleNamespace(inner=SimpleNamespace(inner=SimpleNamespace(deep=1.0)))

    def step(self, loss: float) -> None:
        self.beta += loss
        self.inner.inner.inner.deep += loss


def in_objects_of_containers(directory: Path) -> None:
    run, callbacks, tasks = Run(directory), [Annealer()], {"a": (Annealer(),)}
    for loader in run.epochs():
        for batch in loader:
            loss = run.step(batch)
            callbacks[0].step(loss)
            tasks["a"][0].step(loss)
            if run.save():
                break


def smoothing_step(run: Run) -> Callable[[torch.Tensor], None]:
    mean = 1.0

    def step(batch: torch.Tensor) -> None:
        nonlocal mean
        mean = 0.9 * mean + 0.1 * run.step(batch)

    return step


def in_a_function_from_a_factory(directory: Path) -> None:
    run = Run(directory)
    step = smoothing_step(run)
    for loader in run.epochs():
        for batch in loader:
            step(batch)
            if run.save():
                break


def tracking_step(run: Run, weigh: Callable[[float], float]) -> Callable[[torch.Tensor], None]:
    """With dicts and a list that it reads and changes, and memos; it only adds to the record."""
    stats, firsts, best = {"best": math.inf}, {}, Progress()
    lengths, seen, history, record = {}, set(), [], []

    def step(batch: torch.Tensor, weights: list[float] = [1.0]) -> None:  # noqa: B006 - that is the point
        loss = weigh(run.step(batch)) * weights[0]
        stats["best"], best.best = min(stats["best"], loss), min(best.best, loss)
        firsts["last"] = firsts.get("last", 0.0) + loss
        weights[0] *= 0.5
        seen.add(loss)
        record.append(loss)
        history.append(loss / max([1.0, *history]))
        if len(batch) + len(seen) not in lengths:
            lengths[len(batch) + len(seen)] = str(loss)
            lengths[str(loss)] = loss

    return step


def in_what_functions_hold(directory: Path) -> None:
    run = Run(directory)
    step = tracking_step(run, half)
    for loader in run.epochs():
        for batch in loader:
            step(batch)
            if run.save():
                break


class Anneals:
    """Saves once; what it needs is made by its first step."""

    def __init__(self, directory: Path) -> None:
        self.run, self.progress, self.losses, self.limits = Run(directory), None, None, None

    def fit(self) -> None:
        for batch in self.run.epoch():
            self.progress, self.losses = self.progress or Progress(best=1.0), self.losses or []
            self.limits = self.limits or Progress(best=0.5)
            self.losses.append(self.progress.best * self.run.step(batch))
            self.progress.best *= 0.9
            self.losses[0] += self.limits.best
            if self.run.steps % 3 == 0:
                self.run.save()
                return


def in_an_object_that_is_made_later(directory: Path) -> None:
    Anneals(directory).fit()


class Schedules:
    def __init__(self) -> None:
        self.by_phase, self.losses, self.scores = {"main": half}, [half, half], [0.0]
        self.factors, self.means = [1.0, 2.0], array.array("d", [1.0])


def in_lists_and_arrays(directory: Path) -> None:
    run, mean, temperature = Run(directory), array.array("d", [1.0]), contextvars.ContextVar("temperature", default=1.0)
    waiting, state, schedules = deque([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), {"weights": [1.0], "losses": [0.0]}, Schedules()
    temperature.set(1.0)
    for loader in run.epochs():
        for batch in loader:
            loss = schedules.losses[0](run.step(batch)) * waiting.popleft() * temperature.get()
            mean[0] = 0.9 * mean[0] + 0.1 * loss
            temperature.set(0.9 * temperature.get())
            state["weights"][0] *= 0.9
            state["losses"].append(loss)
            schedules.by_phase["main"], schedules.losses[0] = whole, whole
            schedules.factors[1] *= 0.9
            schedules.means[0] += loss
            schedules.scores.append(loss)
            if run.save():
                break


def annealed(loader: Any) -> Iterator[torch.Tensor]:
    factor, passes, length = 1.0, 0, 1
    while True:
        for batch in loader:
            yield factor * length * batch
            factor *= 0.9
        passes += 1


def packed(batches: Any) -> Iterator[torch.Tensor]:
    left: list[float] = []
    for batch in batches:
        left.extend(batch.flatten().tolist())
        while len(left) > 2:
            yield torch.tensor(left[:2]).unsqueeze(1)
            left = left[2:]


def in_generators(directory: Path) -> None:
    run = Run(directory)
    for batch in tqdm(packed(annealed(run.epoch())), disable=True):
        run.step(batch)
        if run.save():
            break


class Smoothed:
    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[torch.Tensor]:
        mean = 0.0
        for batch in self._loader:
            mean = 0.9 * mean + batch.mean().item()
            yield batch - mean


def in_a_generator_for_each_pass(directory: Path) -> None:
    run = Run(directory)
    end = run.steps + BATCHES - 1
    for loader in run.epochs():
        for batch in Smoothed(loader):
            run.step(batch)
            run.save()
            if run.steps == end:
                return


def in_lists_of_texts(directory: Path) -> None:
    run, pool, paths = Run(directory), ["seed"], ["out/0"]
    for loader in run.epochs():
        for batch in loader:
            run.step(batch)
            pool, paths = [*pool, f"text {run.steps}"][-3:], [*paths, f"out/{run.steps}"][-3:]
            if run.save():
                break


class Key:
    """Of a dict; who wants its text, is wrong."""

    def __repr__(self) -> str:
        raise AssertionError("a key's text may fail, or change")


def by_objects(directory: Path) -> None:
    run, weights = Run(directory), {Key(): 1.0}
    for loader in run.epochs():
        for batch in loader:
            loss = run.step(batch)
            for key in weights:
                weights[key] += loss
            if run.save():
                break


IN_VARIABLES = (
    "best",
    "mean",
    "means.loss",
    "means.of.two",
    "phase",
    "recent",
    "seen",
    "temperature",
    "values (then 1 keys, now 0 keys)",
    "waited",
)


class Hard:
    def __call__(self, value: float) -> float:
        return value


class Soft(Hard):
    def __call__(self, value: float) -> float:
        return value / 2


def in_objects_of_other_classes(directory: Path) -> None:
    """Not that an object is made when it is first needed, or let go of."""
    run, criterion, trainer = Run(directory), Hard(), SimpleNamespace(criterion=Hard(), made=None, let_go_of=Hard())
    for loader in run.epochs():
        for batch in loader:
            criterion(trainer.criterion(run.step(batch)))
            criterion, trainer.criterion, trainer.made, trainer.let_go_of = Soft(), Soft(), Soft(), None
            if run.save():
                break


FOUND: dict[Callable[[Path], None], list[str]] = {
    in_objects_of_other_classes: [
        f"in_objects_of_other_classes.{path} (then Soft object, now Hard object)"
        for path in ("criterion", "trainer.criterion")
    ],
    in_variables: [f"in_variables.{name}" for name in IN_VARIABLES],
    in_containers_that_are_read: [f"in_containers_that_are_read.{name}" for name in ("by_sample", "last", "losses")],
    in_a_function_within: ["in_a_function_within.baseline"],
    in_a_trainer: ["Trainer.epsilon", "Trainer.progress.best"],
    in_a_namespace: ["in_a_namespace.state.seen"],
    in_objects_of_containers: [
        f"in_objects_of_containers.{path}"
        for path in ("callbacks[0].beta", "callbacks[0].inner.inner.inner.deep", "tasks['a'][0].beta")
    ],
    in_a_function_from_a_factory: ["in_a_function_from_a_factory.step.mean"],
    in_what_functions_hold: [
        f"in_what_functions_hold.step.{path}"
        for path in ("best.best", "default 0", "firsts (then 1 entries", "history", "stats.best")
    ],
    in_an_object_that_is_made_later: ["Anneals.progress.best (then 0."],
    in_lists_and_arrays: [
        *(f"in_lists_and_arrays.{path}" for path in ("mean", "state.weights.0", "temperature (then 0.", "waiting")),
        *(f"Schedules.{path}" for path in ("by_phase.main (then whole, now half)", "factors.1 (then", "means.0")),
        "Schedules.losses (then [whole,half], now [half,half])",
    ],
    in_lists_of_texts: ["in_lists_of_texts.pool"],
    by_objects: ["by_objects.weights.Key 0"],
    in_generators: ["annealed.factor (then 0.", "annealed.passes (then ", "packed.left"],
    in_a_generator_for_each_pass: ["Smoothed.__iter__.mean (then "],
    in_turns: ["in_turns.turn (then 0, now 1)", "in_turns.left (then 8, now 9)"],
    in_steps_of_events: [f"in_steps_of_events.{name} (then " for name in ("improved_at", "last_improved")],
    in_functions: ["weigh (then whole, now half)", "Weighting.by (then partial(pow,"],
}


def as_the_checkpoint_has_it(directory: Path) -> None:
    """Counts that are raised before and behind the save."""
    run = Run(directory)
    steps, rounds = run.steps, run.steps
    for loader in run.epochs():
        for batch in loader:
            run.step(batch)
            steps += 1
            if run.save():
                break
            rounds += 1
    assert steps == rounds + 1


def train(run: Run, steps: int) -> int:
    for batch in run.epoch():
        run.step(batch)
        steps += 1
        if run.save():
            break
    return steps


def in_a_variable_around_the_loop(directory: Path) -> None:
    """That is behind, by all that this epoch has done, and is the checkpoint's step in the run that resumes."""
    run = Run(directory)
    steps = run.steps
    while not run.is_over:
        steps = train(run, steps)


class Stop:
    def __init__(self) -> None:
        self.received, self.also = None, {"now": False}

    def note(self, number: int, _: Any) -> None:
        self.received = self.also["now"] = number


def what_a_signal_sets(directory: Path) -> None:
    run, stop = Run(directory), Stop()
    handler = signal.signal(signal.SIGUSR1, stop.note)
    for loader in run.epochs():
        for batch in loader:
            run.step(batch)
            signal.raise_signal(signal.SIGUSR1)
            if run.save() and stop.received:
                break
    signal.signal(signal.SIGUSR1, handler)


def made_in_each_round(directory: Path) -> None:
    run, loss, last, phase = Run(directory), None, None, contextvars.ContextVar("phase")
    for loader in run.epochs():
        for batch in loader:
            phase.set("training")
            loss = run.step(batch)
            last = 2 * loss
            if run.save():
                break
    assert last == 2 * loss


def times(directory: Path) -> None:
    clock = _CLOCKS[-1]
    run, began, last = Run(directory), time.time(), clock()
    t0 = elapsed = 0.0
    for loader in run.epochs():
        for batch in loader:
            run.step(batch)
            elapsed += clock() - last
            last, t0 = clock(), t0 + 1
            began = max(began, time.time())
            if run.save():
                break
    assert elapsed < t0 + began


def records(directory: Path) -> None:
    run, losses, by_step, history = Run(directory), [0.0], {0: 0.0}, {"train": [0.0]}
    for loader in run.epochs():
        for batch in loader:
            loss = run.step(batch)
            losses.append(loss)
            if len(losses) > 1000:
                return
            by_step[run.steps] = loss
            history["train"].append(loss)
            if run.save():
                break
    assert losses == [*by_step.values()] == history["train"]


def a_flag_that_stops(directory: Path) -> None:
    run, stop_requested = Run(directory), False
    for loader in run.epochs():
        for batch in loader:
            stop_requested = stop_requested or run.step(batch) > 0
            if run.save() and stop_requested:
                break


class Meter:
    def __init__(self) -> None:
        self.total = 0.0


def meters(directory: Path) -> None:
    """Made when they are first asked for."""
    run, found = Run(directory), defaultdict(Meter)
    for loader in run.epochs():
        for batch in loader:
            found["loss"].total += run.step(batch)
            if run.save():
                break


class Best:
    """Whose state is what it says it is."""

    def __init__(self) -> None:
        self.value, self.looks = math.inf, 0

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.value = state["value"]


def saved_as_stateful(directory: Path) -> None:
    best = Best()
    run = Run(directory, best=best)
    value = best.value
    for loader in run.epochs():
        for batch in loader:
            value = best.value = min(value, run.step(batch))
            best.looks += 2
            if run.save():
                break


def numbers_that_stay(directory: Path) -> None:
    """Of which a resumed program may be given others."""
    run, limit = Run(directory), 1000 + len(list(directory.iterdir()))
    for loader in run.epochs():
        for batch in loader:
            if run.step(batch) > limit or run.save():
                break


def counted(loader: Any, steps: int) -> Iterator[torch.Tensor]:
    while True:
        group: list[float] = []
        for batch in loader:
            steps, doubled = steps + 1, 2 * batch
            group.append(float(doubled.sum()))
            yield doubled
            group = []


def in_generators_that_go_on(directory: Path) -> None:
    """A count that the checkpoint has, and what is emptied behind the save."""
    run = Run(directory)
    for batch in counted(run.epoch(), run.steps):
        run.step(batch)
        if run.save():
            break


def in_a_generator_whose_pass_is_over(directory: Path) -> None:
    run = Run(directory)
    end = run.steps + BATCHES
    for loader in run.epochs():
        for batch in Smoothed(loader):
            run.step(batch)
            run.save()
        if run.steps == end:
            break


def said_by(loop: Callable[[Path], None], directory: Path) -> list[str]:
    """What the second and third process of a run say; the first says nothing."""
    said = []
    for number in range(3):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loop(directory)
        texts = [str(warning.message) for warning in caught if issubclass(warning.category, InexactResumeWarning)]
        assert number > 0 or not texts
        said += texts
    return said


@pytest.mark.parametrize("loop", FOUND, ids=lambda loop: loop.__name__)
def test_said_once_in_each_process(loop: Callable[[Path], None], tmp_path: Path) -> None:
    said = said_by(loop, tmp_path)
    assert len(said) == 2
    for text in said:
        assert text.startswith(SAID)
        assert all(name in text for name in FOUND[loop]), text
    assert said[0].count(";") == len(FOUND[loop]) - 1


@pytest.mark.parametrize(
    "loop",
    [
        as_the_checkpoint_has_it,
        in_a_variable_around_the_loop,
        what_a_signal_sets,
        made_in_each_round,
        times,
        records,
        a_flag_that_stops,
        meters,
        saved_as_stateful,
        numbers_that_stay,
        in_generators_that_go_on,
        in_a_generator_whose_pass_is_over,
    ],
    ids=lambda loop: loop.__name__,
)
def test_passed_over(loop: Callable[[Path], None], tmp_path: Path) -> None:
    assert said_by(loop, tmp_path) == []


SCRIPT = """
import sys
from pathlib import Path
from tests.state.test_loop_numbers import Run

run, mean, best, config = Run(Path(sys.argv[1])), 0.0, 10.0, None

class Config:
    factor = 1.0

def factor():
    global config
    config = config or Config()
    config.factor *= 0.9
    return config.factor

def note(loss):
    global best
    best = min(best, factor() * loss)

for loader in run.epochs():
    for batch in loader:
        loss = run.step(batch)
        mean = 0.9 * mean + 0.1 * loss
        note(loss)
        if run.save():
            break
"""


def test_variables_of_a_script(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(SCRIPT)
    first, second = (warm_process.run(program, tmp_path / "saved").stderr for _ in range(2))
    assert "Warning" not in first
    assert f"{SAID}__main__.best (then " in second
    assert "; __main__.config.factor (then " in second
    assert "; __main__.mean (then " in second


OF_FUNCTIONS = """
import contextvars
import enum
import sys
from collections import deque
from pathlib import Path
import torch
from tests.state.test_loop_numbers import Run

settings, weights, by_sample, recent, hard = {"tau": 1.0}, [1.0, 1.0], {1: 1.0}, deque([0.0], maxlen=3), set()
by_step, history, report, known, lengths, last = {0: 0.0}, {"train": [0.0]}, [0.0], {}, {}, {}
scale, losses, memo = contextvars.ContextVar("scale", default=1.0), {"main": abs}, {}

class Config:
    temperature, epochs = 1.0, 3

    class Data:
        strength = 1

class Phase(enum.Enum):
    WARM = 1
    MAIN = 2

class State:
    def __init__(self):
        self.phases, self.phase = Phase, Phase.WARM

class Weights:
    @staticmethod
    def anneal():
        shrink()
        settings["tau"] *= 0.9
        by_sample[1] += 2.0

    @property
    def limit(self):
        return sum(recent) + sum(hard)

@torch.no_grad()
def shrink():
    weights[0] *= 0.9

def square(loss):
    return loss * loss

def weighed(loss):
    weighing = memo.setdefault("main", losses["main"])
    losses["main"], memo["main"] = square, weighing
    scale.set(0.9 * scale.get())
    return weighing(loss) * scale.get()

def length(number):
    if number not in lengths:
        lengths[number] = number + 1
    known[f"{number}"] = number
    return lengths[number] + known[f"{number}"]

def note(step, loss):
    recent.append(loss)
    hard.add(step)
    by_step[step] = loss
    history["train"].append(loss)
    report.append(loss)
    last["loss"] = loss
    length(step)

def main():
    run, state = Run(Path(sys.argv[1])), State()
    for loader in run.epochs():
        for batch in loader:
            loss = run.step(batch)
            note(run.steps, loss)
            Weights.anneal()
            Config.temperature *= 0.9
            Config.Data.strength += 2
            state.phase = Phase.MAIN
            if weighed(loss) * Weights().limit < 0 or run.save():
                break
    print(sum(report))

main()
"""


def test_what_functions_change_in_variables_and_classes_of_a_script(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(OF_FUNCTIONS)
    first, second = (warm_process.run(program, tmp_path / "saved").stderr for _ in range(2))
    assert "Warning" not in first
    found = re.findall(r"__main__\.([\w.]*\w)", second.split(SAID)[1].split("If training")[0])
    of_classes = ["Config.Data.strength", "Config.temperature"]
    assert found == [*of_classes, "by_sample.1", "hard", "losses.main", "recent", "scale", "settings.tau", "weights"]
    assert "; State.phase._value_ (then 2, now 1)" in second


MADE_BY_THE_FIRST_STEP = """
import sys
from pathlib import Path
from tests.state.test_loop_numbers import Run

class Trainer:
    def step(self, loss):
        self.last = loss
        if not hasattr(self, "mean"):
            self.mean = loss
        self.mean = 0.9 * self.mean + 0.1 * loss
        return self.mean

class Scaled:
    @classmethod
    def scale(cls, loss):
        cls.factor = 0.9 * getattr(cls, "factor", 1.5)
        return cls.factor * loss

def average(loss):
    global AVERAGE
    try:
        AVERAGE = 0.9 * AVERAGE + 0.1 * loss
    except NameError:
        AVERAGE = loss
    return AVERAGE

def weigh(loss):
    weigh.weight = 0.9 * getattr(weigh, "weight", 1.0)
    return weigh.weight * loss

def main():
    run, trainer = Run(Path(sys.argv[1])), Trainer()
    for loader in run.epochs():
        for batch in loader:
            loss = run.step(batch)
            if trainer.step(loss) + Scaled.scale(loss) + average(loss) + weigh(loss) < 0 or run.save():
                break

main()
"""


def test_what_the_first_step_makes_if_it_is_not_there(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(MADE_BY_THE_FIRST_STEP)
    first, second = (warm_process.run(program, tmp_path / "saved").stderr for _ in range(2))
    assert "Warning" not in first
    found = re.findall(r"([\w.]+) \(then [^)]*, now not there\)", second)
    assert found == ["Trainer.mean", "__main__.AVERAGE", "__main__.Scaled.factor", "__main__.weigh.weight"]
