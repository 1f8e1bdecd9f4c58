"""What a plain loop carries from one round to the next in local variables, and forgets to save, is said."""

from __future__ import annotations

import ast
import dis
import inspect
import itertools
import random
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from neuromanifold_gpt import ResumableDataLoader, latest_checkpoint, load_checkpoint, save_checkpoint
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.state.inspection.loop_carried import carried_by_loops, set_by_loops
from neuromanifold_gpt.state.inspection.users_objects import progress_of_iterator

ROUNDS = 4


def carried_here() -> set[str]:
    frame = sys._getframe(1)
    return {*carried_by_loops(frame)} & {*frame.f_locals}


class TestNames:
    def test_what_is_read_before_it_is_written(self) -> None:
        hidden, total = 0, 0
        for number in range(ROUNDS):
            output = number + hidden
            hidden = output
            total += output
            assert carried_here() == {"hidden", "total"}
        assert output

    def test_what_is_written_in_some_rounds_and_read_behind_the_loop(self) -> None:
        best, last = None, None
        for number in range(ROUNDS):
            last = number
            if number < 2:
                best = number
            assert carried_here() == {"best"}
        assert (best, last) == (1, ROUNDS - 1)

    def test_what_is_written_and_read_in_some_rounds_is_not_carried(self) -> None:
        for number in range(ROUNDS):
            if number == 1:
                squared = number**2
                assert squared == 1
            if number < ROUNDS:
                doubled = 2 * number
            else:
                raise AssertionError
            assert doubled % 2 == 0
            assert carried_here() == set()

    def test_what_is_made_by_an_inner_loop_is_not_carried_around_it(self) -> None:
        for _ in range(2):
            order = [1, 2]
            for number in range(2):
                item = order[number]
                assert carried_here() == {"order"}
            assert carried_here() == set()
        assert item

    def test_what_goes_around_an_inner_loop(self) -> None:
        mean = 0.0
        for _ in range(2):
            total = 0
            for number in range(2):
                total += number
            mean = (mean + total) / 2
            assert carried_here() == {"mean"}

    def test_of_while_with_continue_and_with_and_else(self) -> None:
        fetched, step = 0, 0
        while step < ROUNDS:
            used = fetched
            fetched = used + 1
            step += 1
            if step == 2:
                continue
            with warnings.catch_warnings():
                assert carried_here() == {"fetched", "step"}
        else:
            assert carried_here() == set()
        assert used == ROUNDS - 1

    def test_where_errors_are_handled(self) -> None:
        """From Python 3.12 on, that stands at the end of the function, and jumps back."""
        batches, step, passes = iter([1, 2]), 0, 0
        while step < ROUNDS:
            try:
                batch = next(batches)
            except StopIteration:
                batches, passes = iter([1, 2]), passes + 1
                batch = next(batches)
            step += batch > 0
            with warnings.catch_warnings():
                loss = step + passes
            assert carried_here() == {"batches", "step", "passes"}
            assert "passes" in set_by_loops(sys._getframe())
        assert carried_here() == set()
        assert loss + batch

    def test_of_what_only_errors_bring_to_its_next_round(self) -> None:
        tries = 0
        while True:
            try:
                tries += 1
                assert "tries" in carried_here()
                if tries < ROUNDS:
                    raise ValueError
                break
            except ValueError:
                continue

    def test_of_while_true(self) -> None:
        step = 0
        while True:
            step += 1
            squares = [step * number for number in range(3)]
            if step == ROUNDS:
                break
            assert carried_here() == {"step"}
        assert squares

    def test_behind_loops_there_is_none(self) -> None:
        total = 0
        for number in range(ROUNDS):
            total += number
        assert carried_here() == set()
        assert total

    def test_of_what_only_comprehensions_of_a_script_read(self) -> None:
        script = """
average, count, other = {}, [0], [1]
for number in range(3):
    [average.setdefault(name, number) for name in "ab" if any(count[0] == zero for zero in [0])]
    found.append(carried())
    functions = [lambda: other]
"""
        found: list[frozenset[str]] = []
        exec(script, {"found": found, "carried": lambda: carried_by_loops(sys._getframe(1))})
        some = {"average", "count", "number", "name", "other"}
        assert [names & some for names in found] == [{"average", "count"}] * 3


