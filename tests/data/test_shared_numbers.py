"""Numbers that a dataset, a ``collate_fn`` or a sampler shares with its workers: ``multiprocessing.Value``."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, default_collate, get_worker_info

from neuromanifold_gpt import ResumableDataLoader, resumable
from neuromanifold_gpt.data.errors import DataOrderWarning

SIZE = 12


class Leveled(Dataset[float]):
    """Samples depend on what the main process sets; as in a sequence-length warm-up."""

    def __init__(self) -> None:
        self.level = multiprocessing.Value("d", 0.5)

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, i: int) -> float:
        return i + 100 * self.level.value


class WithoutLock(Leveled):
    def __init__(self) -> None:
        self.level = multiprocessing.Value("i", 0, lock=False)  # type: ignore[assignment]


class Counted:
    """As the mask collator of I-JEPA."""

    def __init__(self) -> None:
        self.level = multiprocessing.Value("i", -1)

    def __call__(self, samples: list[Any]) -> Any:
        with self.level.get_lock():
            self.level.value += 1
        return default_collate(samples) + 100 * self.level.value


class Begins(Sampler[int]):
    def __init__(self) -> None:
        self.level = multiprocessing.Value("i", 0)

    def __len__(self) -> int:
        return SIZE

    def __iter__(self) -> Iterator[int]:
        first = self.level.value
        return iter([(first + i) % SIZE for i in range(SIZE)])


class Shards(IterableDataset[float]):
    """As the streams of open_clip, whose epoch is shared."""

    def __init__(self) -> None:
        self.level = multiprocessing.Value("i", 0)

    def __iter__(self) -> Iterator[float]:
        info = get_worker_info()
        level = self.level.value
        return iter([i + 100 * level for i in range(info.id if info else 0, SIZE, info.num_workers if info else 1)])


def of(part: Any, **options: Any) -> tuple[Any, Any]:
    if isinstance(part, IterableDataset):
        return part, resumable(DataLoader(part, 2, **options))
    if isinstance(part, Dataset):
        return part, ResumableDataLoader(part, 2, **options)
    if isinstance(part, Sampler):
        return part, resumable(DataLoader(range(SIZE), 2, sampler=part, **options))
    return part, ResumableDataLoader(range(SIZE), 2, collate_fn=part, **options)


def taken(part: Any, loader: Any, change: Callable[[Any, int], None] | None, batches: list[Any], states: Any) -> None:
    while len(batches) < 15:
        for batch in loader:
            batches.append(batch.tolist())
            if change is not None:
                change(part, len(batches))
            states.append(loader.state_dict())
            if len(batches) == 15:
                return


def set_each_step(part: Any, step: int) -> None:
    part.level.value = step // 2


def set_between_epochs(part: Any, step: int) -> None:
    if step % 6 == 0:
        part.level.value = step // 6


@pytest.mark.filterwarnings("ignore:nothing is left of epoch")
@pytest.mark.filterwarnings("ignore:Shards has no state_dict")
@pytest.mark.parametrize(
    ("make", "change", "options"),
    [
        (Leveled, set_each_step, {}),
        (WithoutLock, set_each_step, {}),
        (Counted, None, {}),
        (Begins, set_between_epochs, {}),
        (Leveled, set_between_epochs, {"num_workers": 2}),
        (Leveled, set_between_epochs, {"num_workers": 2, "persistent_workers": True}),
        (Begins, set_each_step, {"num_workers": 1}),
        (Shards, set_between_epochs, {}),
        (Shards, set_between_epochs, {"num_workers": 2}),
    ],
)
def test_go_with_the_position(make: Any, change: Any, options: dict[str, Any]) -> None:
    batches: list[Any] = []
    states: list[Any] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataOrderWarning)
        taken(*of(make(), **options), change, batches, states)
        for step in range(1, 15) if not options else (3, 6, 8, 12, 13):
            part, loader = of(make(), **options)
            loader.load_state_dict(states[step - 1])
            resumed, later = batches[:step], []
            taken(part, loader, change, resumed, later)
            assert resumed == batches, f"after {step} batches"
            assert str(later) == str(states[step:]), f"after {step} batches"


@pytest.mark.parametrize("make", [Counted, Leveled])
def test_that_change_while_workers_fetch_ahead_are_said_once(make: Any) -> None:
    part, loader = of(make(), num_workers=1)
    name = "collate_fn" if make is Counted else "dataset"
    batches = iter(loader)
    next(batches)
    part.level.value += 1
    with pytest.warns(DataOrderWarning, match=rf"^{name}\.level\.value changes while workers, with which it is shared"):
        loader.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        next(batches)
        loader.state_dict()


def test_what_workers_have_counted_is_complete_at_the_end_of_an_epoch() -> None:
    _, loader = of(Counted(), num_workers=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batches = [batch.tolist() for batch in loader]
        state = loader.state_dict()
    batches += [batch.tolist() for batch in loader]
    again, resumed = of(Counted(), num_workers=1)
    resumed.load_state_dict(state)
    assert again.level.value == 5
    assert [batch.tolist() for batch in resumed] == batches[6:]


def test_are_read_where_a_worker_that_has_died_holds_the_lock() -> None:
    part, loader = of(Leveled())
    next(iter(loader))
    part.level.value = 3
    held = multiprocessing.Process(target=part.level.get_lock().acquire)
    held.start()
    held.join()
    state = loader.state_dict()
    assert state["values"] == {"dataset.level.value": 3.0}
    again, resumed = of(Leveled())
    resumed.load_state_dict(state)
    assert again.level.value == 3.0


@pytest.mark.parametrize("lock", [True, False])
def test_arrays_that_change_are_said(lock: bool) -> None:
    dataset = Leveled()
    dataset.losses = multiprocessing.Array("d", SIZE, lock=lock)  # type: ignore[attr-defined]
    _, loader = of(dataset)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        next(iter(loader))
        loader.state_dict()
    dataset.losses[2] = 0.5  # type: ignore[attr-defined]
    with pytest.warns(DataOrderWarning, match=r"^dataset\.losses: training changes it"):
        loader.state_dict()
