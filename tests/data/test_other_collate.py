"""Another ``collate_fn`` that training gives a loader: mixup that is switched off for the last epochs."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate

from neuromanifold_gpt import ResumableDataLoader, resumable
from neuromanifold_gpt.data.errors import DataOrderWarning

SIZE = 10


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(SIZE))


def doubled(samples: Any) -> Any:
    return torch.as_tensor(samples) * 2


class Doubles:
    """Counts the batches that it has made."""

    def __init__(self, count: int = 0) -> None:
        self.count = count

    def __call__(self, samples: Any) -> Any:
        self.count += 1
        return torch.as_tensor(samples) * self.count

    def collate(self, samples: Any) -> Any:
        return self(samples)


LOADERS: dict[str, Callable[..., Any]] = {
    "own": lambda **options: ResumableDataLoader(range(SIZE), 4, **options),
    "wrapped": lambda **options: resumable(DataLoader(range(SIZE), 4, **options)),
    "single samples": lambda **options: resumable(DataLoader(range(SIZE), batch_size=None, **options)),
    "stream": lambda **options: resumable(DataLoader(Stream(), 4, **options)),
}
STOCK: dict[str, Callable[..., Any]] = {
    "own": lambda **options: DataLoader(range(SIZE), 4, **options),
    "wrapped": lambda **options: DataLoader(range(SIZE), 4, **options),
    "single samples": lambda **options: DataLoader(range(SIZE), batch_size=None, **options),
    "stream": lambda **options: DataLoader(Stream(), 4, **options),
}


def taken(loader: Any, **options: Any) -> list[Any]:
    """Batches of four epochs, in the second and behind the third of which another function is set."""
    batches = []
    first = loader.collate_fn
    for epoch in range(4):
        for number, batch in enumerate(loader):
            batches.append(str(batch))
            if (epoch, number) == (1, 0):
                loader.collate_fn = doubled
        if epoch == 2:
            loader.collate_fn = first
    return batches


@pytest.mark.parametrize(
    "options",
    [{}, {"num_workers": 1}, {"num_workers": 1, "persistent_workers": True}],
    ids=["here", "a worker", "a worker that stays"],
)
@pytest.mark.parametrize("kind", LOADERS)
def test_collates_from_the_next_pass_on_as_with_a_stock_loader(kind: str, options: dict[str, Any]) -> None:
    if kind == "stream" and "persistent_workers" in options:
        pytest.skip("its workers are started anew for each epoch")
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataOrderWarning)
        assert taken(LOADERS[kind](**options)) == taken(STOCK[kind](**options))


@pytest.mark.parametrize("kind", LOADERS)
def test_is_said_at_the_save_with_both_names(kind: str) -> None:
    loader = LOADERS[kind](collate_fn=Doubles().collate)
    list(loader)
    loader.collate_fn = default_collate
    with pytest.warns(
        DataOrderWarning,
        match=r"^collate_fn was .*test_other_collate\.Doubles\.collate and is .*\.default_collate: training has set",
    ):
        loader.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader.state_dict()  # said once


@pytest.mark.parametrize("kind", LOADERS)
def test_is_not_said_where_it_is_the_same_or_was_set_before_training(kind: str) -> None:
    loader = LOADERS[kind](collate_fn=default_collate)
    doubles = Doubles()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader.collate_fn = doubles.collate
        list(loader)
        loader.collate_fn = doubles.collate  # methods are made anew each time they are asked for
        loader.state_dict()
        loader.collate_fn = default_collate
        loader.collate_fn = doubles.collate
        loader.state_dict()


def test_names_what_a_partial_function_calls() -> None:
    loader = ResumableDataLoader(range(SIZE), 4, collate_fn=functools.partial(default_collate))
    list(loader)
    loader.collate_fn = Doubles()
    with pytest.warns(DataOrderWarning, match=r"was .*\.default_collate and is .*\.Doubles: training"):
        loader.state_dict()


@pytest.mark.parametrize("kind", ["own", "wrapped", "stream"])
def test_what_the_other_function_changes_in_itself_goes_with_the_position(kind: str) -> None:
    def counting(loader: Any) -> Doubles:
        doubles = Doubles(5)
        loader.collate_fn = doubles
        return doubles

    loader = LOADERS[kind](collate_fn=Doubles())
    list(loader)
    doubles = counting(loader)
    batches = iter(loader)
    next(batches)
    with pytest.warns(DataOrderWarning, match="training has set another function"):
        state = loader.state_dict()
    resumed = LOADERS[kind](collate_fn=Doubles())
    again = counting(resumed)  # by the epoch, say
    resumed.load_state_dict(state)
    assert [batch.tolist() for batch in resumed] == [batch.tolist() for batch in batches]
    assert again.count == doubles.count
