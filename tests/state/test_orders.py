"""Loops without a loader that go through a shuffled list: a process that resumes shuffles it otherwise."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from neuromanifold_gpt import latest_checkpoint, load_checkpoint, save_checkpoint

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "then"]
DATA: dict[str, list[Any]] = {
    "indices": list(range(8)),
    "texts": WORDS,
    "examples": [(word, len(word) / 3) for word in WORDS],
    "lists": [[[float(i), 1.0], i] for i in range(8)],
}


class Progress:
    """Where the loop is; saved."""

    def __init__(self) -> None:
        self.step = self.place = self.epoch = 0
        self.history: list[Any] = []

    def state_dict(self) -> dict[str, Any]:
        return {**vars(self), "history": [torch.tensor(example) for example in self.history]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state, history=[example.numpy() for example in state["history"]])


class Loop:
    """Trains to some step and saves there; a further one resumes."""

    def __init__(self, directory: Path, until: int) -> None:
        self.directory, self.until = directory, until
        self.model = nn.Linear(1, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1)
        self.progress = Progress()
        self.parts: dict[str, Any] = {"model": self.model, "optimizers": self.optimizer}
        self.parts["stateful"] = {"progress": self.progress}
        if newest := latest_checkpoint(directory):
            load_checkpoint(newest).restore(**self.parts)

    def step(self) -> None:
        self.model(torch.ones(1, 1)).mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.step += 1
        self.progress.place += 1

    def has_ended(self) -> bool:
        if self.progress.step == self.until:
            save_checkpoint(self.directory, step=self.progress.step, **self.parts)
        return self.progress.step == self.until

    def next_epoch(self) -> None:
        self.progress.place, self.progress.epoch = 0, self.progress.epoch + 1


def go_through(loop: Loop, data: list[Any], shuffled: Callable[[list[Any], int], list[Any]]) -> None:
    while True:
        order = shuffled(data, loop.progress.epoch)
        while loop.progress.place < len(order):
            _ = order[loop.progress.place]
            loop.step()
            if loop.has_ended():
                return
        loop.next_epoch()


def by_global_draws(data: list[Any], epoch: int) -> list[Any]:
    order = list(data)
    random.shuffle(order)
    return order


def in_place(data: list[Any], epoch: int) -> list[Any]:
    random.shuffle(data)
    return data


def by_the_epoch(data: list[Any], epoch: int) -> list[Any]:
    order = list(data)
    random.Random(epoch).shuffle(order)
    return order


def with_a_record(loop: Loop, data: list[Any]) -> None:
    record = [5, 1, 3]
    while True:
        record.append(len(record) * 7 % 11 + 20 * len(record))
        loop.step()
        if loop.has_ended():
            print(max(record), data)
            return


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)


class TestALoopThatIsResumed:
    @pytest.mark.parametrize("data", DATA)
    @pytest.mark.parametrize("shuffled", [by_global_draws, in_place])
    def test_by_another_order(self, shuffled: Any, data: str, tmp_path: Path, said: Callable[[], str]) -> None:
        go_through(Loop(tmp_path, 5), [*DATA[data]], shuffled)
        assert said() == ""
        go_through(Loop(tmp_path, 12), [*DATA[data]], shuffled)
        name = "order" if shuffled is by_global_draws else "data"
        assert f"were others at the save, and stay as they are now: locals.go_through.{name}. If" in said()

    def test_by_another_order_of_arrays_that_another_has_saved(self, tmp_path: Path, said: Callable[[], str]) -> None:
        loop = Loop(tmp_path, 12)
        loop.progress.history = [np.full(2, i) for i in range(8)]
        examples = [*loop.progress.history]
        for _ in range(2):
            random.shuffle(examples)
            for example in examples:
                save_checkpoint(tmp_path, step=int(example[0]), name="a", **loop.parts)
        assert "examples. If" in said()

    @pytest.mark.parametrize(
        "train", [functools.partial(go_through, shuffled=by_the_epoch), with_a_record], ids=["an order", "a record"]
    )
    def test_but_not_by_the_same(self, train: Any, tmp_path: Path, said: Callable[[], str]) -> None:
        for steps in (5, 12, 20):
            train(Loop(tmp_path, steps), [*range(8)])
        assert said() == ""
