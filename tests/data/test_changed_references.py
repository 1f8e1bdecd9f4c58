"""Which dataset another one points to, and how far an iterator in one is: no position has it, so it is said."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
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


@pytest.mark.parametrize(("before", "kept"), [(None, Points()), (Points(), None), (Easy(), Easy()), (None, Easy())])
def test_what_is_opened_or_closed_or_made_anew_is_not_said(before: Any, kept: Any) -> None:
    dataset = Points(before)
    assert said(ResumableDataLoader(dataset, 2), dataset, kept) == []


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
