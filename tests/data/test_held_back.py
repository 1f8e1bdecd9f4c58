"""Batches that a generator has taken from a loader and not given on are said at the save, with where they are."""

from __future__ import annotations

import copy
import itertools
import pickle
import random
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from neuromanifold_gpt import ResumableDataLoader, resumable
from neuromanifold_gpt.data.errors import DataOrderWarning

LOADERS: dict[str, Callable[[], Any]] = {
    "ResumableDataLoader": lambda: ResumableDataLoader(range(22), 4, shuffle=True),
    "resumable": lambda: resumable(DataLoader(range(22), 4)),
}


class Prefetcher:
    """As that of timm."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.mean = loader, torch.zeros(4)

    def __iter__(self) -> Iterator[Any]:
        batch = None
        for next_batch in self.loader:
            if batch is not None:
                yield batch
            batch = next_batch
        yield batch


class Buckets:
    """As detectron2 groups images."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.scale = loader, torch.ones(2)
        self.buckets: list[list[Any]] = [[], []]

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self.loader):
            bucket = self.buckets[number in (0, 3)]
            bucket.append(batch)
            self.scale = self.scale + 1
            if len(bucket) == 2:
                yield [*bucket]
                bucket.clear()


def one_ahead(loader: Any) -> Iterator[Any]:
    batches = iter(loader)
    current = next(batches)
    while True:
        try:
            ahead = next(batches)
        except StopIteration:
            yield current
            return
        yield current
        current = ahead


def shuffled(loader: Any) -> Iterator[Any]:
    buffer = []
    for batch in tqdm(loader, disable=True):
        buffer.append(batch)
        if len(buffer) > 2:
            yield buffer.pop(random.randrange(len(buffer)))
    yield from buffer


def behind_the_end(loader: Any) -> Iterator[Any]:
    buffer = deque(loader)
    random.shuffle(buffer)
    yield from buffer


def sorted_in_windows(loader: Any) -> Iterator[Any]:
    while True:
        window = []
        for number, batch in enumerate(loader):
            window.append((number, {"input": batch}))
            if len(window) == 3:
                yield from sorted(window, key=lambda pair: pair[0])
                window = []


def in_chunks(loader: Any) -> Iterator[Any]:
    batches = iter(loader)
    while chunk := list(itertools.islice(batches, 3)):
        yield from chunk


def with_the_one_before(loader: Any) -> Iterator[Any]:
    before = None
    for batch in loader:
        yield batch if before is None else batch[:1] + before[:1]
        before = batch


def in_halves(loader: Any) -> Iterator[Any]:
    for batch in loader:
        yield batch[:2]
        yield batch[2:]


def in_parts(loader: Any) -> Iterator[Any]:
    for batch in loader:
        for part, number in zip(batch.split(2), itertools.count(), strict=False):
            yield part + number


def row_by_row(loader: Any) -> Iterator[Any]:
    for batch in loader:
        rows = list(batch.split(1))
        while rows:
            yield rows.pop()


HELD_BACK: list[tuple[Callable[[Any], Any], int, str]] = [
    (Prefetcher, 1, r"Prefetcher.__iter__ holds batches back \(next_batch\)"),
    (Buckets, 1, r"Buckets.__iter__ .*\(self\)"),
    (one_ahead, 1, r"one_ahead .*\(ahead\)"),
    (shuffled, 2, r"shuffled .*\(buffer\)"),
    (shuffled, 5, r"shuffled .*\(in a loop\)"),
    (lambda loader: tqdm(shuffled(loader)), 1, r"shuffled .*\(buffer\)"),
    (lambda loader: enumerate(batch for batch in shuffled(loader)), 1, r"shuffled .*\(buffer\)"),
    (behind_the_end, 5, r"behind_the_end .*\(in a loop\)"),
    (sorted_in_windows, 1, r"sorted_in_windows .*\(in a loop\)"),
    (in_chunks, 2, r"in_chunks .*\(in a loop\)"),
    (with_the_one_before, 2, r"with_the_one_before .*\(batch\)"),
    (in_halves, 1, r"in_halves .*\(batch\)"),
    (in_parts, 1, r"in_parts .*\(in a loop\)"),
    (row_by_row, 3, r"row_by_row .*\(rows\)"),
]


def taken(around: Any, batches: int) -> Iterator[Any]:
    iterator = iter(around)
    for _ in range(batches):
        next(iterator)
    return iterator


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(("around", "batches", "message"), HELD_BACK)
def test_batches_that_are_held_back_are_said_once(
    loader: str, around: Callable[[Any], Any], batches: int, message: str
) -> None:
    made = LOADERS[loader]()
    iterator = taken(around(made), batches)
    with pytest.warns(DataOrderWarning, match=f"{message}: .*They count as trained on") as said:
        made.state_dict()
    assert said[0].filename == __file__
    next(iterator)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.state_dict()


def grouped(loader: Any) -> Iterator[Any]:
    chunk = []
    for batch in loader:
        chunk.append(batch)
        if len(chunk) == 2:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def without_end(loader: Any) -> Iterator[Any]:
    while True:
        for batch in loader:
            yield batch + 0


def epochs(loader: Any) -> Iterator[Any]:
    for _ in range(9):
        yield from loader


