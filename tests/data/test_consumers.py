"""What is around a loader and counts or keeps its batches, as users write it, is said where it spoils a resume."""

from __future__ import annotations

import concurrent.futures
import itertools
import queue
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from neuromanifold_gpt import ResumableDataLoader, latest_checkpoint, load_checkpoint, resumable, save_checkpoint
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
WRONG_IN_ZIP: dict[str, Callable[[Any], Any]] = {
    "range": lambda loader: zip(range(9), loader, strict=False),
    "range behind": lambda loader: zip(loader, range(9), strict=False),
    "count": lambda loader: zip(itertools.count(), loader, strict=False),
    "count from 1": lambda loader: zip(itertools.count(1), passed_on(loader), strict=False),
    "count by 2": lambda loader: zip(itertools.count(0, 2), tqdm(loader, disable=True), strict=False),
    "range by 4, in tqdm": lambda loader: tqdm(zip(range(0, 99, 4), loader, strict=False)),
}
RIGHT: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda loader: loader,
    "from where it goes on": lambda loader: enumerate(loader, loader.batches_consumed),
    "from 1, where it goes on": lambda loader: enumerate(loader, loader.batches_consumed + 1),
    "around tqdm": lambda loader: enumerate(tqdm(loader, disable=True), loader.batches_consumed),
    "range from where it goes on": lambda loader: zip(range(loader.batches_consumed, 9), loader, strict=False),
    "count from where it goes on": lambda loader: zip(loader, itertools.count(loader.batches_consumed), strict=False),
    "zip with numbers that are none of batches": lambda loader: zip([0, 1, 2, 3], loader, strict=False),
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


def reads(loader: Any) -> int:
    total = 0
    for number, _ in enumerate(loader):
        total += number
    return total


def reads_in_another(loader: Any) -> int:
    numbers = []
    for number, _ in tqdm(enumerate(loader), disable=True):
        numbers.append(lambda: number)  # noqa: B023 - that it is read, is all
    return len(numbers)


def reads_one_within(loader: Any) -> int:
    return sum(number for number, _ in enumerate(loader))


def asks_for_all_variables(loader: Any) -> int:
    for _number, _ in enumerate(loader):
        vars()
    return 0


def reads_none(loader: Any) -> int:
    total = 0
    for _number, batch in enumerate(loader):
        total += len(batch)
    return total


def reads_none_around_tqdm(loader: Any) -> int:
    for _, _ in enumerate(tqdm(loader, disable=True)):
        pass
    return 0


@pytest.mark.parametrize("train", [reads, reads_in_another, reads_one_within, asks_for_all_variables])
def test_numbers_that_are_read_are_said(train: Callable[[Any], int]) -> None:
    with pytest.warns(DataOrderWarning, match="enumerate counts from 0 here"):
        train(behind(LOADERS["ResumableDataLoader"], 3))


