"""What training sets in datasets, transforms and collate functions as it goes on, counts after a resume."""

from __future__ import annotations

import enum
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from neuromanifold_gpt import ResumableDataLoader, latest_checkpoint, load_checkpoint, resumable, save_checkpoint
from neuromanifold_gpt.data.errors import DataOrderWarning


class Level(enum.Enum):
    EASY = 0
    HARD = 3


class Order(enum.IntFlag):
    UP = 1
    DOWN = 2


class Metres(float):
    """A user's own kind of number."""


class Numbers(Dataset[float]):
    """Samples depend on ``level``, which no instance has at the beginning."""

    level: Any = 0

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> float:
        return i + float(getattr(self.level, "value", self.level))

    def set_level(self, level: Any) -> None:
        self.level = level

    def shown(self) -> Any:
        return self.level


class Slotted:
    __slots__ = ("level",)

    def __init__(self) -> None:
        self.level: Any = 0

    __len__, __getitem__, shown = Numbers.__len__, Numbers.__getitem__, Numbers.shown  # type: ignore[assignment]
    set_level = Numbers.set_level  # type: ignore[assignment]


class Shift(nn.Module):
    """As a transform of torchvision."""

    def __init__(self) -> None:
        super().__init__()
        self.by: Any = 0

    def forward(self, x: Any) -> Any:
        return x + float(self.by)


class Transformed(Numbers):
    def __init__(self, transform: Any, owner: Any) -> None:
        self.transform, self.owner = transform, owner

    def __getitem__(self, i: int) -> float:
        return float(self.transform(i))

    def set_level(self, level: Any) -> None:
        self.owner.by = level

    def shown(self) -> Any:
        return self.owner.by


def by_module() -> Transformed:
    shift = Shift()
    return Transformed(nn.Sequential(shift, nn.Identity()), shift)


def by_list() -> Transformed:
    shift = SimpleNamespace(by=0)
    dataset = Transformed(lambda x: x + dataset.transforms[1].by, shift)
    dataset.transforms = [str, shift]  # type: ignore[attr-defined]
    return dataset


def by_closure() -> Transformed:
    def make() -> Any:
        level: Any = 0

        def shift(x: Any) -> Any:
            return x + float(level)

        def set_level(value: Any) -> None:
            nonlocal level
            level = value

        return shift, set_level, lambda: level

    shift, set_level, shown = make()
    made = Transformed(shift, set_level)
    made.set_level = set_level  # type: ignore[method-assign]
    made.shown = shown  # type: ignore[method-assign]
    return made


DATASETS: dict[str, Callable[[], Any]] = {
    "an attribute of the class": Numbers,
    "a slot": Slotted,
    "a module in a module": by_module,
    "an object in a list": by_list,
    "a variable of the function around": by_closure,
}
LEVELS: dict[str, Any] = {
    "a number": 2,
    "float32": np.float32(0.1),
    "float64": np.mean([0.1, 0.3]),
    "an index": np.argmax([0, 5]),
    "a flag of NumPy": np.bool_(True),
    "a tensor": torch.tensor(0.7) + 0.1,
    "a member": Level.HARD,
    "flags": Order.UP | Order.DOWN,
}
LOADERS: dict[str, Callable[..., Any]] = {
    "own": ResumableDataLoader,
    "wrapped": lambda dataset, batch_size, **options: resumable(DataLoader(dataset, batch_size, **options)),
}


