"""What training changes in its data, and no position has, is said: of workers at first batches, else at the saves."""

from __future__ import annotations

import copy
import functools
import gc
import pickle
import warnings
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from neuromanifold_gpt import ResumableDataLoader, resumable
from neuromanifold_gpt.data.errors import DataOrderWarning


class Remembers(Dataset[int]):
    def __init__(self, kept: Any, change: Callable[[Any, int], Any]) -> None:
        self.kept, self.change, self.values = copy.deepcopy(kept), change, list(range(1000, 1024))

    def __len__(self) -> int:
        return 24

    def __getitem__(self, i: int) -> int:
        self.change(self.kept, i)
        return self.values[i]


class Open:
    """As a file would be: opened when it is first needed."""


CHANGES: dict[str, tuple[Any, Callable[[Any, int], Any]]] = {
    "a dict": ({}, lambda kept, i: kept.update({i: kept.get(i, 0) + 1})),
    "a dict of tensors": ({}, lambda kept, i: kept.update({i: torch.ones(1)})),
    "a list": ([], lambda kept, i: kept.append([i])),
    "losses by sample": ([0.0] * 24, lambda kept, i: kept.__setitem__(i, 0.5 + i)),
    "a queue": (deque(maxlen=2), lambda kept, i: kept.append(i)),
    "a tensor": (torch.zeros(24), lambda kept, i: kept[i].fill_(1 + i)),
    "an array": (np.zeros((2, 24)).T, lambda kept, i: kept[i].fill(1 + i)),
}
NO_CHANGES: dict[str, tuple[Any, Callable[[Any, int], Any]]] = {
    "files": ({}, lambda kept, i: kept.update({i: Open()})),
    "set to the same": ([1.0] * 24, lambda kept, i: kept.__setitem__(i, 1.0)),
    "texts": (["a"] * 24, lambda kept, i: kept[i]),
    "large data": (np.zeros(100_000), lambda kept, i: kept[i]),
}


def loader_over(dataset: Any, workers: int, kind: str, **options: Any) -> Any:
    if kind == "own":
        return ResumableDataLoader(dataset, 4, num_workers=workers, **options)
    return resumable(DataLoader(dataset, 4, num_workers=workers, **options))


def passes(loader: Any) -> None:
    for _ in range(2):
        for _ in loader:
            loader.state_dict()


@pytest.mark.parametrize("kind", ["own", "wrapped"])
@pytest.mark.parametrize("what", CHANGES)
def test_said_once(what: str, kind: str) -> None:
    loader = loader_over(Remembers(*CHANGES[what]), 0, kind)
    with pytest.warns(DataOrderWarning, match=r"^dataset\.kept: training changes it, and no position has it") as said:
        passes(loader)
    assert len(said) == 1


@pytest.mark.parametrize("what", ["a dict", "losses by sample"])
def test_said_of_workers(what: str) -> None:
    loader = loader_over(Remembers(*CHANGES[what]), 2, "own")
    with pytest.warns(DataOrderWarning, match=r"^dataset\.kept changes in the workers") as said:
        passes(loader)
    assert [warning.category for warning in said if warning.category is not DeprecationWarning] == [DataOrderWarning]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("what", NO_CHANGES)
def test_not_said(what: str, workers: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataOrderWarning)
        passes(loader_over(Remembers(*NO_CHANGES[what]), workers, "own"))


def test_collate_functions_too() -> None:
    class Mixes:
        def __init__(self) -> None:
            self.before: list[Any] = []

        def __call__(self, samples: list[Any]) -> Any:
            self.before.append(samples)
            return default_collate(samples)

    with pytest.warns(DataOrderWarning, match=r"collate_fn\.before: training changes it"):
        passes(ResumableDataLoader(range(24), 4, collate_fn=Mixes()))


def test_tables_that_the_first_batch_fills_are_none() -> None:
    class Collates:
        def __init__(self) -> None:
            self.warned: dict[str, bool] = {}

        def __call__(self, samples: list[Any]) -> Any:
            self.warned["padding"] = True
            return default_collate(samples)

    with warnings.catch_warnings():
        warnings.simplefilter("error", DataOrderWarning)
        passes(ResumableDataLoader(range(24), 4, collate_fn=Collates()))