@pytest.mark.parametrize("train", [reads_none, reads_none_around_tqdm])
def test_numbers_that_nobody_reads_are_not(train: Callable[[Any], int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(behind(LOADERS["ResumableDataLoader"], 3))


SCRIPT = """
for number, batch in enumerate(loader):
    {body}
"""


@pytest.mark.parametrize(("body", "is_said"), [("len(batch)", False), ("print(number, len(batch))", True)])
def test_numbers_of_a_script(body: str, is_said: bool) -> None:
    variables = {"__name__": "__main__", "loader": behind(LOADERS["ResumableDataLoader"], 3)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(SCRIPT.format(body=body), variables)
    assert [warning.category for warning in caught] == [DataOrderWarning] * is_said


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("how", WRONG_IN_ZIP)
def test_numbers_in_a_zip_too(loader: str, how: str) -> None:
    number = 1 if how == "count from 1" else 0
    with pytest.warns(DataOrderWarning, match=rf"zip counts from {number} here, while the epoch goes on behind 3"):
        for _ in WRONG_IN_ZIP[how](behind(LOADERS[loader], 3)):
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


def through_a_thread(loader: Any) -> Iterator[Any]:
    """As prefetchers do."""
    taken: queue.Queue[Any] = queue.Queue(maxsize=2)

    def take() -> None:
        for batch in loader:
            taken.put(batch)
        taken.put(None)

    threading.Thread(target=take, daemon=True).start()
    yield from iter(taken.get, None)


@pytest.mark.parametrize("loader", LOADERS)
def test_batches_that_another_thread_takes_are_said_at_the_save(loader: str) -> None:
    made = LOADERS[loader]()
    batches = through_a_thread(made)
    next(batches)
    with pytest.warns(DataOrderWarning, match="taken from the loader in another thread"):
        made.state_dict()
    assert len(list(batches)) > 0


@pytest.mark.parametrize("loader", LOADERS)
def test_a_program_that_does_all_in_one_thread_of_its_own_hears_nothing(loader: str) -> None:
    def train() -> dict[str, Any]:
        made = LOADERS[loader]()
        next(iter(made))
        return made.state_dict()

    with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor(1) as pool:
        warnings.simplefilter("error")
        assert pool.submit(train).result()["epoch"] == 0


@pytest.mark.parametrize("loader", LOADERS)
def test_where_to_count_from_is_the_beginning_for_each_new_pass(loader: str) -> None:
    made = LOADERS[loader]()
    for _ in range(2):
        assert made.batches_consumed == 0
        for number, _ in enumerate(made, made.batches_consumed):
            assert made.batches_consumed == number + 1
    for _ in made:
        break
    assert made.batches_consumed == 0


def test_a_count_that_goes_by_something_else_is_no_reason_to_doubt() -> None:
    loader = behind(LOADERS["resumable"], 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataOrderWarning)
        next(enumerate(loader, 17))


class Restored:
    """Two loaders, with which a program goes on where another had saved."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.model = directory, nn.Linear(1, 1)
        self.loaders = [ResumableDataLoader(range(6), 2, shuffle=True, seed=seed) for seed in (1, 2)]
        if newest := latest_checkpoint(directory):
            load_checkpoint(newest).restore(model=self.model, loaders=self.loaders)

    def save(self, step: int) -> None:
        save_checkpoint(self.directory, step=step, model=self.model, loaders=self.loaders)


@pytest.mark.parametrize("stop", [2, 3, 4, 6])
def test_loaders_of_one_length_in_a_zip_end_together(tmp_path: Path, stop: int) -> None:
    def epochs(directory: Path, steps: int) -> list[Any]:
        program, done, left = Restored(directory), [], iter(range(1, steps))
        for epoch in range(program.loaders[0].epoch, 3):
            for pair in zip(*program.loaders, strict=False):
                done.append([part.tolist() for part in pair])
                program.save(3 * epoch + len(done))
                if next(left, None) is None:
                    return done
            done.append(f"end of {epoch}")
        return done

    directories = [tmp_path / "a", tmp_path / "b"]
    for directory in directories:
        directory.mkdir()
    whole = epochs(directories[0], 99)
    assert epochs(directories[1], stop) + epochs(directories[1], 99) == whole


def test_loaders_that_take_turns_are_said_where_they_are_not_where_they_were(tmp_path: Path) -> None:
    program = Restored(tmp_path)
    list(program.loaders[0])
    next(iter(program.loaders[1]))
    program.save(1)
    resumed = Restored(tmp_path)
    with pytest.warns(DataOrderWarning, match="a whole pass over a loader was made before another"):
        list(resumed.loaders[0])


def test_loaders_by_turns_of_batches_are_no_reason_to_doubt(tmp_path: Path) -> None:
    program = Restored(tmp_path)
    iterators = [iter(loader) for loader in program.loaders]
    for number in (0, 0, 0, 1):
        next(iterators[number])
    program.save(1)
    resumed = Restored(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataOrderWarning)
        for loader in resumed.loaders:
            list(loader)