def resumed(tmp_path: Path, make: Callable[[], Any], level: Any, loader: Callable[..., Any], workers: int) -> Any:
    """The dataset, and a pass over it, of a process that resumes behind an epoch after which ``level`` was set."""
    dataset = make()
    loaded = loader(dataset, 4, num_workers=workers)
    model = nn.Linear(1, 1)
    list(loaded)
    dataset.set_level(level)
    batches = iter(loaded)
    next(batches)
    save_checkpoint(tmp_path, step=4, model=model, loaders=loaded)
    rest = [batch.tolist() for batch in batches]
    again = make()
    loaded = loader(again, 4, num_workers=workers)
    load_checkpoint(latest_checkpoint(tmp_path)).restore(model=model, loaders=loaded)
    return again, rest, [batch.tolist() for batch in loaded]


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_number_that_is_set_between_epochs(tmp_path: Path, dataset: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, rest, rest_again = resumed(tmp_path, DATASETS[dataset], 2, ResumableDataLoader, 0)
    assert rest == rest_again == [[6.0, 7.0, 8.0, 9.0], [10.0, 11.0, 12.0, 13.0]]
    assert again.shown() == 2


@pytest.mark.parametrize("loader", LOADERS)
def test_what_workers_were_started_with(tmp_path: Path, loader: str) -> None:
    again, rest, rest_again = resumed(tmp_path, Numbers, 2, LOADERS[loader], 1)
    assert rest == rest_again == [[6.0, 7.0, 8.0, 9.0], [10.0, 11.0, 12.0, 13.0]]
    assert again.level == 2


@pytest.mark.parametrize("level", LEVELS)
def test_of_any_type(tmp_path: Path, level: str) -> None:
    again, rest, rest_again = resumed(tmp_path, Numbers, LEVELS[level], ResumableDataLoader, 0)
    assert rest == rest_again
    assert type(again.level) is type(LEVELS[level])
    assert again.level == LEVELS[level]


def test_a_users_own_kind_of_number_is_the_number_again(tmp_path: Path) -> None:
    again, rest, rest_again = resumed(tmp_path, Numbers, Metres(2.5), ResumableDataLoader, 0)
    assert rest == rest_again
    assert again.level == 2.5


@pytest.mark.parametrize("kind", [list, tuple])
def test_numbers_of_numpy_in_lists_of_samplers(tmp_path: Path, kind: Any) -> None:
    class Given(Sampler[int]):
        def __init__(self) -> None:
            self.order: Any = kind(np.arange(12))
            self.weights: Any = kind([0.5, np.float32(1)])

        def __len__(self) -> int:
            return 12

        def __iter__(self) -> Any:
            return iter(self.order)

    def made() -> Any:
        sampler = Given()
        return sampler, resumable(DataLoader(range(12), 4, sampler=sampler))

    sampler, loader = made()
    model = nn.Linear(1, 1)
    list(loader)
    sampler.order, sampler.weights = sampler.order[::-1], kind([np.float64(0.25), np.float32(2)])
    next(iter(loader))
    save_checkpoint(tmp_path, step=4, model=model, loaders=loader)
    again, loader = made()
    load_checkpoint(latest_checkpoint(tmp_path)).restore(model=model, loaders=loader)
    assert (again.order, again.weights) == (sampler.order, sampler.weights)
    for before, now in ((sampler.order, again.order), (sampler.weights, again.weights)):
        assert (type(now), [*map(type, now)]) == (type(before), [*map(type, before)])
    assert [batch.tolist() for batch in loader] == [[7, 6, 5, 4], [3, 2, 1, 0]]


def counting() -> Callable[[list[Any]], Any]:
    count = 0

    def collate(samples: list[Any]) -> Any:
        nonlocal count
        count += 1
        return default_collate(samples) * count

    return collate


def test_a_count_around_a_collate_function() -> None:
    loader = ResumableDataLoader(range(12), 4, collate_fn=counting())
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    again = ResumableDataLoader(range(12), 4, collate_fn=counting())
    again.load_state_dict(state)
    assert [batch.tolist() for batch in again] == [batch.tolist() for batch in batches]


def test_a_variable_that_the_program_counts_itself_is_its_own() -> None:
    step = 0
    loader = ResumableDataLoader(range(12), 4, collate_fn=lambda samples: (default_collate(samples), step))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in loader:
            step += 1
            state = loader.state_dict()
    step = 10
    loader.load_state_dict(state)
    assert step == 10


def test_a_module_that_is_trained_is_left_alone() -> None:
    class Encoded(Numbers):
        def __init__(self) -> None:
            self.encoder = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.1))

    dataset = Encoded()
    loader = ResumableDataLoader(dataset, 4)
    list(loader)
    state = loader.state_dict()
    dataset.encoder[1].p = 0.5  # type: ignore[assignment]
    loader.load_state_dict(state)
    assert dataset.encoder[1].p == 0.5