def test_what_the_dataset_has_had_is_let_go() -> None:
    class Shards(Dataset[int]):
        def __init__(self) -> None:
            self.shard = Open()
            self.seen = [weakref.ref(self.shard)]

        def __len__(self) -> int:
            return 32

        def __getitem__(self, i: int) -> int:
            if i % 8 == 0:
                self.shard = Open()
                self.seen.append(weakref.ref(self.shard))
            return i

    dataset = Shards()
    loader = ResumableDataLoader(dataset, 4)
    passes(loader)
    gc.collect()
    of_a_pass = [False, False, False, True]  # that which was there when the second one began, and the last
    assert [shard() is not None for shard in dataset.seen[1:]] == 2 * of_a_pass


def test_a_copy_looks_for_itself() -> None:
    loader = ResumableDataLoader([1.5] * 24, 4)
    list(loader)
    copied = pickle.loads(pickle.dumps(loader))
    assert next(iter(copied)).tolist() == [1.5] * 4


class Labelled(Dataset[Any]):
    """What training may change between epochs."""

    def __init__(self) -> None:
        self.labels: Any = torch.zeros(24)
        self.transform: Any = str.lower
        self.later_transform: Any = None
        self.scale = 1.0

    def __len__(self) -> int:
        return 24

    def __getitem__(self, i: int) -> float:
        return float(self.labels[i]) * self.scale


class Strong:
    def __call__(self, text: str) -> str:
        return text.upper()


def given(dataset: Labelled) -> None:
    dataset.later_transform = str.upper


LATE: dict[str, Callable[[Labelled], Any]] = {
    "labels": lambda dataset: dataset.labels.add_(1),
    "a list in place of a tensor": lambda dataset: setattr(dataset, "labels", [1.0] * 24),
    "another function as transform": lambda dataset: setattr(dataset, "transform", str.upper),
    "an object as transform": lambda dataset: setattr(dataset, "transform", Strong()),
    "later_transform, which was none": given,
    "many labels": lambda dataset: dataset.labels.add_(1),
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("what", LATE)
def test_what_changes_in_later_epochs_is_said_at_the_next_save(what: str, workers: int) -> None:
    dataset = Labelled()
    if what == "many labels":
        dataset.labels = torch.zeros(1_000_000)
    loader = ResumableDataLoader(dataset, 4, num_workers=workers)
    name = "later_transform" if "later" in what else "transform" if "transform" in what else "labels"
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataOrderWarning)
        passes(loader)
    LATE[what](dataset)
    with pytest.warns(
        DataOrderWarning, match=rf"^dataset\.{name}: training changes it, and no position has it"
    ) as said:
        passes(loader)
    assert [warning.category for warning in said if warning.category is not DeprecationWarning] == [DataOrderWarning]
    dataset.scale, dataset.later_transform = 2.0, None  # goes with the position
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataOrderWarning)
        passes(loader)


def test_an_attribute_that_takes_the_place_of_the_classs_own() -> None:
    class Transforms(Labelled):
        transform_of_all = Strong()

    dataset = Transforms()
    loader = ResumableDataLoader(dataset, 4)
    passes(loader)
    dataset.transform_of_all = Strong()
    with pytest.warns(DataOrderWarning, match=r"^dataset\.transform_of_all: training changes it"):
        loader.state_dict()


def test_nested_lists_of_samplers_are_said() -> None:
    class Buckets(Sampler[int]):
        def __init__(self) -> None:
            self.buckets = [[0, 1, 2, 3], [4, 5, 6, 7]]

        def __len__(self) -> int:
            return 8

        def __iter__(self) -> Any:
            self.buckets[0].reverse()
            return (i for bucket in self.buckets for i in bucket)

    loader = resumable(DataLoader(range(8), 4, sampler=Buckets()))
    with pytest.warns(DataOrderWarning, match=r"^sampler\.buckets: training changes it"):
        passes(loader)


