"""Generators that a stream makes with its first sample: behind a resume, only it can put them where they were."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from neuromanifold_gpt import resumable
from neuromanifold_gpt.data.errors import DataOrderWarning

SAMPLES = 24


class MakesOne(IterableDataset[float]):
    """Anew in each pass, and forgets it."""

    def __init__(self, make: Any = random.Random) -> None:
        self.make, self.rng, self.given = make, None, 0

    def __iter__(self) -> Iterator[float]:
        self.rng = self.made()
        while self.given < SAMPLES:
            self.given += 1
            yield self.draw()
        self.given = 0

    def made(self) -> Any:
        return self.make(3)

    def draw(self) -> float:
        return float(self.rng.random())  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.given = state["given"]


class RemembersIt(MakesOne):
    """What its state has, its next pass begins with."""

    saved: Any = None

    def made(self) -> Any:
        made = super().made()
        if self.saved is not None:
            self.put_back(made)
        return made

    def put_back(self, made: Any) -> None:
        made.setstate(self.saved)

    def now(self) -> Any:
        return self.rng.getstate()  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "generators": [None if self.rng is None else self.now()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        [self.saved] = state["generators"]


class RemembersBits(RemembersIt):
    def __init__(self) -> None:
        super().__init__(np.random.default_rng)

    def put_back(self, made: Any) -> None:
        made.bit_generator.state = self.saved

    def now(self) -> Any:
        return self.rng.bit_generator.state  # type: ignore[attr-defined]


class DrawsOrderOnly(MakesOne):
    """The generator decides the order when the pass begins, and nothing later."""

    def made(self) -> Any:
        rng = super().made()
        self.order = rng.sample(range(SAMPLES), SAMPLES)
        return rng

    def draw(self) -> float:
        return float(self.order[self.given - 1])


class ByAnIterator(MakesOne):
    """Which has the generator, and a position, but not the generator in its state."""

    def __iter__(self) -> Any:
        return DrawingIterator()


class DrawingIterator:
    def __init__(self) -> None:
        self.rng, self.given = random.Random(), 0

    def __iter__(self) -> DrawingIterator:
        return self

    def __next__(self) -> float:
        if self.given == SAMPLES:
            raise StopIteration
        self.given += 1
        return self.rng.random()

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.given = state["given"]


def read(stream: MakesOne, workers: int, state: Any = None) -> tuple[list[Any], Any, str]:
    """All batches, the position behind the third, and what is said up to there."""
    torch.manual_seed(1)
    loader: Any = resumable(DataLoader(stream, 2, num_workers=workers))
    if state is not None:
        loader.load_state_dict(state)
    batches, states = [], []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in loader:
            batches.append(batch.tolist())
            states.append(loader.state_dict())
    said = [str(warning.message) for warning in caught if warning.category is DataOrderWarning]
    return batches, states[2] if len(states) > 2 else None, "\n".join(said)


@pytest.mark.parametrize("workers", [0, 2])
def test_one_that_is_forgotten_is_said(workers: int) -> None:
    batches, state, said = read(MakesOne(), workers)
    assert said.count("dataset.rng changes as batches are made, and no position has it") == 1
    assert read(MakesOne(), workers, state)[0] != batches[3:]


@pytest.mark.parametrize(
    ("kind", "workers"),
    [
        (RemembersIt, 0),
        (RemembersBits, 0),
        (RemembersBits, 2),
        (DrawsOrderOnly, 0),
        (ByAnIterator, 0),
        (ByAnIterator, 2),
    ],
)
def test_one_that_is_remembered_goes_on(kind: type[MakesOne], workers: int) -> None:
    batches, state, said = read(kind(), workers)
    assert said == ""
    assert read(kind(), workers, state)[0] == batches[3:]
