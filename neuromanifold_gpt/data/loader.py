"""A ``DataLoader`` whose position and order survive a resume."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, default_collate

from neuromanifold_gpt.data.errors import DatasetError
from neuromanifold_gpt.data.order import permuted
from neuromanifold_gpt.data.ordered_loader import OrderedLoader
from neuromanifold_gpt.data.position import Position, Progress, Steps, nothing_left
from neuromanifold_gpt.data.sample_seeds import SampleKey
from neuromanifold_gpt.data.shown_samplers import ShownOrder
from neuromanifold_gpt.state.owned_state import OwnedState
from neuromanifold_gpt.state.rng import rank_and_world_size

_REMEDY = (
    "Make another loader, or one whose sampler and batch sampler can be set: resumable(DataLoader(dataset, batch_size, "
    "shuffle=True))."
)


class ResumableDataLoader(OrderedLoader):
    """A ``DataLoader`` over a map-style dataset that continues with the next sample after a resume.

    The order is a pure function of (seed, epoch), the position a number of samples: resuming costs nothing however
    far the epoch has come, with any number of workers. Batches that workers have prefetched do not count until they are
    handed out. A sample's randomness is a function of (seed, epoch, sample id), also where the dataset or its
    transforms own a generator; drawing it, and creating an iterator, leaves the global generators alone.

    Each pass over the loader is one epoch, and the next pass the next epoch. A pass that was left early starts over
    in the next one, unless :meth:`load_state_dict` or :meth:`set_epoch` says otherwise.

    With ``torch.distributed``, a batch of ``batch_size * world_size`` consecutive samples is shared out, so that the
    order of samples does not depend on the number of ranks. A last batch that is short is filled up from the epoch's
    beginning to a multiple of the ranks.

    For a loader with a sampler of your own, or a stream, see :func:`resumable`.

    Args:
        dataset: map-style: ``len()`` and indexing. Its ``__getitems__`` is used where it has one and
            ``seed_samples=False``.
        batch_size: samples per batch and rank.
        shuffle: a new permutation each epoch.
        seed: of the order and of the samples' randomness.
        drop_last: leave out a last batch that is short.
        seed_samples: ``False`` if neither the dataset nor ``collate_fn`` draws random numbers; it saves some 50 µs a
            sample.
        num_workers, collate_fn, options: as for ``DataLoader``; ``sampler``, ``batch_sampler`` and ``generator`` are
            the loader's own.

    Raises:
        DatasetError: an argument cannot be used; the message says which and why.

    Example:
        >>> loader = ResumableDataLoader(list(range(10)), batch_size=4, shuffle=True, seed=1)
        >>> first = next(iter(loader))
        >>> resumed = ResumableDataLoader(list(range(10)), batch_size=4, shuffle=True, seed=1)
        >>> resumed.load_state_dict(loader.state_dict())
        >>> sorted(id for batch in [first, *resumed] for id in batch.tolist())
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        seed_samples: bool = True,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        **options: Any,
    ) -> None:
        _check_arguments(dataset, batch_size, options)
        seed = operator.index(seed)  # numpy's integers could not be saved
        super().__init__(
            dataset,
            _PermutedOrder(dataset, batch_size, shuffle, seed, drop_last),
            batch_size=batch_size,
            seed_samples=seed_samples,
            num_workers=num_workers,
            collate_fn=collate_fn or default_collate,
            **options,
        )

    @property
    def samples_consumed(self) -> int:
        """Samples of the epoch that were handed out, on all ranks."""
        return self._position.order.consumed(self._position.progress)


class _PermutedOrder:
    """Any position of a permutation, evaluated where it is wanted."""

    def __init__(self, dataset: Any, batch_size: int, shuffle: bool, seed: int, drop_last: bool) -> None:
        self.source = None
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self._dataset = dataset
        self._samples_per_rank = batch_size

    @property
    def size(self) -> int:
        return len(self._dataset)

    def steps(self, progress: Progress | None = None) -> Steps:
        return Steps(self._samples_per_rank * rank_and_world_size()[1], self.drop_last)

    def consumed(self, progress: Progress) -> int:
        return int(progress["samples_consumed"])

    def is_over(self, progress: Progress) -> bool:
        return nothing_left(self, progress)

    def beginning(self) -> Progress:
        return {"samples_consumed": 0}

    def begin_again(self, progress: Progress) -> Progress:
        return self.beginning()

    def saved(self, progress: Progress) -> Progress:
        return progress

    def leave(self, epoch: int, progress: Progress) -> None:
        """Nothing is left behind."""

    @property
    def differs_by_epoch(self) -> bool:
        return self.shuffle

    def shown_samplers(self, position: Position) -> dict[str, Any]:
        sampler = ShownOrder(position, _REMEDY, self._samples_of_rank)
        shown = {"sampler": sampler, "batch_size": self._samples_per_rank, "drop_last": self.drop_last}
        return {"sampler": sampler, "batch_sampler": ShownOrder(position, _REMEDY, self._batches, **shown)}

    def _batches(self) -> int:
        return self.steps().per_epoch(self.size)

    def _samples_of_rank(self) -> int:
        size, (step, drop_last), world_size = self.size, self.steps(), rank_and_world_size()[1]
        return (size - size % step if drop_last else size + -size % world_size) // world_size

    def owned(self) -> list[OwnedState]:
        return []

    def description(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "shuffle": self.shuffle,
            "dataset_size": self.size,
            "batch_size": self._samples_per_rank,
            "drop_last": self.drop_last,
        }

    def adopt(self, state: dict[str, Any]) -> list[str]:
        return [
            f"{key} was {state[key]} and is {value}" for key, value in self.description().items() if state[key] != value
        ]

    def batches(self, epoch: int, progress: Progress) -> Iterator[tuple[list[SampleKey], Progress]]:
        size, (step, drop_last) = self.size, self.steps()
        rank, world_size = rank_and_world_size()
        for start in range(self.consumed(progress), size, step):
            stop = min(start + step, size)
            if stop - start < step and drop_last:
                return
            padded = stop + -(stop - start) % world_size
            share = (padded - start) // world_size
            positions = np.arange(start + rank * share, start + (rank + 1) * share, dtype=np.int64) % size
            ids = permuted(positions, size, self.seed, epoch) if self.shuffle else positions
            yield [(self.seed, epoch, sample_id, sample_id) for sample_id in ids.tolist()], {"samples_consumed": stop}


def _check_arguments(dataset: Any, batch_size: int, options: dict[str, Any]) -> None:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DatasetError(
            f"ResumableDataLoader needs a map-style dataset with len() and indexing, found {type(dataset).__name__}: "
            "a stream has no position to go to. Wrap its DataLoader: resumable(DataLoader(stream, ...))."
        )
    if len(dataset) == 0:
        raise DatasetError("the dataset has no samples: expected at least one. Check where it reads from.")
    if type(batch_size) is not int or batch_size < 1:
        raise DatasetError(f"batch_size: expected a positive integer, found {batch_size!r}.")
    taken = {"sampler", "batch_sampler", "generator"} & set(options)
    if taken:
        raise DatasetError(
            f"{', '.join(sorted(taken))}: the order belongs to ResumableDataLoader. Use shuffle and seed, or wrap a "
            "DataLoader that has them: resumable(DataLoader(...))."
        )
    if not options.get("in_order", True):
        raise DatasetError("in_order: expected True, found False: the order would depend on how fast workers are.")
