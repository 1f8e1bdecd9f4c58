"""What is around a loader and counts or keeps its batches, as users write it, is said where it spoils a resume."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch.utils.data import DataLoader
from tqdm import tqdm

from neuromanifold_gpt import ResumableDataLoader, resumable
from neuromanifold_gpt.data.errors import DataOrderWarning

LOADERS: dict[str, Callable[[], Any]] = {
    "ResumableDataLoader": lambda: ResumableDataLoader(range(22), 4),
    "resumable": lambda: resumable(DataLoader(range(22), batch_sampler=[[0, 1], [2], [3, 4, 5], [6]])),
}


def passed_on(loader: Any) -> Iterator[Any]:
    """As programs do that move batches to a device."""
    for batch in loader:
        yield batch + 0


WRONG: dict[str, Callable[[Any], Any]] = {
    "enumerate": enumerate,
    "from 1": lambda loader: enumerate(loader, 1),
    "around tqdm": lambda loader: enumerate(tqdm(loader, disable=True)),
    "around a tqdm that shows": lambda loader: enumerate(tqdm(loader)),
    "in tqdm": lambda loader: tqdm(enumerate(loader), disable=True),
    "around zip": lambda loader: enumerate(zip(loader, range(9), strict=False)),
    "around a generator": lambda loader: enumerate(passed_on(loader)),
}
RIGHT: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda loader: loader,
    "from where it goes on": lambda loader: enumerate(loader, loader.batches_consumed),
    "from 1, where it goes on": lambda loader: enumerate(loader, loader.batches_consumed + 1),
    "around tqdm": lambda loader: enumerate(tqdm(loader, disable=True), loader.batches_consumed),
    "of something else": lambda loader: zip(loader, enumerate(range(9)), strict=False),
}


def behind(make: Callable[[], Any], batches: int) -> Any:
    """A loader that goes on behind so many batches."""
    loader = make()
    iterator = iter(loader)
    for _ in range(batches):
        next(iterator)
    resumed = make()
    resumed.load_state_dict(loader.state_dict())
    return resumed


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("how", WRONG)
def test_counting_from_0_in_the_middle_of_an_epoch_is_said(loader: str, how: str) -> None:
    resumed = behind(LOADERS[loader], 3)
    assert resumed.batches_consumed == 3
    with pytest.warns(DataOrderWarning, match=r"enumerate counts from [01] here, while the epoch goes on behind 3"):
        for _ in WRONG[how](resumed):
            pass
    with warnings.catch_warnings():  # the next epoch
        warnings.simplefilter("error")
        for _ in WRONG[how](resumed):
            pass


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("how", RIGHT)
def test_counting_from_where_it_goes_on_is_not(loader: str, how: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in RIGHT[how](behind(LOADERS[loader], 3)):
            pass


def test_counting_a_whole_epoch_is_not() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        numbers = [number for number, _ in enumerate(LOADERS["ResumableDataLoader"]())]
        assert numbers == [number for number, _ in enumerate(behind(LOADERS["ResumableDataLoader"], 0))]


@pytest.mark.parametrize("batches", [0, 3])
@pytest.mark.parametrize("around", [lambda cycle: cycle, enumerate])
def test_cycle_is_said_when_it_begins(around: Callable[[Any], Any], batches: int) -> None:
    loader = behind(LOADERS["ResumableDataLoader"], batches)
    with pytest.warns(DataOrderWarning, match="itertools.cycle gives the batches of its first pass again and again"):
        next(iter(around(itertools.cycle(loader))))


def test_the_number_of_batches_is_that_of_the_rank_and_the_epoch() -> None:
    loader = LOADERS["ResumableDataLoader"]()
    for _ in range(2):
        assert [loader.batches_consumed for _ in loader] == [1, 2, 3, 4, 5, 6]
