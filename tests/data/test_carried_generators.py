"""A sampler that goes on with one generator function from epoch to epoch."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Sampler

from neuromanifold_gpt import ResumableDataLoader, SeparatedCheckpoint, resumable
from neuromanifold_gpt.data.errors import DataOrderWarning

from ..lightning_io.toy import NoisySamples, ToyModule, fit

SAID = "a generator that goes on in the next epoch, and that no checkpoint can have"


class Endless(Sampler[int]):
    """Permutations one behind the other, of which an epoch is a part."""

    def __init__(self) -> None:
        self.stream = self.drawn()

    def drawn(self) -> Iterator[int]:
        while True:
            yield from torch.randperm(26).tolist()

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self.stream, 24)

    def __len__(self) -> int:
        return 24


class MadeByEachPass(Endless):
    def __iter__(self) -> Iterator[int]:
        self.stream = self.drawn()
        return super().__iter__()


class UsedUp(Endless):
    """It is made before each pass, and at its end when that is."""

    def set_epoch(self, epoch: int) -> None:
        self.stream = iter(i for i in range(24))  # type: ignore[assignment]

    def __iter__(self) -> Iterator[int]:
        self.set_epoch(0)
        return (i for i in self.stream)


class Counts(Endless):
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def said_of(loader: Any) -> list[str]:
    """At saves within each of two epochs, and behind them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            for _ in loader:
                loader.state_dict()
                loader.warn_of_what_is_left_out()
    return [str(warning.message) for warning in caught if SAID in str(warning.message)]


def over(sampler: Any) -> Any:
    return resumable(DataLoader(NoisySamples(), 4, sampler=sampler))


def test_of_a_sampler_is_said_once() -> None:
    [said] = said_of(over(Endless()))
    assert said.startswith("sampler.stream: ")


@pytest.mark.parametrize("sampler", [MadeByEachPass, UsedUp, Counts])
def test_but_not_where_the_next_epoch_begins_another(sampler: Any) -> None:
    assert said_of(over(sampler())) == []
    assert said_of(ResumableDataLoader(NoisySamples(), 4, shuffle=True)) == []


@pytest.mark.parametrize("wrap", [resumable, lambda loader: loader], ids=["resumable", "stock"])
def test_of_loaders_in_lightning_too(wrap: Any, tmp_path: Path) -> None:
    loader = wrap(DataLoader(NoisySamples(), 4, sampler=Endless()))
    saves = SeparatedCheckpoint(tmp_path, every_n_train_steps=6)  # an epoch has as many
    module = ToyModule()
    module.train_dataloader = lambda: loader  # type: ignore[method-assign]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(saves, module=module, loaders=False, max_steps=6)
    assert [w.category for w in caught if SAID in str(w.message)] == [DataOrderWarning]
