"""What loaders that continue at a position have in common."""

from __future__ import annotations

import sys
import threading
import types
import weakref
from collections.abc import Iterable, Iterator
from typing import Any
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader

from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.data.changes import ChangesBesidePosition
from neuromanifold_gpt.data.consumers import (
    begin_anew,
    consumers_of,
    counted_from,
    warn_of_cycles,
    warn_of_other_counts,
    zipped_with,
)
from neuromanifold_gpt.data.errors import DataOrderWarning, DatasetError
from neuromanifold_gpt.data.held_back import HeldBack
from neuromanifold_gpt.data.order import mixed
from neuromanifold_gpt.data.position import Position, Progress
from neuromanifold_gpt.data.shown_data import ShownData
from neuromanifold_gpt.state.owned_state import OwnedState
from neuromanifold_gpt.state.unsaved.before_next_batch import BeforeNextBatch, Gap
from neuromanifold_gpt.state.unsaved.unsaved_values import variables_beside_state


class PositionedLoader(DataLoader[Any]):
    """A loader that knows its position, and continues there: see :class:`ResumableDataLoader` and :func:`resumable`.

    Subclasses set ``_position`` and ``_beside``, call :meth:`show` when they are made, and say in :meth:`_batches`
    what comes from the position on.
    """

    _position: Position
    # Of users' Python modules, when training began in this process: a save says which have changed.
    variables_at_first_pass: dict[str, str] | None = None
    _asking_thread = 0  # that of the newest pass
    _restored_with: Iterable[PositionedLoader] = ()
    _beside: ChangesBesidePosition
    shown_data: ShownData  # when the loader was made

    def show(self, **attributes: Any) -> None:
        """Let public attributes be those that users expect, not what ``DataLoader`` is made to work with.

        ``DataLoader`` guards them after construction.
        """
        vars(self).update(attributes)
        self.shown_data = ShownData(OwnedState(self.data_parts()))
        self._before_next_batch, self._held_back = BeforeNextBatch(), HeldBack()

    @property
    def seed(self) -> int:
        """Seed of the samples' randomness, and of the order where it is shuffled."""
        return self._position.order.seed

    @property
    def epoch(self) -> int:
        """Of the pass under way, behind its last batch too as long as the ``for`` runs; else of the next one."""
        self._position.epoch_is_known = True
        return self._position.epoch_of_pass

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "generator": None}  # one of its own, while it starts workers that are given it

    def __len__(self) -> int:
        """Batches of a whole epoch, wherever it is continued."""
        batches = self._position.batches_per_epoch
        if batches is None:
            raise TypeError("the sampler or stream has no length, so the loader has none.")
        return batches

    @property
    def batches_consumed(self) -> int:
        """Where the pass that is under way is, else where the next one begins: ``enumerate(loader, start)``.

        Counted in batches of this rank: 0, unless a position in the middle of an epoch was loaded.
        """
        position, order = self._position, self._position.order
        return (
            -(-order.consumed(position.progress) // order.steps(position.progress).units) if position.is_in_pass else 0
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        itself: list[Any] = []  # a weak reference
        iterator = self._pass(itself)
        itself.append(weakref.ref(iterator))
        return iterator

    def _pass(self, itself: list[Any]) -> Iterator[Any]:
        # A generator: nothing here happens before the first batch is asked for, so iterators that are only created
        # (Lightning makes several) do not use up the position to continue from.
        position, before_next = self._position, self._before_next_batch
        is_first, goes_on = self.variables_at_first_pass is None, position.goes_on
        # First of all: whatever makes objects, makes these older.
        around = consumers_of(itself[0](), _who_asks()) if is_first or goes_on else []
        is_within = goes_on and (self.is_at_end or self.batches_consumed > 0)
        before_next.batch_is_asked_for(_who_asks(), goes_on=is_within)
        if self.variables_at_first_pass is None:
            self.variables_at_first_pass = variables_beside_state(self.objects_of_position())
        number = position.begin_pass()
        self._asking_thread = threading.get_ident()
        if is_first or goes_on:
            self._look_at(around, itself[0](), _who_asks(), goes_on)
        del around  # it holds this generator
        self._held_back.pass_begins(_who_asks())
        moves, epoch, is_whole = position.moves, position.epoch, not self.batches_consumed
        self._beside.batch_is_asked_for()
        try:
            for batch, progress in self._batches():
                # Counted as it is handed out: what workers have prefetched is not consumed.
                if position.moves == moves:  # else the position was set meanwhile, and this pass has no say in it
                    position.advance(number, epoch, progress)
                self._beside.batch_is_there({"collate_fn": self.collate_fn})
                before_next.batch_is_given()
                yield batch
                self._beside.batch_is_asked_for()
                self._held_back.batch_is_asked_for(_who_asks())
                before_next.batch_is_asked_for(_who_asks(), goes_on=True)
            if position.moves == moves and position.epoch == epoch:
                position.is_exhausted = True
                if is_whole:
                    self._warn_of_one_that_waits()
        finally:
            position.end_pass(number)

    def _look_at(self, around: list[Any], iterator: Any, asking: types.FrameType | None, goes_on: bool) -> None:
        self._held_back.goes_with(begin_anew(around, iterator, asking))
        warn_of_cycles(around)  # who iterates
        if goes_on and self.is_at_end:
            for other in zipped_with(around, iterator):
                self._end_with_this(other)
        elif goes_on:
            warn_of_other_counts(counted_from(around, iterator, asking), self.batches_consumed)

    def _warn_of_one_that_waits(self) -> None:
        others = [other for other in self._restored_with if other._position.goes_on]
        if any(other.batches_consumed and not other.is_at_end for other in others):
            self._restored_with = ()
            warn_user(
                "a whole pass over a loader was made before another loader, that was restored with it in the middle of "
                "an epoch, went on: loaders that take turns are not where they were. Save between their passes, or "
                "begin with the one whose batches_consumed is not 0.",
                DataOrderWarning,
            )

    @staticmethod
    def _end_with_this(iterator: types.GeneratorType[Any, Any, Any]) -> None:
        """``zip`` does not ask the loaders behind one that has ended; they had come to their ends with it."""
        if iterator.gi_code is PositionedLoader._pass.__code__ and iterator.gi_frame is not None:
            other: PositionedLoader = iterator.gi_frame.f_locals["self"]
            if other._position.goes_on and other.is_at_end:
                other._position.end_where_loaded()

    def _batches(self) -> Iterator[tuple[Any, Progress]]:
        """What comes from the position on, each batch with the position behind it."""
        raise NotImplementedError

    def _iterator_over(self, **attributes: Any) -> Iterator[Any]:
        """A new iterator of ``DataLoader``, for which some attributes have other values."""
        # Workers' base seed comes from the generator, else from the global one. Persistent workers keep their first.
        seed = self.seed if self.persistent_workers else mixed(self.seed, self._position.epoch)
        attributes["generator"] = torch.Generator().manual_seed(mixed(seed) >> 1)  # kept, it could not be pickled
        shown = {name: getattr(self, name) for name in attributes}
        vars(self).update(attributes)
        try:
            return super().__iter__()
        finally:
            vars(self).update(shown)

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch; the epoch that is under way goes on, one that is over starts again.

        A pass over another epoch may be finished, but its batches no longer count.
        """
        self._position.warn_if_left_for(epoch)
        self._position.set_epoch(epoch)

    def leave_pass(self) -> None:
        """Let the next pass begin the epoch again, also where a position was loaded: as if this pass had been left.

        Of a pass that has been left, a position that is saved after this is the epoch's beginning.
        """
        self._position.leave_pass()

    @property
    def is_at_end(self) -> bool:
        """Whether the epoch is over."""
        return self._position.is_at_end

    def state_dict(self) -> dict[str, Any]:
        """The position behind the last batch that was handed out.

        Behind an epoch's last batch it is the end of that epoch while the loop over it still runs: a resumed loop then
        is given no batch at first, and does what comes after it.

        Warns:
            DataOrderWarning: training has changed something in the data that no position has; or batches are taken in
                another thread, or held back by a generator.
        """
        self.warn_of_what_is_left_out()
        if self._asking_thread not in (0, threading.get_ident()):
            warn_user(
                "batches are taken from the loader in another thread than the one that saves it: the position is behind"
                " the last one taken, be it trained on or not. Let the loop that trains take them, and num_workers"
                " fetch ahead.",
                DataOrderWarning,
            )
        self._held_back.warn(is_within_epoch=self.batches_consumed > 0 and not self.is_at_end)
        return self._noted(within_pass=True)

    def state_between_passes(self) -> dict[str, Any]:
        """:meth:`state_dict`, but at the end of an epoch always the beginning of the next one."""
        return self._noted(within_pass=False)

    def _noted(self, *, within_pass: bool) -> dict[str, Any]:
        self._position.note_save()
        return self.position(within_pass=within_pass)

    def warn_of_what_is_left_out(self) -> None:
        """See :class:`ChangesBesidePosition`."""
        self._beside.warn_of_changes({"collate_fn": self.collate_fn}, is_at_end=self.is_at_end)

    def restored_with(self, others: Iterable[PositionedLoader]) -> None:
        """Their positions were loaded from the same checkpoint."""
        self._restored_with = WeakSet(others)

    def saved_with(self, things: Iterable[Any]) -> None:
        """The next checkpoints have the state of these."""
        self._beside.saved_with(things)

    def follow_up_to_batch(self, gap: Gap) -> None:
        """There was a save or a restore of this loader."""
        self._before_next_batch.begin(gap, is_over_in_pass=self.is_at_end and self._position.is_in_pass)

    def carried_around(self) -> list[tuple[types.FrameType, frozenset[str]]]:
        """See :meth:`HeldBack.carried`."""
        return self._held_back.carried(is_over=self.is_at_end)

    @property
    def needs_its_position(self) -> bool:
        """Whether there were passes, the next one depends on their number, and nobody sets the epoch."""
        return self._position.has_had_a_pass and not self._position.pass_was_told and self.passes_differ

    @property
    def passes_differ(self) -> bool:
        """Whether one pass may give other batches than another."""
        raise NotImplementedError

    def objects_of_position(self) -> tuple[Any, ...]:
        """Those whose changes go with the position: they are not lost with the process."""
        raise NotImplementedError

    def data_parts(self) -> dict[str, Any]:
        """What holds the data, by name: the dataset, and a sampler of the user's own."""
        return {"dataset": self.dataset}

    def position(self, *, within_pass: bool = False) -> dict[str, Any]:
        """:meth:`state_between_passes` of a loader whose passes are not interrupted."""
        return self._position.state_dict(within_pass=within_pass)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a position; the next pass begins there, and a pass under way no longer counts.

        Raises:
            DatasetError: ``state_dict`` is that of another kind of loader.

        Warns:
            DataOrderWarning: seed, shuffling, batch size or the number of samples differ, so other batches follow.
        """
        order = self._position.order
        missing = {"epoch", *order.beginning(), *order.description()} - set(state_dict)
        if missing:
            raise DatasetError(
                f"this is the position of another kind of loader: expected {', '.join(sorted(missing))}, found "
                f"{', '.join(sorted(state_dict))}. Use the loader of the save, or begin without its position."
            )
        changed = order.adopt(state_dict)
        progress = {key: state_dict[key] for key in order.beginning()}
        if changed:
            warn_user(
                f"the data goes on in epoch {state_dict['epoch']} behind {order.consumed(progress)} samples or "
                f"batches, but not as before: {', '.join(changed)}.",
                DataOrderWarning,
            )
        self._position.go_to(state_dict["epoch"], progress, continue_pass=True)


def _who_asks() -> types.FrameType | None:
    """The frame that asks the generator, which calls this, for a batch; ``None`` where no Python code does."""
    asked = sys._getframe(1)
    return asked.f_back
