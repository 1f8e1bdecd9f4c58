"""A loader over a stream that continues with the next batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

from torch.utils.data import DataLoader

from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.data.changes import ChangesBesidePosition
from neuromanifold_gpt.data.errors import DataOrderWarning, ReadAgainWarning
from neuromanifold_gpt.data.position import Position, Progress
from neuromanifold_gpt.data.positioned_loader import PositionedLoader
from neuromanifold_gpt.data.shown_samplers import ShownOrder
from neuromanifold_gpt.data.stream_generators import as_tensors
from neuromanifold_gpt.data.stream_shards import Item, ShardsInTurn, StreamOptions
from neuromanifold_gpt.data.stream_turns import StreamTurns
from neuromanifold_gpt.data.watched_collate import warn_of_changes


class ResumableStreamLoader(PositionedLoader):
    """What :func:`resumable` makes of a ``DataLoader`` over an ``IterableDataset``.

    With workers, each reads a stream of its own, as with ``DataLoader``: what it reads is the dataset's affair
    (``get_worker_info()``), and each pass begins with a new copy of the dataset. A run that continues with another
    number of workers goes on reading as many streams as before, so that the batches stay the same. Workers are started
    anew for each epoch, also with ``persistent_workers``.

    A stream whose iterator, or which itself, has ``state_dict`` and ``load_state_dict`` is put at its position; what it
    decides once, such as the order of its files, must be in its state. A stream without these methods is read again up
    to the position. What a pass draws from the global generators, and from the stream's own, begins with a seed of
    (seed, epoch, worker) and goes on from sample to sample, with the position. Numbers, strings and flags that
    ``collate_fn`` changes in itself go with the position of each stream.

    Without workers, a pass begins with what the one before has left in the stream, also after a resume: numbers,
    strings, flags, and lists, dicts, sets, tensors and arrays of them. Something is read ahead, so that the end of an
    epoch shows with its last batch: one sample, with ``drop_last`` one batch. A pass that is left loses it.

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
        self._turns = StreamTurns(loader, seed, default_seed, self._options)
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
        self._turns.collate_with(self._options)

    def _batches(self) -> Iterator[tuple[Any, Progress]]:
        position, workers = self._position, self.num_workers
        epoch, progress = position.epoch, position.progress
        self._take_collate_fn()
        self._beside.begin_pass(with_workers=self.num_workers > 0)
        shards = len(progress["shards"])
        hosts = math.gcd(shards, workers) if workers and progress["workers"] else 0
        stream = ShardsInTurn(
            self._stream,
            self._options,
            self.seed,
            epoch,
            starts=progress["shards"],
            next_shard=progress["next_shard"],
            as_workers=progress["workers"] > 0,
            hosts=hosts,
            when_read_again=self._turns.put_back_changes,
        )
        items: Iterator[Item] = self._iterator_over(
            dataset=stream, num_workers=hosts, sampler=self._tasks, drop_last=False, collate_fn=_as_it_is
        )
        self._say_how_it_continues(progress, hosts)
        is_said = False
        for number, raw_state, batch, not_kept, is_other in items:
            state = {**raw_state, "generators": as_tensors(raw_state["generators"])}
            if not_kept and not self._has_said:
                self._has_said = True
                warn_of_changes(not_kept, workers=0)
            if is_other and not is_said:
                is_said = True
                self._say_that_it_is_another()
            shards_now = [state if other == number else start for other, start in enumerate(progress["shards"])]
            progress = {**progress, "shards": shards_now, "next_shard": (number + 1) % shards}
            if batch:
                progress["batches_consumed"] += 1
                self._turns.batch_is_made(epoch, state)
                yield batch[0], progress

    def warn_of_what_is_left_out(self) -> None:
        """See :class:`ChangesBesidePosition`; and what a pass began with that is in no position."""
        super().warn_of_what_is_left_out()
        self._turns.warn_of_what_is_not_kept(self._position.progress)

    def _say_that_it_is_another(self) -> None:
        warn_user(
            f"{type(self._stream).__name__}, begun again, has come to other samples than before the checkpoint: what "
            "decides its order is not as it was when the pass began, such as a buffer that training fills. Give it "
            "state_dict and load_state_dict.",
            DataOrderWarning,
        )

    def _say_how_it_continues(self, progress: Progress, hosts: int) -> None:
        again = [shard["samples"] for shard in progress["shards"] if shard["state"] is None and not shard["is_done"]]
        if any(again):
            warn_user(
                f"{type(self._stream).__name__} has no state_dict and load_state_dict: it is read again up to where it "
                f"stopped, {sum(again)} samples. Give it the two methods, and it goes there at once.",
                ReadAgainWarning,
            )
        if hosts != self.num_workers:
            warn_user(
                f"the stream was begun with {progress['workers']} workers, and is read as then, so that the batches "
                f"stay the same: {hosts} of {self.num_workers} workers can take part in it.",
                UserWarning,
            )


def _as_it_is(item: Item) -> Item:
    return item