class Longer(ast.NodeTransformer):
    """Puts so much into the bodies of loops that jumps over them need a second instruction (``EXTENDED_ARG``)."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, ast.For | ast.While):
            node.body[:0] = ast.parse("filler = 0\n" * 150).body
        return super().generic_visit(node)


def test_of_long_loops_as_of_short_ones() -> None:
    (names,) = ast.parse(inspect.getsource(TestNames)).body
    made: dict[str, Any] = {}
    exec(compile(ast.fix_missing_locations(Longer().visit(ast.Module([names], []))), __file__, "exec"), globals(), made)
    tests = {name: test for name, test in vars(made["TestNames"]).items() if name.startswith("test_")}
    assert sum(step.opname == "EXTENDED_ARG" for test in tests.values() for step in dis.get_instructions(test)) > 9
    for test in tests.values():
        test(made["TestNames"]())


def saving(directory: Path) -> Iterator[tuple[Callable[..., None], Tensor]]:
    """Rounds that have something to train, and can save it."""
    model = nn.Linear(3, 3)

    def save(**others: Any) -> None:
        save_checkpoint(directory, step=round_, model=model, **others)

    for round_ in range(ROUNDS):
        with torch.no_grad():
            model.weight.add_(0.1)
        yield save, model(torch.full((2, 3), float(round_)))


def hidden_state(directory: Path) -> None:
    hidden = (torch.zeros(2, 3), torch.zeros(2, 3))
    for save, output in saving(directory):
        hidden = (torch.tanh(output + hidden[0].detach()), hidden[1])
        save()


def batch_ahead(directory: Path) -> None:
    batch = torch.randn(3)
    for save, _ in saving(directory):
        batch = torch.randn(3) + 0 * batch
        save()


def average(directory: Path) -> None:
    averages = {"weight": torch.zeros(2, 3)}
    for save, output in saving(directory):
        for name in averages:
            averages[name] = averages[name] * 0.9 + output.detach() * 0.1
        save()


def best_weights(directory: Path) -> dict[str, Tensor]:
    best = {"weight": torch.zeros(2, 3)}
    for save, output in saving(directory):
        if output.sum() > 0:
            best = {"weight": output.detach().clone()}
        save()
    return best


def priorities(directory: Path) -> None:
    weights = np.ones(8)
    for save, output in saving(directory):
        weights[random.randrange(8)] += output.sum().item()
        save()


class State(NamedTuple):
    observation: Tensor


def environment(directory: Path) -> None:
    state = State(torch.zeros(3))
    for save, _ in saving(directory):
        state = State(state.observation + 1)
        save()


class Memory:
    def __init__(self) -> None:
        self.transitions: deque[tuple[Tensor, int]] = deque(maxlen=3)


def memory(directory: Path) -> None:
    replay = Memory()
    for save, output in saving(directory):
        replay.transitions.append((output.detach(), 1))
        save()


class Unwilling(dict[str, Tensor]):
    def values(self) -> Any:
        raise RuntimeError("not now")


def unwilling(directory: Path) -> None:
    carried = Unwilling(first=torch.zeros(3))
    for save, _ in saving(directory):
        carried["first"] = carried["first"] + 1
        save()


class Prototypes:
    def __init__(self) -> None:
        self.center = torch.zeros(3)

    def update(self, output: Tensor) -> None:
        self.center = self.center * 0.9 + output.detach().mean(0) * 0.1


def by_a_method(directory: Path) -> None:
    update = Prototypes().update
    for save, output in saving(directory):
        update(output)
        save()


def a_parameter_of_no_module(directory: Path) -> None:
    temperature = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([temperature], 0.1)
    for save, _ in saving(directory):
        temperature.exp().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        save(optimizers=optimizer)


def a_parameter_of_nobody(directory: Path) -> None:
    multipliers = nn.Parameter(torch.ones(3))
    for save, output in saving(directory):
        multipliers.data.add_(output.detach().mean(0))
        save()


def anneals(strength: float) -> Iterator[float]:
    while True:
        yield strength
        strength *= 0.9


def a_generator(directory: Path) -> None:
    strengths = anneals(1.0)
    for save, _ in saving(directory):
        assert next(strengths) > 0
        save()


def steps_of_a_generator(directory: Path) -> None:
    prompts = (prompt for prompt in ["a", "b", "c", "d", "e"])
    for save, _ in saving(directory):
        assert next(prompts)
        save()


class Turns:
    def __init__(self) -> None:
        self.tasks = {"next": itertools.cycle("abc")}


def turns(directory: Path) -> None:
    turn = Turns()
    for save, _ in saving(directory):
        assert next(turn.tasks["next"])
        save()


def turns_in_a_later_pass(directory: Path) -> None:
    tasks = itertools.cycle("abc")
    for _ in "abcd":
        next(tasks)
    for save, _ in saving(directory):
        assert next(tasks)
        save()


SAID = {
    hidden_state: "locals.hidden_state.hidden",
    batch_ahead: "locals.batch_ahead.batch",
    average: "locals.average.averages",
    best_weights: "locals.best_weights.best",
    priorities: "locals.priorities.weights",
    environment: "State",
    memory: "Memory.transitions",
    unwilling: "Unwilling",
    by_a_method: "locals.by_a_method.update.center",
    a_parameter_of_no_module: "optimizers.0.params",
    a_parameter_of_nobody: "locals.a_parameter_of_nobody.multipliers",
    a_generator: "locals.a_generator.strengths",
    steps_of_a_generator: "locals.steps_of_a_generator.prompts",
    turns: "Turns.tasks['next']",
    turns_in_a_later_pass: "locals.turns_in_a_later_pass.tasks",
}


def made_in_each_round(directory: Path) -> tuple[Tensor, list[Tensor]]:
    for _ in range(2):
        for save, output in saving(directory):
            batch = {"x": output.detach()}
            outputs = [batch["x"] * 2]
            save()
        save()
    return output, outputs


def results(directory: Path) -> None:
    losses, mean, best = [], torch.zeros(()), 0.0
    for save, output in saving(directory):
        losses.append(output.sum().item())
        mean = mean * 0.9 + output.mean().detach() * 0.1
        best = max(best, losses[-1])
        save()


def the_same_all_the_time(directory: Path) -> None:
    inputs, order = torch.randn(4, 3), np.arange(4)
    for save, _ in saving(directory):
        assert inputs[order].sum() != 0
        save()


class Stateful:
    def __init__(self) -> None:
        self.hidden = torch.zeros(3)

    def state_dict(self) -> dict[str, Any]:
        return {"hidden": self.hidden}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.hidden = state["hidden"]


def saved_as_stateful(directory: Path) -> None:
    carried = Stateful()
    for save, _ in saving(directory):
        carried.hidden = carried.hidden + 1
        save(stateful={"carried": carried})


class SavesBatch:
    def __init__(self) -> None:
        self.batches: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        return {"batch": self.batches[-1].clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches = [state["batch"]]


def saved_in_the_state_of_another(directory: Path) -> None:
    batch, saves = torch.zeros(3), SavesBatch()
    for save, _ in saving(directory):
        batch = batch + 1
        saves.batches.append(batch)
        save(stateful={"batch": saves})


def without_end(loader: Any, device: str) -> Iterator[Any]:
    for _ in itertools.repeat(None):
        for batch in loader:
            moved = batch.to(device)
            yield moved


class Trains:
    """Takes its batches from a generator."""

    def __init__(self) -> None:
        self.loader, self.steps = ResumableDataLoader(range(6), 2), 0
        self.batches = self.without_end()

    def without_end(self) -> Iterator[Any]:
        while True:
            yield from self.loader


def batches_of_loaders_that_are_saved(directory: Path) -> None:
    trainer = Trains()
    loaders = [trainer.loader, *(ResumableDataLoader(range(12), 2, seed=seed) for seed in range(4))]
    batches = without_end(loaders[1], "cpu")
    shown = iter(tqdm(enumerate(loaders[2]), disable=True))
    pairs = zip(iter(loaders[3]), (batch for batch in loaders[4]), strict=False)
    for save, _ in saving(directory):
        for taken in (trainer.batches, batches, shown, pairs):
            assert next(taken) is not None
        trainer.steps += 1
        save(loaders=loaders)


def an_iterator_of_each_round(directory: Path) -> None:
    for save, _ in saving(directory):
        parts = iter(range(random.randrange(2, 9)))
        assert next(parts) == 0
        save()
        assert next(parts) == 1


def an_iterator_that_is_not_asked(directory: Path) -> None:
    numbers, step = itertools.count(), 0
    rising = (step + number for number in range(9))
    rounds = iter(range(9))
    for save, _ in saving(directory):
        step = next(rounds)
        save()
        if step > ROUNDS:
            assert next(numbers) + next(rising)


def whole_turns(directory: Path) -> None:
    """At each save the cycle is where it begins."""
    tasks = itertools.cycle("ab")
    for save, _ in saving(directory):
        assert next(tasks) + next(tasks) == "ab"
        save()


def parameters_that_others_have(directory: Path) -> None:
    network = nn.Linear(3, 3)
    weights, free = dict(network.named_parameters()), [nn.Parameter(torch.ones(3)), network.weight]
    for save, _ in saving(directory):
        for weight in weights.values():
            weight.data.add_(1)
        save(stateful={"network": network})
        assert free[0].sum() == 3


PASSED_OVER = [
    parameters_that_others_have,
    made_in_each_round,
    results,
    the_same_all_the_time,
    saved_as_stateful,
    saved_in_the_state_of_another,
    batches_of_loaders_that_are_saved,
    an_iterator_of_each_round,
    an_iterator_that_is_not_asked,
    whole_turns,
]


class TestWarnings:
    @pytest.mark.parametrize("loop", SAID, ids=lambda loop: loop.__name__)
    def test_said_once(self, loop: Callable[[Path], Any], tmp_path: Path) -> None:
        with pytest.warns(InexactResumeWarning) as said:
            loop(tmp_path)
        (warning,) = said
        assert f"values change in training that no checkpoint has: {SAID[loop]}. " in str(warning.message)

    @pytest.mark.parametrize("loop", PASSED_OVER, ids=lambda loop: loop.__name__)
    def test_passed_over(self, loop: Callable[[Path], Any], tmp_path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loop(tmp_path)


class OfPython314(itertools.cycle):  # type: ignore[type-arg]
    """Which does not show where it is."""

    def __reduce__(self) -> Any:
        raise TypeError


def test_a_cycle_that_does_not_show_its_place_goes_on_at_each_look() -> None:
    tasks = OfPython314([1, 2])
    assert next(tasks) == 1
    assert progress_of_iterator(tasks)["left"] == -1
    for _ in range(2):
        next(tasks)
    assert progress_of_iterator(tasks) != progress_of_iterator(tasks)


def trains(directory: Path, steps: int, begin: Callable[[], Any]) -> None:
    """From the newest checkpoint on; ``kept`` is set once, and read."""
    model, step, kept = nn.Linear(3, 3), 0, begin()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    if checkpoint := latest_checkpoint(directory):
        step = load_checkpoint(checkpoint).restore(model=model, optimizers=optimizer).global_step
    while step < steps:
        if kept is None:
            kept = model.weight.detach().clone()
        with torch.no_grad():
            model.weight.add_(0.1)
        step += 1
        save_checkpoint(directory, step=step, model=model, optimizers=optimizer)
    assert kept is not None


@pytest.mark.parametrize(
    ("begin", "is_said"), [(lambda: None, True), (lambda: nn.Linear(1, 1), True), (lambda: torch.ones(3), False)]
)
def test_what_is_set_once_is_compared_at_the_first_save_after_a_restore(
    begin: Callable[[], Any], is_said: bool, tmp_path: Path
) -> None:
    trains(tmp_path, 2, begin)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trains(tmp_path, 4, begin)
    said = [str(warning.message) for warning in caught if warning.category is InexactResumeWarning]
    assert len(said) == is_said
    assert all("were others at the save" in text and "locals.trains.kept. " in text for text in said)


def test_what_was_filled_once_before_the_save_and_is_empty_is_said(tmp_path: Path) -> None:
    def trains_two_tasks(steps: int) -> None:
        model, step, importance = nn.Linear(3, 3), 0, {}
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        if checkpoint := latest_checkpoint(tmp_path):
            step = load_checkpoint(checkpoint).restore(model=model, optimizers=optimizer).global_step
        while step < steps:
            if step == 2:
                importance["weight"] = torch.ones(3)
            step += 1
            save_checkpoint(tmp_path, step=step, model=model, optimizers=optimizer)
        assert len(importance) <= 1

    trains_two_tasks(4)
    with pytest.warns(InexactResumeWarning, match="were others at the save.*importance"):
        trains_two_tasks(6)


class TestStockLoaders:
    def fit(self, directory: Path, save_at: set[int]) -> None:
        model, step = nn.Linear(1, 1), 0
        loader = DataLoader(torch.arange(6.0).unsqueeze(1), 2)
        for _ in range(2):
            for batch in loader:
                with torch.no_grad():
                    model.weight.add_(batch.mean())
                step += 1
                if step in save_at:
                    save_checkpoint(directory, step=step, model=model)

    def test_a_save_in_the_middle_of_a_pass_is_said_once(self, tmp_path: Path) -> None:
        with pytest.warns(InexactResumeWarning, match="in the middle of a pass over a DataLoader") as said:
            self.fit(tmp_path, {1, 2, 4})
        (warning,) = said
        assert warning.filename == __file__

    def test_an_iterator_of_it_in_a_variable_is_not_said_too(self, tmp_path: Path) -> None:
        def fit() -> None:
            loader = DataLoader(range(9), 1)
            batches = enumerate(iter(loader))
            for save, _ in saving(tmp_path):
                assert next(batches)
                save()
            assert loader

        with pytest.warns(InexactResumeWarning, match="in the middle of a pass over a DataLoader") as said:
            fit()
        assert len(said) == 1

    def test_at_its_end_it_is_not(self, tmp_path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            self.fit(tmp_path, {3, 6})


class TestWorkersThatStay:
    def fit(self, directory: Path, **settings: Any) -> None:
        model = nn.Linear(1, 1)
        loader = DataLoader(torch.arange(6.0).unsqueeze(1), 3, **settings)
        for step in range(3):
            save_checkpoint(directory, step=step, model=model)  # before they are made, too
            for batch in loader:
                with torch.no_grad():
                    model.weight.add_(batch.mean())

    @pytest.mark.parametrize("generator", [None, torch.Generator()])
    def test_are_said_once_when_they_have_been_made(self, generator: Any, tmp_path: Path) -> None:
        with pytest.warns(InexactResumeWarning, match="has made its workers: locals.*fit.loader") as said:
            self.fit(tmp_path, num_workers=1, persistent_workers=True, shuffle=True, generator=generator)
        (warning,) = [warning for warning in said if warning.category is not DeprecationWarning]  # of forks, by Python
        assert warning.filename == __file__

    @pytest.mark.parametrize(
        "settings",
        [{"num_workers": 1}, {"num_workers": 1, "persistent_workers": True, "generator": torch.Generator()}],
        ids=["workers that go", "a generator that nobody else draws from"],
    )
    def test_but_not_where_nothing_comes_of_it(self, settings: dict[str, Any], tmp_path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            self.fit(tmp_path, **settings)