def test_what_a_buffer_of_a_transform_holds_is_said() -> None:
    class Normalized(Shift):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(3))

    shift = Normalized()
    loader = ResumableDataLoader(Transformed(shift, shift), 4)
    next(iter(loader))
    shift.mean += 1
    with pytest.warns(DataOrderWarning, match=r"^dataset\.transform\._buffers: training changes it"):
        loader.state_dict()


def test_going_back_in_the_same_process() -> None:
    dataset = Numbers()
    loader = ResumableDataLoader(dataset, 4)
    state = loader.state_dict()
    dataset.level = 2
    list(loader)
    loader.load_state_dict(state)
    assert dataset.level == 0


def test_a_tensor_of_no_dimension_is_filled_only_if_it_is_no_part_of_another() -> None:
    table = torch.arange(3.0)
    alone = torch.tensor(1.0)

    class Holds(Numbers):
        def __init__(self, scale: Any, kept: Any) -> None:
            self.scale, self.kept = scale, kept

    dataset = Holds(table[1], alone)
    loader = ResumableDataLoader(dataset, 4)
    state = {**loader.state_dict(), "values": {"dataset.scale": torch.tensor(7.0), "dataset.kept": torch.tensor(8.0)}}
    loader.load_state_dict(state)
    assert (dataset.scale.item(), table.tolist()) == (7.0, [0.0, 1.0, 2.0])
    assert dataset.kept is alone
    assert alone.item() == 8.0


def test_what_the_standard_library_remembers_in_slots_is_not_followed() -> None:
    dataset = Numbers()
    dataset.root = Path("data")  # type: ignore[attr-defined]
    loader = ResumableDataLoader(dataset, 4)
    hash(dataset.root)  # type: ignore[attr-defined]
    str(dataset.root)  # type: ignore[attr-defined]
    list(loader)
    assert "values" not in loader.state_dict()


class DrawsNegatives(Numbers):
    """For each epoch; they are in its state, which the program saves."""

    def __init__(self) -> None:
        self.negatives = [0.0] * 12

    def draw(self) -> None:
        self.negatives = torch.rand(12).tolist()

    def __getitem__(self, i: int) -> float:
        return i + self.negatives[i]

    def state_dict(self) -> dict[str, Any]:
        return {"negatives": self.negatives}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.negatives = list(state["negatives"])


@pytest.mark.parametrize("is_saved", [True, False])
def test_a_dataset_whose_own_state_is_saved_is_not_said(is_saved: bool, tmp_path: Path) -> None:
    dataset, model = DrawsNegatives(), nn.Linear(1, 1)
    loader = ResumableDataLoader(dataset, batch_size=4, shuffle=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for epoch in range(2):
            dataset.draw()
            for batch, _ in enumerate(loader):
                stateful: Any = {"dataset": dataset} if is_saved else {}
                save_checkpoint(tmp_path, step=3 * epoch + batch, model=model, loaders=loader, stateful=stateful)
    said = [str(warning.message) for warning in caught if warning.category is DataOrderWarning]
    assert [text.partition(":")[0] for text in said] == ([] if is_saved else ["dataset.negatives"])


class HardNegatives(Numbers):
    """By sample, as training finds them; samples draw, so what they remember may be drawn too."""

    def __init__(self) -> None:
        self.hard: dict[int, float] = {}

    def __getitem__(self, i: int) -> float:
        return i + self.hard.get(i, float(torch.rand(())))


def test_an_empty_dict_that_the_loop_fills_is_said(tmp_path: Path) -> None:
    dataset, model = HardNegatives(), nn.Linear(1, 1)
    loader = ResumableDataLoader(dataset, batch_size=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step, batch in enumerate(loader):
            save_checkpoint(tmp_path, step=step, model=model, loaders=loader)
            dataset.hard[step] = float(batch[0])
    said = [str(warning.message) for warning in caught if warning.category is DataOrderWarning]
    assert [text.partition(":")[0] for text in said] == ["dataset.hard"]