def normalized(loader: Any) -> Iterator[Any]:
    """With tensors that are there before."""
    table = {"mean": torch.zeros(4), "scale": [torch.ones(4)]}
    lengths, batch = 0, torch.zeros(0)
    for batch in loader:
        lengths += len(batch)
        moved: Tensor = (batch - table["mean"][: len(batch)]) * table["scale"][0][: len(batch)]
        yield moved
        print(len(moved), lengths)
    assert batch is not None


def mean_of_losses(loader: Any) -> Iterator[Any]:
    """As a loop that trains and gives its results."""
    mean = torch.zeros(())
    for batch in loader:
        mean = 0.9 * mean + 0.1 * batch.sum()
        yield mean


def skipping(loader: Any) -> Iterator[Any]:
    for number, batch in enumerate(loader):
        if number % 2:
            yield batch


GIVEN_ON: list[tuple[Callable[[Any], Any], int]] = [
    (lambda loader: loader, 2),
    (tqdm, 2),
    (enumerate, 2),
    (lambda loader: (batch for batch in loader), 2),
    (without_end, 8),
    (epochs, 8),
    (normalized, 2),
    (mean_of_losses, 2),
    (skipping, 2),
    (grouped, 1),
    (Prefetcher, 6),
    (shuffled, 6),
    (behind_the_end, 6),
    (in_chunks, 3),
    (in_halves, 2),
    (in_parts, 2),
    (in_parts, 11),
    (row_by_row, 4),
]


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(("around", "batches"), GIVEN_ON)
def test_where_all_are_given_on_nothing_is_said(loader: str, around: Callable[[Any], Any], batches: int) -> None:
    made = LOADERS[loader]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        iterator = taken(around(made), batches)
        made.state_dict()
    assert iterator


def strengths() -> Iterator[float]:
    while True:
        yield 0.5


class Others:
    """Has a loader, too."""

    def __init__(self) -> None:
        self.loader = ResumableDataLoader(range(9))

    def without_end(self) -> Iterator[Any]:
        while True:
            yield from self.loader


BEGINS_ANEW: list[tuple[Callable[[Any], Any], str]] = [
    (lambda loader: zip(loader, itertools.cycle("abc"), strict=False), "itertools.cycle"),
    (lambda loader: zip(strengths(), tqdm(loader, disable=True), strict=False), "strengths"),
    (
        lambda loader: enumerate(zip(loader, (number for number in "abcdefgh"), strict=False)),
        "<lambda>.<locals>.<genexpr>",
    ),
]
HAS_ITS_PLACE: list[Callable[[Any], Any]] = [
    lambda loader: zip(loader, itertools.islice(itertools.cycle("abc"), loader.batches_consumed, None), strict=False),
    lambda loader: zip(loader, itertools.repeat(1), range(9), strict=False),
    lambda loader: zip(loader, without_end(ResumableDataLoader(range(9))), strict=False),
    lambda loader: zip(loader, Others().without_end(), strict=False),
    lambda loader: zip(loader, (batch for batch in ResumableDataLoader(range(9))), strict=False),
    lambda loader: zip(loader, without_end(DataLoader(range(9))), strict=False),
]


@pytest.mark.parametrize(("around", "name"), BEGINS_ANEW)
def test_what_begins_anew_in_a_zip_is_said_once_within_an_epoch(around: Callable[[Any], Any], name: str) -> None:
    loader = LOADERS["ResumableDataLoader"]()
    iterator = taken(around(loader), 1)
    with pytest.warns(DataOrderWarning, match=f"a zip takes from {name} beside this loader") as said:
        loader.state_dict()
    assert said[0].filename == __file__
    next(iterator)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader.state_dict()


@pytest.mark.parametrize("around", HAS_ITS_PLACE)
def test_what_has_its_place_in_a_zip_is_not(around: Callable[[Any], Any]) -> None:
    loader = LOADERS["ResumableDataLoader"]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        iterator = taken(around(loader), 2)
        loader.state_dict()
    assert iterator


def test_what_begins_anew_in_each_epoch_is_not_said_at_its_end() -> None:
    loader = LOADERS["ResumableDataLoader"]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            assert len(list(zip(loader, strengths(), strict=False))) == 6
            loader.state_dict()


def test_a_generator_that_saves_itself_hears_nothing() -> None:
    def trains(loader: Any) -> Iterator[Any]:
        state = torch.zeros(4)
        for batch in loader:
            state = state[: len(batch)] + batch
            yield loader.state_dict()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(trains(LOADERS["ResumableDataLoader"]()))) == 6


def test_one_that_was_left_keeps_nothing_and_is_not_kept() -> None:
    loader = LOADERS["ResumableDataLoader"]()
    generator = Prefetcher(loader).__iter__()
    next(generator)
    gone = weakref.ref(generator)
    with pytest.warns(DataOrderWarning, match="holds batches back"):
        loader.state_dict()
    del generator
    assert gone() is None
    assert loader.batches_consumed == 0


def test_loaders_are_copied_with_a_pass_under_way() -> None:
    loader = LOADERS["ResumableDataLoader"]()
    iterator = taken(shuffled(loader), 1)
    with pytest.warns(DataOrderWarning, match="holds batches back"):
        loader.state_dict()
    for other in (copy.deepcopy(loader), pickle.loads(pickle.dumps(loader))):
        assert len(list(other)) == 6
    assert iterator
