"""Data that is other than at the save, though its size is the same, is said on the resume."""

from __future__ import annotations

import multiprocessing
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    random_split,
)

from neuromanifold_gpt import ResumableDataLoader, latest_checkpoint, load_checkpoint, resumable, save_checkpoint
from neuromanifold_gpt.data.errors import DataOrderWarning, ReadAgainWarning

SIZE = 24


def split(seed: int) -> Any:
    part, _ = random_split(range(SIZE), [12, 12], generator=torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
    return ResumableDataLoader(part, 2)


def labels(seed: int) -> Any:
    noise = torch.Generator().manual_seed(seed)
    return ResumableDataLoader(TensorDataset(torch.arange(SIZE), torch.rand(SIZE, generator=noise)), 2)


class Files(Dataset[str]):
    def __init__(self, seed: int, folder: str) -> None:
        self.files = [(f"{folder}/{number}.png", 0) for number in range(SIZE)]
        random.Random(seed).shuffle(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> str:
        return self.files[i][0]


def files(seed: int) -> Any:
    return ResumableDataLoader(Files(seed, "data"), 2)


def sampler(seed: int) -> Any:
    order = np.random.default_rng(seed).permutation(SIZE)[:12].tolist()
    return resumable(DataLoader(range(SIZE), 2, sampler=SubsetRandomSampler(order)), seed=0)  # type: ignore[arg-type]


class Shards(IterableDataset[int]):
    def __init__(self, seed: int) -> None:
        self.shards = random.Random(seed).sample(range(SIZE), SIZE)

    def __iter__(self) -> Iterator[int]:
        yield from self.shards


def shards(seed: int) -> Any:
    return resumable(DataLoader(Shards(seed), 2), seed=0)


def many(seed: int) -> Any:
    """Of long lists, items at even distances are looked at."""
    order = [*range(100_000)]
    if seed:
        order[50_000:] = order[:49_999:-1]
    return ResumableDataLoader(Subset(range(100_000), order), 2)  # type: ignore[arg-type]


DATA: dict[Callable[[int], Any], str] = {
    split: "dataset.indices",
    labels: "dataset.tensors",
    files: "dataset.files",
    sampler: "sampler.indices",
    shards: "dataset.shards",
    many: "dataset.indices",
}


def save(directory: Path, loader: Any) -> None:
    for _ in loader:
        save_checkpoint(directory, step=1, model=torch.nn.Linear(1, 1), loaders=loader)
        break


def restore(directory: Path, loader: Any) -> list[str]:
    """What it says."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", ReadAgainWarning)
        load_checkpoint(latest_checkpoint(directory)).restore(loaders=loader)  # type: ignore[arg-type]
        next(iter(loader))
    return [str(warning.message) for warning in caught if warning.category is DataOrderWarning]


@pytest.mark.parametrize("data", DATA, ids=lambda data: data.__name__)
def test_other_data_is_said(data: Callable[[int], Any], tmp_path: Path) -> None:
    save(tmp_path, data(0))
    said = restore(tmp_path, data(1))
    assert f"the data is other than at the save, so other samples follow: {DATA[data]}. " in said[0]


@pytest.mark.parametrize("data", DATA, ids=lambda data: data.__name__)
def test_the_same_data_is_not(data: Callable[[int], Any], tmp_path: Path) -> None:
    save(tmp_path, data(0))
    assert restore(tmp_path, data(0)) == []


def test_data_may_move(tmp_path: Path) -> None:
    save(tmp_path, ResumableDataLoader(Files(0, "data"), 2))
    assert restore(tmp_path, ResumableDataLoader(Files(0, "/other/place"), 2)) == []


def first(batch: list[int]) -> int:
    return batch[0]


def last(batch: list[int]) -> int:
    return batch[-1]


@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.parametrize("now", [first, last])
def test_another_function_that_collates_is_said(wrap: bool, now: Callable[[list[int]], int], tmp_path: Path) -> None:
    def made(collate_fn: Callable[[list[int]], int]) -> Any:
        if wrap:
            return resumable(DataLoader(range(SIZE), 2, collate_fn=collate_fn), seed=0)  # type: ignore[arg-type]
        return ResumableDataLoader(range(SIZE), 2, collate_fn=collate_fn)  # type: ignore[arg-type]

    loader = made(last)
    loader.collate_fn = first  # as it is at the save counts
    save(tmp_path, loader)
    said = restore(tmp_path, made(now))
    assert len(said) == (now is last)
    assert all("other than at the save, so other samples follow: collate_fn. " in text for text in said)


class FillsACache(Dataset[int]):
    def __init__(self) -> None:
        self.cache: list[int | None] = [None] * SIZE

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, i: int) -> int:
        self.cache[i] = i
        return i


@pytest.mark.filterwarnings("ignore:dataset.cache")
def test_what_is_filled_on_the_way_is_compared_as_it_was_made(tmp_path: Path) -> None:
    save(tmp_path, ResumableDataLoader(FillsACache(), 2))
    assert restore(tmp_path, ResumableDataLoader(FillsACache(), 2)) == []


def test_each_of_several_loaders(tmp_path: Path) -> None:
    loaders = [split(0), labels(0)]
    save_checkpoint(tmp_path, step=1, model=torch.nn.Linear(1, 1), loaders=loaders)
    with pytest.warns(DataOrderWarning, match="other samples follow: dataset.tensors. "):
        load_checkpoint(latest_checkpoint(tmp_path)).restore(loaders=[split(0), labels(1)])  # type: ignore[arg-type]


class Shared(torch.utils.data.Dataset[int]):
    def __init__(self, memo: object) -> None:
        self.memo, self.labels = memo, [1, 2, 3, 4]

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return self.labels[index]


def test_where_the_process_of_shared_objects_is_found_is_no_data() -> None:
    with multiprocessing.Manager() as manager:
        assert [*ResumableDataLoader(Shared(manager.dict()), 2).shown_data.texts] == ["dataset.labels"]
