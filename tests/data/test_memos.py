"""A dataset that remembers the samples that it has made: nothing is lost with them, if a sample is always the same."""

from __future__ import annotations

import pickle
import random
import warnings
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

from neuromanifold_gpt import ResumableDataLoader, resumable
from neuromanifold_gpt.data.errors import DataOrderWarning


class Remembering(Dataset[float]):
    """Decodes each file once."""

    def __init__(self) -> None:
        self.cache: dict[int, Any] = {}
        self.level = 0

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> float:
        if i not in self.cache:
            self.cache[i] = self.made(i)
        return float(self.cache[i])

    def made(self, i: int) -> float:
        return i / 7 + self.level


class Augmenting(Remembering):
    def made(self, i: int) -> float:
        return i * random.random()


class Mutable(Remembering):
    def __getitem__(self, i: int) -> float:
        self.cache.setdefault(i, [i / 7])
        return float(self.cache[i][0])


def changes_what_is_there(dataset: Remembering) -> None:
    next(iter(dataset.cache.values()))[0] += 1


class Numbering(Remembering):
    """As a vocabulary that grows: a word's number is how many came before it."""

    def __getitem__(self, i: int) -> float:
        return float(self.cache.setdefault(self.key_of(i), len(self.cache)))

    def key_of(self, i: int) -> Any:
        return f"word {i}"


class NumberingIndices(Numbering):
    """By keys that are numbers, too, and come shuffled."""

    def key_of(self, i: int) -> Any:
        return i * 7 % 12


class Counting(Remembering):
    """What it remembers happens to be numbers in a row, by their keys."""

    def made(self, i: int) -> int:
        return i + 3


class Forgetting(Remembering):
    """Remembers the last sample of each kind only."""

    def __getitem__(self, i: int) -> float:
        self.cache[i % 5] = self.made(i)
        return self.made(i)


def fills(dataset: Remembering) -> None:
    dataset.cache[len(dataset.cache) + 100] = 1.5


def raises_level(dataset: Remembering) -> None:
    dataset.level += 1


def nothing(dataset: Remembering) -> None:
    pass


def around(dataset: Any) -> Any:
    return resumable(DataLoader(dataset, 2, shuffle=True))


def unseeded(dataset: Any) -> Any:
    return ResumableDataLoader(dataset, 2, seed_samples=False)


def said_of(dataset: Remembering, make: Any, between: Any) -> list[str]:
    """At the saves of two epochs."""
    loader = make(dataset)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            for _ in loader:
                loader.state_dict()
                between(dataset)
        pickle.loads(pickle.dumps(loader))
    return [str(warning.message) for warning in caught if issubclass(warning.category, DataOrderWarning)]


@pytest.mark.parametrize("make", [lambda dataset: ResumableDataLoader(dataset, 2), around])
@pytest.mark.parametrize("dataset", [Remembering, Counting])
def test_is_not_said(dataset: Any, make: Any) -> None:
    assert said_of(dataset(), make, nothing) == []


@pytest.mark.parametrize(
    ("dataset", "make", "between"),
    [
        pytest.param(Augmenting, around, nothing, id="samples draw"),
        pytest.param(Remembering, unseeded, nothing, id="samples may draw"),
        pytest.param(Remembering, around, fills, id="the loop fills it too"),
        pytest.param(Remembering, around, raises_level, id="a number decides about later ones"),
        pytest.param(Mutable, around, changes_what_is_there, id="the loop changes some"),
        pytest.param(Numbering, around, nothing, id="it gives numbers as they come"),
        pytest.param(NumberingIndices, around, nothing, id="it gives numbers to numbers"),
        pytest.param(Forgetting, around, nothing, id="others take their place"),
    ],
)
def test_but_where_the_same_sample_may_be_another(dataset: Any, make: Any, between: Any) -> None:
    [said] = said_of(dataset(), make, between)
    assert said.startswith("dataset.cache: training changes it")
