"""A loader over a stream that continues with the next batch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

from torch.utils.data import DataLoader

from neuromanifold_gpt.data.changes import ChangesBesidePosition
from neuromanifold_gpt.data.errors import ReadAgainWarning
from neuromanifold_gpt.data.position import Position, Progress, Steps
from neuromanifold_gpt.data.positioned_loader import PositionedLoader
from neuromanifold_gpt.data.shown_samplers import ShownOrder
from neuromanifold_gpt.data.stream_shards import Item, ShardsInTurn, StreamOptions
from neuromanifold_gpt.data.watched_collate import warn_of_changes
from neuromanifold_gpt.state.owned_state import OwnedState
from neuromanifold_gpt.state.rng import rank_and_world_size

_BEGINNING: dict[str, Any] = {"samples": 0, "state": None, "is_done": False, "collate_fn": {}}


class ResumableStreamLoader(PositionedLoader):
    """What :func:`resumable` makes of a ``DataLoader`` over an ``IterableDataset``.

    With workers, each reads a stream of its own, as with ``DataLoader``: what it reads is the dataset's affair
    (``get_worker_info()``), and each pass begins with a new copy of the dataset. A run that continues with another
    number of workers goes on reading as many streams as before, so that the batches stay the same. Workers are started
    anew for each epoch, also with ``persistent_workers``.

    A stream whose iterator, or which itself, has ``state_dict`` and ``load_state_dict`` is put at its position. What it
    draws from random number generators for a sample is a function of (seed, epoch, worker, number of the sample); what
    it decides once, such as the order of its files, must be in its state. A stream without these methods is read
    again up to the position. Numbers, strings and flags that ``collate_fn`` changes in itself go with the position of
    each stream.

    With ``torch.distributed``, what a rank reads is the dataset's affair too, and each rank has a position of its own.

    Args:
        loader: the stock loader.
        seed: of the samples' randomness; ``None`` where any will do and a checkpoint may bring another.
        default_seed: where ``seed`` is ``None``.
        seed_samples: ``False`` if nothing that makes a batch draws random numbers.
        options: further arguments of ``DataLoader``.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        seed: int | None,
        default_seed: int,
        *,
        seed_samples: bool,
        options: dict[str, Any],
    ) -> None:
        self._stream = loader.dataset
        self._options = StreamOptions(
            batch_size=loader.batch_size,
            drop_last=loader.drop_last,
            collate_fn=loader.collate_fn,
            worker_init_fn=options.pop("worker_init_fn", None),
            seed_samples=seed_samples,
        )
        self._turns = _Turns(loader, seed, default_seed)
        self._has_said = False
        self._position = Position(self._turns)
        # A stream changes as it is read, which is repeated or in its state.
        self._beside = ChangesBesidePosition([], shared=self._turns.owned())
        super().__init__(
            cast(Any, loader.dataset),
            batch_size=None,
            num_workers=loader.num_workers,
            collate_fn=cast(Any, _as_it_is),
            **options,
        )
        self._tasks = self.sampler  # DataLoader draws one for each batch
        sampler = ShownOrder(self._position, "Set what decides it in the stream, loader.dataset.")
        self.show(
            dataset=loader.dataset,
            batch_size=loader.batch_size,
            drop_last=loader.drop_last,
            collate_fn=loader.collate_fn,
            sampler=sampler,
        )

    @property
    def passes_differ(self) -> bool:
        """If samples may draw, which nobody looks at."""
        return self._options.seed_samples

    def objects_of_position(self) -> tuple[Any, ...]:
        """See :meth:`PositionedLoader.objects_of_position`."""
        return self._turns.objects()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`PositionedLoader.load_state_dict`."""
        self._take_collate_fn()
        super().load_state_dict(state_dict)

    def _take_collate_fn(self) -> None:
        """That of the attribute, which training may have set."""
        self._options = replace(self._options, collate_fn=self.collate_fn)
        self._turns.collate_with(self.collate_fn)

    def _batches(self) -> Iterator[tuple[Any, Progress]]:
        position, workers = self._position, self.num_workers
        progress = position.progress
        self._take_collate_fn()
        self._beside.begin_pass(with_workers=self.num_workers > 0)
        shards = len(progress["shards"])
        hosts = math.gcd(shards, workers) if workers and progress["workers"] else 0
        stream = ShardsInTurn(
            self._stream,
            self._options,
            self.seed,
            position.epoch,
            starts=progress["shards"],
            next_shard=progress["next_shard"],
            as_workers=progress["workers"] > 0,
            hosts=hosts,
        )
        items: Iterator[Item] = self._iterator_over(
            dataset=stream, num_workers=hosts, sampler=self._tasks, drop_last=False, collate_fn=_as_it_is
        )
        self._say_how_it_continues(progress, hosts)
        for number, state, batch, not_kept in items:
            if not_kept and not self._has_said:
                self._has_said = True
                warn_of_changes(not_kept, workers=0)
            shards_now = [state if other == number else start for other, start in enumerate(progress["shards"])]
            progress = {**progress, "shards": shards_now, "next_shard": (number + 1) % shards}
            if batch:
                progress["batches_consumed"] += 1
                yield batch[0], progress

    def _say_how_it_continues(self, progress: Progress, hosts: int) -> None:
        again = [shard["samples"] for shard in progress["shards"] if shard["state"] is None and not shard["is_done"]]
        if any(again):
            warnings.warn(
                f"{type(self._stream).__name__} has no state_dict and load_state_dict: it is read again up to where it "
                f"stopped, {sum(again)} samples. Give it the two methods, and it goes there at once.",
                ReadAgainWarning,
                stacklevel=2,
            )
        if hosts != self.num_workers:
            warnings.warn(
                f"the stream was begun with {progress['workers']} workers, and is read as then, so that the batches "
                f"stay the same: {hosts} of {self.num_workers} workers can take part in it.",
                UserWarning,
                stacklevel=2,
            )


class _Turns:
    """The position in the streams, as an order of batches of each epoch."""

    def __init__(self, loader: DataLoader[Any], seed: int | None, default_seed: int) -> None:
        self.seed = default_seed if seed is None else seed
        self._seed_is_given = seed is not None
        self._workers = loader.num_workers
        self._loader = loader  # which knows the number of batches
        self._dataset = OwnedState({"dataset": loader.dataset})
        self._collate_fn = OwnedState({"collate_fn": loader.collate_fn}, ignored=self._dataset.objects())

    @property
    def size(self) -> int | None:
        try:
            return len(self._loader)
        except (TypeError, NotImplementedError):
            return None

    def steps(self, progress: Progress | None = None) -> Steps:
        return Steps(1)

    def consumed(self, progress: Progress) -> int:
        return int(progress["batches_consumed"])

    def is_over(self, progress: Progress) -> bool:
        return all(shard["is_done"] for shard in progress["shards"])

    def beginning(self) -> Progress:
        return {
            "batches_consumed": 0,
            "workers": self._workers,
            "shards": [_BEGINNING] * max(self._workers, 1),
            "next_shard": 0,
            "values_at_beginning": self._values(),
        }

    def _values(self) -> dict[str, Any]:
        of_collate_fn = self._collate_fn.changed_values() if self._workers == 0 else {}  # workers have copies
        return {**self._dataset.changed_values(), **of_collate_fn}

    def owned(self) -> list[OwnedState]:
        return [self._dataset, self._collate_fn]

    def collate_with(self, collate_fn: Callable[[Any], Any]) -> None:
        self._collate_fn.replace("collate_fn", collate_fn)

    def objects(self) -> tuple[Any, ...]:
        return (*self._dataset.objects(), *self._collate_fn.objects())

    def begin_again(self, progress: Progress) -> Progress:
        self._restore(progress)
        return {**self.beginning(), "values_at_beginning": progress["values_at_beginning"]}

    def saved(self, progress: Progress) -> Progress:
        # Before it begins, and when all is read, the values are those of now.
        is_under_way = self.consumed(progress) and not self.is_over(progress)
        return progress if is_under_way else {**progress, "values_at_beginning": self._values()}

    def _restore(self, progress: Progress) -> None:
        for owned in (self._dataset, self._collate_fn):
            owned.restore_values(progress["values_at_beginning"])

    def leave(self, epoch: int, progress: Progress) -> None:
        """Nothing: each pass begins with a new copy of the stream, or with the stream as it is."""

    def description(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "batch_size": self._loader.batch_size,
            "drop_last": self._loader.drop_last,
            "ranks": rank_and_world_size()[1],
        }

    def adopt(self, state: dict[str, Any]) -> list[str]:
        if not self._seed_is_given:
            self.seed = state["seed"]
        self._workers = state["workers"]
        self._restore(state)
        return [
            f"{key} was {state[key]} and is {value}" for key, value in self.description().items() if state[key] != value
        ]


def _as_it_is(item: Item) -> Item:
    return item
