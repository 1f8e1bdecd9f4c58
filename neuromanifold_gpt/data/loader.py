"""A ``DataLoader`` whose position and order survive a resume."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch
import torch.distributed
from torch.utils.data import DataLoader, IterableDataset, default_collate
from torch.utils.data.distributed import DistributedSampler

from neuromanifold_gpt.data.errors import DatasetError
from neuromanifold_gpt.data.order import permuted
from neuromanifold_gpt.data.sample_seeds import SampleKey, SeededCollate, SeededSamples


class DataOrderWarning(UserWarning):
    """The data continues at the saved position, but not in the saved order."""


class ResumableDataLoader(DataLoader[Any]):
    """A ``DataLoader`` over a map-style dataset that continues with the next sample after a resume.

    The order is a pure function of (seed, epoch), the position a number of samples: resuming costs nothing however
    far the epoch has come, with any number of workers. Batches that workers have prefetched do not count until they are
    handed out. A sample's randomness is a function of (seed, epoch, sample id); drawing it, and creating an iterator,
    leaves the global generators alone.

    Each pass over the loader is one epoch, and the next pass the next epoch. A pass that was left early starts over
    in the next one, unless :meth:`load_state_dict` or :meth:`set_epoch` says otherwise.

    With ``torch.distributed``, a batch of ``batch_size * world_size`` consecutive samples is shared out, so that the
    order of samples does not depend on the number of ranks. A last batch that is short is filled up from the epoch's
    beginning to a multiple of the ranks.

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
        self._batches = _Batches(dataset, batch_size, shuffle, seed, drop_last)
        collate = collate_fn or default_collate
        super().__init__(
            SeededSamples(dataset, seed, seed_samples),
            batch_sampler=self._batches,
            num_workers=num_workers,
            collate_fn=cast(Any, SeededCollate(collate) if seed_samples else collate),
            generator=torch.Generator().manual_seed(seed & 0x7FFFFFFFFFFFFFFF),  # iterators draw their seed from it
            **options,
        )
        # DataLoader guards its attributes after construction. Lightning calls sampler.set_epoch, and would replace a
        # sampler that it does not take for a distributed one.
        object.__setattr__(self, "sampler", _EpochSetter(self._batches))

    @property
    def seed(self) -> int:
        """Seed of the order and of the samples' randomness."""
        return self._batches.seed

    @property
    def epoch(self) -> int:
        """The epoch of the last batch that was handed out, or where the next pass begins if it was set since."""
        return self._batches.epoch

    @property
    def samples_consumed(self) -> int:
        """Samples of the epoch that were handed out, on all ranks."""
        return self._batches.samples_consumed

    def __len__(self) -> int:
        """Batches of a whole epoch, wherever it is continued."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: nothing here happens before the first batch is asked for, so iterators that are only created
        # (Lightning makes several) do not use up the position to continue from.
        position = self._batches
        position.begin_pass()
        moves, epoch, consumed = position.moves, position.epoch, position.samples_consumed
        for batch in super().__iter__():
            # Counted as it is handed out: what workers have prefetched is not consumed.
            consumed = min(consumed + position.global_batch_size, position.size)
            if position.moves == moves:  # else the position was set meanwhile, and this pass has no say in it
                position.epoch, position.samples_consumed = epoch, consumed
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch; the epoch that is under way goes on, one that is over starts again.

        A pass over another epoch may be finished, but its batches no longer count.
        """
        self._batches.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The position behind the last batch that was handed out."""
        batches = self._batches
        position = (batches.epoch + 1, 0) if batches.is_at_end else (batches.epoch, batches.samples_consumed)
        return {
            "epoch": position[0],
            "samples_consumed": position[1],
            "seed": batches.seed,
            "shuffle": batches.shuffle,
            "dataset_size": batches.size,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a position; the next pass begins there, and a pass under way no longer counts.

        Warns:
            DataOrderWarning: seed, shuffling or the number of samples differ, so the order is another one.
        """
        own = self.state_dict()
        changed = [
            f"{key} was {state_dict[key]} and is {own[key]}"
            for key in ("seed", "shuffle", "dataset_size")
            if state_dict[key] != own[key]
        ]
        if changed:
            warnings.warn(
                f"the data goes on after sample {state_dict['samples_consumed']} of epoch "
                f"{state_dict['epoch']}, but in another order: {', '.join(changed)}.",
                DataOrderWarning,
                stacklevel=2,
            )
        self._batches.go_to(state_dict["epoch"], state_dict["samples_consumed"], continue_pass=True)

    def batches_of_sample_ids(self) -> Iterator[list[int]]:
        """Sample ids of this rank's batches, from the current position to the end of the epoch."""
        for keys in self._batches:
            yield [sample_id for _, sample_id in keys]


