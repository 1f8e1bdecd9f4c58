"""A ``DataLoader`` whose position and order survive a resume."""

from __future__ import annotations

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
        self.seed = seed
        self.epoch = 0
        self.samples_consumed = 0
        self._shuffle = shuffle
        self._samples_per_rank = batch_size
        self._leave_out_short_batch = drop_last
        self._continue_pass = False
        collate = collate_fn or default_collate
        super().__init__(
            SeededSamples(dataset, seed, seed_samples),
            batch_sampler=_Batches(self),
            num_workers=num_workers,
            collate_fn=cast(Any, SeededCollate(collate) if seed_samples else collate),
            generator=torch.Generator().manual_seed(seed & 0x7FFFFFFFFFFFFFFF),  # iterators draw their seed from it
            **options,
        )
        # DataLoader guards its attributes after construction. Lightning calls sampler.set_epoch, and would replace a
        # sampler that it does not take for a distributed one.
        object.__setattr__(self, "sampler", _EpochSetter(self))

    def __len__(self) -> int:
        """Batches of a whole epoch, wherever it is continued."""
        size, batch = len(self.dataset), self._global_batch_size  # type: ignore[arg-type]
        return size // batch if self._leave_out_short_batch else -(-size // batch)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: nothing here happens before the first batch is asked for, so iterators that are only created
        # (Lightning makes several) do not use up the position to continue from.
        if self._is_at_end:
            self.set_epoch(self.epoch + 1)
        elif not self._continue_pass:
            self.samples_consumed = 0
        self._continue_pass = False
        for batch in super().__iter__():
            # Counted as it is handed out: what workers have prefetched is not consumed.
            self.samples_consumed = min(self.samples_consumed + self._global_batch_size, len(self.dataset))  # type: ignore[arg-type]
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch; the epoch that is under way goes on, one that is over starts again."""
        if epoch != self.epoch or self._is_at_end:
            self.epoch, self.samples_consumed, self._continue_pass = epoch, 0, False

    def state_dict(self) -> dict[str, Any]:
        """The position behind the last batch that was handed out."""
        position = (self.epoch + 1, 0) if self._is_at_end else (self.epoch, self.samples_consumed)
        return {
            "epoch": position[0],
            "samples_consumed": position[1],
            "seed": self.seed,
            "shuffle": self._shuffle,
            "dataset_size": len(self.dataset),  # type: ignore[arg-type]
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a position; the next pass begins there.

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
                f"the data goes on after sample {state_dict['samples_consumed']} of epoch {state_dict['epoch']}, but "
                f"in another order: {', '.join(changed)}.",
                DataOrderWarning,
                stacklevel=2,
            )
        self.epoch, self.samples_consumed = state_dict["epoch"], state_dict["samples_consumed"]
        self._continue_pass = True

    def batches_of_sample_ids(self) -> Iterator[list[int]]:
        """Sample ids of this rank's batches, from the current position to the end of the epoch."""
        size, batch = len(self.dataset), self._global_batch_size  # type: ignore[arg-type]
        rank, world_size = _rank_and_world_size()
        for start in range(self.samples_consumed, size, batch):
            stop = min(start + batch, size)
            if stop - start < batch and self._leave_out_short_batch:
                return
            padded = stop + -(stop - start) % world_size
            share = (padded - start) // world_size
            positions = np.arange(start + rank * share, start + (rank + 1) * share, dtype=np.int64) % size
            ids = permuted(positions, size, self.seed, self.epoch) if self._shuffle else positions
            yield ids.tolist()

    @property
    def _global_batch_size(self) -> int:
        return self._samples_per_rank * _rank_and_world_size()[1]

    @property
    def _is_at_end(self) -> bool:
        needed = self._global_batch_size if self._leave_out_short_batch else 1
        return len(self.dataset) - self.samples_consumed < needed  # type: ignore[arg-type]


class _Batches:
    """The batch sampler: keys of samples, which carry the epoch to workers that outlive it."""

    def __init__(self, loader: ResumableDataLoader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch = self._loader.epoch
        for ids in self._loader.batches_of_sample_ids():
            yield [(epoch, sample_id) for sample_id in ids]

    def __len__(self) -> int:
        return len(self._loader)


class _EpochSetter(DistributedSampler[Any]):
    """Passes ``set_epoch`` on to the loader."""

    def __init__(self, loader: ResumableDataLoader) -> None:  # not super(): that one wants a process group
        self._loader = loader

    def set_epoch(self, epoch: int) -> None:
        self._loader.set_epoch(epoch)


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
