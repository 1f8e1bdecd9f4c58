"""Which dataset another one points to, and how far an iterator in one is: no position has it, so it is said."""

from __future__ import annotations

import copy
import functools
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from neuromanifold_gpt import ResumableDataLoader, resumable


class Points(Dataset[int]):
    def __init__(self, kept: Any = None) -> None:
        self.kept = kept

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> int:
        return i


class Draws(Points):
    def __getitem__(self, i: int) -> int:
        return i + int(next(self.kept))


class Ordered(Sampler[int]):
    """Its iterator goes on from epoch to epoch."""

    def __init__(self) -> None:
        self.kept = itertools.cycle(range(7))

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self.kept, 12)

    def __len__(self) -> int:
        return 12


class Stream(IterableDataset[int]):
    """It is read again, and with it what its transform draws."""

    def __init__(self) -> None:
        self.kept = iter(range(100))

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self.kept, 12)


class Easy:
    pass


class Hard:
    pass


def said(loader: Any, dataset: Any = None, kept: Any = None) -> list[str]:
    """What is said at a save behind the third batch, if ``kept`` is set behind the second."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batches = iter(loader)
        next(batches)
        next(batches)
        if dataset is not None:
            dataset.kept = kept
        next(batches)
        loader.state_dict()
    return [text.partition(":")[0] for text in (str(warning.message) for warning in caught) if "no position" in text]


@pytest.mark.parametrize(("before", "kept"), [(Points(), Points()), (Easy(), Hard()), (Points(), Ordered())])
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_a_dataset_refers_to(before: Any, kept: Any, wrapped: bool) -> None:
    dataset = Points(before)
    loader: Any = resumable(DataLoader(dataset, 2)) if wrapped else ResumableDataLoader(dataset, 2)
    assert said(loader, dataset, kept) == ["dataset.kept"]


@pytest.mark.parametrize(("before", "kept"), [(Points(), None), (Easy(), Easy())])
def test_what_is_closed_or_made_anew_is_not_said(before: Any, kept: Any) -> None:
    dataset = Points(before)
    assert said(ResumableDataLoader(dataset, 2), dataset, kept) == []


LATE = [[1.0, 2.0], torch.ones(12), {3: 1.0}, Points(), Easy(), str.lower]


class Lazy(Points):
    """Makes something when it is first needed, behind the first batches."""

    def __init__(self, make: Any) -> None:
        self.make = make

    def __getitem__(self, i: int) -> int:
        if i == 7:
            self.kept = copy.copy(self.make)
            self.tables = {"rows": [i]}
        return i


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kept", LATE)
def test_what_is_set_late_by_others_than_the_samples_is_said(kept: Any, workers: int) -> None:
    for dataset in (Points(None), Lazy(None)):
        if type(dataset) is Lazy:
            dataset.make = None  # nor is the attribute there
        loader = ResumableDataLoader(dataset, 2, num_workers=workers)
        assert said(loader, dataset, kept) == ["dataset.kept"]
    assert said(ResumableDataLoader(Points(None), 2, num_workers=workers), dataset, {}) == []


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kept", LATE)
def test_what_samples_make_when_they_need_it_is_not_said(kept: Any, wrapped: bool) -> None:
    dataset = Lazy(kept)
    loader: Any = resumable(DataLoader(dataset, 2)) if wrapped else ResumableDataLoader(dataset, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            for _ in loader:
                loader.state_dict()
    assert dataset.kept is not None


def test_what_is_set_between_passes_is_said_and_what_a_property_remembers_is_not() -> None:
    class Described(Points):
        @functools.cached_property
        def classes(self) -> list[int]:
            return [1, 2]

    dataset = Described()
    loader = ResumableDataLoader(dataset, 2)
    list(loader)
    assert dataset.classes == [1, 2]
    assert said(loader) == []
    dataset.labels = [0.5] * 12  # type: ignore[attr-defined]
    assert said(loader) == ["dataset.labels"]


@pytest.mark.parametrize(
    "iterator",
    [
        lambda: itertools.cycle(range(9)),
        lambda: iter(range(100)),
        lambda: itertools.count(),
        lambda: (number for number in range(100)),
        lambda: iter(DataLoader(range(100))),  # type: ignore[arg-type]
    ],
)
def test_an_iterator_from_which_samples_are_made(iterator: Any) -> None:
    assert said(ResumableDataLoader(Draws(iterator()), 2)) == ["dataset.kept"]


def test_those_of_samplers_and_streams_have_a_position() -> None:
    assert said(resumable(DataLoader(Points(), 2, sampler=Ordered()))) == []
    assert said(resumable(DataLoader(Stream(), 2))) == []