def test_callables_that_are_made_anew_of_the_same_are_no_change() -> None:
    class Anew(Dataset[int]):
        def __init__(self) -> None:
            self.row, self.scaled = self.__len__, functools.partial(max, 1)

        def __len__(self) -> int:
            return 12

        def __getitem__(self, i: int) -> int:
            self.row, self.scaled = self.__len__, functools.partial(max, 1)
            return i

    dataset = Anew()
    loader = ResumableDataLoader(dataset, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataOrderWarning)
        for _ in loader:
            loader.state_dict()
    next(iter(loader))
    dataset.__class__.__getitem__ = lambda self, i: i  # type: ignore[method-assign]
    dataset.scaled = functools.partial(max, 2)
    with pytest.warns(DataOrderWarning, match=r"dataset\.scaled: training changes it"):
        loader.state_dict()


def test_what_a_dataset_is_given_after_the_loader_was_made_is_followed_too():
    class Level:
        value = 0

    def made():
        dataset = Levels()
        loader = ResumableDataLoader(dataset, 4)
        dataset.level = Level()
        dataset.level.value = 1
        return dataset, loader

    class Levels(Dataset):
        level = None

        def __len__(self):
            return 12

        def __getitem__(self, i):
            return i * self.level.value

    dataset, loader = made()
    list(loader)
    dataset.level.value = 7
    state = loader.state_dict()
    resumed_dataset, resumed = made()
    resumed.load_state_dict(state)
    assert resumed_dataset.level.value == 7


class Noise:
    """A transform that training makes stronger."""

    def __init__(self) -> None:
        self.by = 0.0

    def __call__(self, x: float) -> float:
        return x + self.by


class Composed(Labelled):
    def __init__(self) -> None:
        super().__init__()
        self.transforms: Any = [Noise(), Noise()]
        self.named: Any = {"first": self.transforms[0], "last": len}


def test_a_list_of_transforms_that_change_in_what_the_position_has_is_no_change() -> None:
    dataset = Composed()
    loader = ResumableDataLoader(dataset, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataOrderWarning)
        passes(loader)
        dataset.transforms[0].by = 0.5
        passes(loader)


CHANGED_LISTS: dict[str, tuple[str, Callable[[Composed], Any]]] = {
    "another": ("transforms", lambda dataset: dataset.transforms.append(Noise())),
    "another kind": ("transforms", lambda dataset: dataset.transforms.__setitem__(0, Strong())),
    "another name": ("named", lambda dataset: dataset.named.update(second=dataset.named.pop("first"))),
    "a list of its own": ("transforms.0.seen", lambda dataset: dataset.transforms[0].seen.append(1)),
}


@pytest.mark.parametrize("what", CHANGED_LISTS)
def test_a_list_of_transforms_that_changes_itself_is_said(what: str) -> None:
    name, change = CHANGED_LISTS[what]
    dataset = Composed()
    dataset.transforms[0].seen = []
    loader = ResumableDataLoader(dataset, 4)
    passes(loader)
    change(dataset)
    with pytest.warns(DataOrderWarning, match=rf"^dataset\.{name}(, dataset.*)?: training changes it") as said:
        passes(loader)
    assert len(said) == 1


@pytest.mark.parametrize("how", ["around", "default"])
def test_a_list_that_a_transform_keeps_beside_itself_is_said(how: str) -> None:
    def make(levels: list[float]) -> Callable[[float], float]:
        def shift(x: float) -> float:
            levels[0] += 0.5
            return x + levels[0]

        def shift_by_default(x: float, levels: list[float] = levels) -> float:
            levels[0] += 0.5
            return x + levels[0]

        return shift if how == "around" else shift_by_default

    class Transformed(Labelled):
        def __getitem__(self, i: int) -> float:
            return float(self.transform(float(i)))

    dataset = Transformed()
    dataset.transform = make([0.0])
    loader = ResumableDataLoader(dataset, 4)
    name = "levels" if how == "around" else "default 0"
    with pytest.warns(DataOrderWarning, match=rf"^dataset\.transform\.{name}: training changes it") as said:
        passes(loader)
    assert len(said) == 1
