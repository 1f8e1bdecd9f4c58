"""What a plain loop carries from one round to the next in local variables, and forgets to save, is said."""

from __future__ import annotations

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

from neuromanifold_gpt import save_checkpoint
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.state.loop_carried import carried_by_loops

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


SAID = {
    hidden_state: "locals.hidden_state.hidden",
    batch_ahead: "locals.batch_ahead.batch",
    average: "locals.average.averages",
    best_weights: "locals.best_weights.best",
    priorities: "locals.priorities.weights",
    environment: "State",
    memory: "Memory.transitions",
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


class Unwilling(dict[str, Tensor]):
    def values(self) -> Any:
        raise RuntimeError("not now")


def unwilling(directory: Path) -> None:
    carried = Unwilling(first=torch.zeros(3))
    for save, _ in saving(directory):
        carried["first"] = carried["first"] + 1
        save()


PASSED_OVER = [made_in_each_round, results, the_same_all_the_time, saved_as_stateful, unwilling]


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