class _Batches:
    """The batch sampler, and the position in the data. Its keys carry the epoch to workers that outlive it.

    It does not refer to the loader: a cycle would leave loader and workers to the garbage collector, which takes them
    apart in any order, and torch then waits five seconds for each worker that can no longer be told to end.
    """

    def __init__(self, dataset: Any, batch_size: int, shuffle: bool, seed: int, drop_last: bool) -> None:
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self.samples_consumed = 0
        self.moves = 0  # how often the position was set rather than reached
        self._dataset = dataset
        self._samples_per_rank = batch_size
        self._leave_out_short_batch = drop_last
        self._continue_pass = False

    @property
    def size(self) -> int:
        return len(self._dataset)

    @property
    def global_batch_size(self) -> int:
        return self._samples_per_rank * _rank_and_world_size()[1]

    @property
    def is_at_end(self) -> bool:
        needed = self.global_batch_size if self._leave_out_short_batch else 1
        return self.size - self.samples_consumed < needed

    def go_to(self, epoch: int, samples_consumed: int, *, continue_pass: bool) -> None:
        self.epoch, self.samples_consumed, self._continue_pass = epoch, samples_consumed, continue_pass
        self.moves += 1

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch or self.is_at_end:
            self.go_to(epoch, 0, continue_pass=False)

    def begin_pass(self) -> None:
        if self.is_at_end:
            self.set_epoch(self.epoch + 1)
        elif not self._continue_pass:
            self.samples_consumed = 0
        self._continue_pass = False

    def __len__(self) -> int:
        size, batch = self.size, self.global_batch_size
        return size // batch if self._leave_out_short_batch else -(-size // batch)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        size, batch, epoch = self.size, self.global_batch_size, self.epoch
        rank, world_size = _rank_and_world_size()
        for start in range(self.samples_consumed, size, batch):
            stop = min(start + batch, size)
            if stop - start < batch and self._leave_out_short_batch:
                return
            padded = stop + -(stop - start) % world_size
            share = (padded - start) // world_size
            positions = np.arange(start + rank * share, start + (rank + 1) * share, dtype=np.int64) % size
            ids = permuted(positions, size, self.seed, epoch) if self.shuffle else positions
            yield [(epoch, sample_id) for sample_id in ids.tolist()]


class _EpochSetter(DistributedSampler[Any]):
    """Passes ``set_epoch`` on."""

    def __init__(self, batches: _Batches) -> None:  # not super(): that one wants a process group
        self._batches = batches

    def set_epoch(self, epoch: int) -> None:
        self._batches.set_epoch(epoch)


def _rank_and_world_size() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _check_arguments(dataset: Any, batch_size: int, options: dict[str, Any]) -> None:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DatasetError(
            f"ResumableDataLoader needs a map-style dataset with len() and indexing, found {type(dataset).__name__}: "
            "a stream has no position to go to. Give its samples numbers, or use a loader with state_dict of its "
            "own."
        )
    if len(dataset) == 0:
        raise DatasetError("the dataset has no samples: expected at least one. Check where it reads from.")
    if type(batch_size) is not int or batch_size < 1:
        raise DatasetError(f"batch_size: expected a positive integer, found {batch_size!r}.")
    taken = {"sampler", "batch_sampler", "generator"} & set(options)
    if taken:
        raise DatasetError(
            f"{', '.join(sorted(taken))}: the order belongs to ResumableDataLoader. Use shuffle and seed instead."
        )
    if not options.get("in_order", True):
        raise DatasetError("in_order: expected True, found False: the order would depend on how fast workers are.")
