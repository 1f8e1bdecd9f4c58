"""Where in which epoch a loader is: what a position consists of, and which passes stand for which epochs."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.data.epoch_counting import may_count_epochs
from neuromanifold_gpt.data.errors import DataOrderWarning

# Position within an epoch as plain values; the order that made it knows its keys.
Progress = dict[str, Any]


class Steps(NamedTuple):
    """How many units all ranks together take at once, and whether a rest that is less is left out."""

    units: int
    drop_last: bool = False

    def per_epoch(self, size: int) -> int:
        """How often units are taken."""
        return size // self.units if self.drop_last else -(-size // self.units)


class EpochOrder(Protocol):
    """What comes in which order in each epoch."""

    seed: int

    @property
    def size(self) -> int | None:
        """Units of an epoch, on all ranks: samples, or batches; ``None`` if that is not known."""
        ...

    def steps(self, progress: Progress | None = None) -> Steps:
        """How units are taken in the epoch of ``progress``, by default in one that begins now."""
        ...

    def consumed(self, progress: Progress) -> int:
        """Units behind ``progress``."""
        ...

    def is_over(self, progress: Progress) -> bool:
        """Whether nothing is left of the epoch; not if that cannot be known before more is asked for."""
        ...

    def beginning(self) -> Progress:
        """The beginning of the epoch that comes next."""
        ...

    def begin_again(self, progress: Progress) -> Progress:
        """The beginning of the epoch of ``progress``, which was left in the middle."""
        ...

    def saved(self, progress: Progress) -> Progress:
        """``progress``, with what else has changed by now that a resume from it needs."""
        ...

    def leave(self, epoch: int, progress: Progress) -> None:
        """Do what was done up to ``progress``, which was loaded and is not continued."""
        ...

    def description(self) -> dict[str, Any]:
        """What else decides the order, for the state dict."""
        ...

    def adopt(self, state: dict[str, Any]) -> list[str]:
        """Take from a state dict what is needed to continue from it; return what differs and changes the order."""
        ...


class Position:
    """Where in which epoch the last batch that was handed out ended.

    A pass that continues after a resume stands for the one in which the position was saved, also where that one had
    come to its last batch: nothing is left of it then, but the program may have something to do behind it. It cannot
    stand for a pass that the program had left, or that had another one within it: that is said in each process in
    which it happens.

    It does not refer to the loader: a cycle would leave loader and workers to the garbage collector, which takes them
    apart in any order, and torch then waits five seconds for each worker that can no longer be told to end.
    """

    def __init__(self, order: EpochOrder) -> None:
        self.order = order
        self.epoch = 0
        self.progress = order.beginning()
        self.moves = 0  # how often the position was set rather than reached
        self.is_exhausted = False  # for orders whose size is not known
        self._continue_pass = False
        self._is_loaded = False
        self._seems_over = False  # the newest pass, when it began
        self.epoch_is_known = False  # the program has asked for it, or told it, since a position was loaded
        self.pass_was_told = False  # the program set the epoch of the newest one
        self._is_told = False
        self._counted_from = 0
        self._newest_pass = 0
        self._pass_is_open = False  # the newest one can go on
        self._is_saved_in_pass = False  # since it began, or it began where a position was loaded
        self._interrupted_pass: tuple[int, int] | None = None  # its number, and where, if it was saved and may go on

    @property
    def is_at_end(self) -> bool:
        """Whether the next pass is the next epoch."""
        return self.is_exhausted or self.order.is_over(self.progress)

    @property
    def epoch_of_pass(self) -> int:
        """The same in a run that goes on and in one that resumes there."""
        return self.epoch + (self.is_at_end and not self.is_in_pass)

    @property
    def goes_on(self) -> bool:
        """Whether the next pass begins where a position was loaded."""
        return self._continue_pass

    @property
    def is_in_pass(self) -> bool:
        """Whether a pass is under way, or was where a position was loaded, with which the next one goes on."""
        return self._pass_is_open or self._continue_pass

    @property
    def has_had_a_pass(self) -> bool:
        """In this process."""
        return self._newest_pass > 0

    @property
    def batches_per_epoch(self) -> int | None:
        """Of this rank, if that is known."""
        size = self.order.size
        if size is None:
            return None
        is_under_way = self._is_begun and (self.is_in_pass or not self.is_at_end)
        return self.order.steps(self.progress if is_under_way else None).per_epoch(size)

    @property
    def _is_begun(self) -> bool:
        return self.order.consumed(self.progress) > 0

    def go_to(self, epoch: int, progress: Progress, *, continue_pass: bool) -> None:
        """Set the position; the next pass begins there if ``continue_pass``."""
        self.epoch, self.progress = epoch, progress
        self._continue_pass = self._is_loaded = continue_pass
        self.epoch_is_known = self.is_exhausted = self._is_saved_in_pass = self._pass_is_open = False
        self._interrupted_pass = None
        self.moves += 1

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch's beginning, unless that epoch is under way."""
        self._move_to(epoch)
        self.epoch_is_known = self._is_told = True

    def warn_if_left_for(self, epoch: int) -> None:
        """A program is about to set the epoch itself.

        Warns:
            DataOrderWarning: a position was loaded, and would be left.
        """
        if self._is_loaded and epoch != self.epoch and not self._may_be_next(epoch):
            warn_user(
                f"set_epoch({epoch}) leaves the position that was restored, which is in epoch {self.epoch} "
                f"({self.order.consumed(self.progress)} samples or batches of it are over): training goes on with other"
                " batches than without the interruption. Begin to count where it is: loader.epoch.",
                DataOrderWarning,
            )

    def _may_be_next(self, epoch: int) -> bool:
        """Behind an epoch's end: the one that follows; or again the one that is over, as each validation may ask."""
        return (self.is_at_end and epoch == self.epoch + 1) or (not self._is_begun and epoch == self.epoch - 1)

    def _move_to(self, epoch: int) -> None:
        if epoch != self.epoch or (self.is_at_end and not self._continue_pass):
            if self._is_loaded and self._is_begun:
                self.order.leave(self.epoch, self.progress)
            self.go_to(epoch, self.order.beginning(), continue_pass=False)

    def set_counted_epoch(self, epoch: int) -> None:
        """:meth:`set_epoch`, by what counts the passes of this process: from a position that was loaded on."""
        if self._is_loaded:
            self._counted_from = self.epoch - epoch
        self.set_epoch(self._counted_from + epoch)

    def begin_pass(self) -> int:
        """Go to where a new pass begins; gives its number.

        Warns:
            DataOrderWarning: it begins an epoch again of which a position was saved.
        """
        self._seems_over = self.is_at_end and self._continue_pass
        if self.is_at_end and not self._continue_pass:
            self._move_to(self.epoch + 1)
        elif not self._is_begun:
            self.progress = self.order.beginning()  # of which the program may have changed something
        elif not self._continue_pass:
            if self._is_saved_in_pass:
                consumed = self.order.consumed(self.progress)
                if self._pass_is_open:
                    self._interrupted_pass = self._newest_pass, consumed
                else:
                    self._warn(_left_after(consumed))
            self.progress = self.order.begin_again(self.progress)
        self.pass_was_told, self._is_told = self._is_told, False
        self._is_saved_in_pass = self._continue_pass and self._is_begun
        self._continue_pass = self._is_loaded = False
        self._newest_pass += 1
        self._pass_is_open = True
        return self._newest_pass

    def end_where_loaded(self) -> None:
        """Let the next pass be the next epoch, where nothing is left of the one that was loaded."""
        self._continue_pass = self._is_loaded = False

    def advance(self, number: int, epoch: int, progress: Progress) -> None:
        """Be where a pass is.

        Warns:
            DataOrderWarning: another pass has begun within it, and a position was saved since.
        """
        if number != self._newest_pass:
            self._interrupted_pass = None
            if self._is_saved_in_pass:
                self._warn(
                    "a pass over it goes on after another pass that was begun within it, whose position was saved. "
                    "Evaluate on a loader of its own"
                )
            self._newest_pass, self._pass_is_open, self._is_saved_in_pass = number, True, False
        self.epoch, self.progress, self.is_exhausted = epoch, progress, False
        self._seems_over = False  # a sampler may go on behind its length

    def end_pass(self, number: int) -> None:
        """It will not go on.

        Warns:
            DataOrderWarning: a position in it was saved, and another pass has begun its epoch again.
            UserWarning: it gave nothing, since nothing was left of the epoch where the position was saved.
        """
        if number == self._newest_pass:
            self._pass_is_open = False
            if self._seems_over:
                self._say_that_nothing_is_left()
        elif self._interrupted_pass is not None and number == self._interrupted_pass[0]:
            self._warn(f"{_left_after(self._interrupted_pass[1])}, once no variable holds its iterator")
            self._interrupted_pass = None

    def leave_pass(self) -> None:
        """Let the next pass begin the epoch again, if it is not another epoch; also after a resume from here."""
        if self._is_begun and not (self._is_loaded or self._pass_is_open or self.is_at_end):
            self.progress = self.order.begin_again(self.progress)
        self._continue_pass = self._is_saved_in_pass = False

    def note_save(self) -> None:
        """A resume may continue from here."""
        self._is_saved_in_pass = True

    def _say_that_nothing_is_left(self) -> None:
        if not self.epoch_is_known and may_count_epochs():
            warn_user(
                f"nothing is left of epoch {self.epoch}, in which the position was saved while the loop over it still "
                "ran: this pass gives no batch, so that what comes after that loop is done, and the next pass is the "
                "next epoch. Where you count epochs, begin with loader.epoch, or call loader.set_epoch(epoch) in each.",
                UserWarning,
            )

    def _warn(self, what: str) -> None:
        warn_user(
            f"a resume of this training cannot be exact at every checkpoint: a loader has one position, and {what}.",
            DataOrderWarning,
        )

    def state_dict(self, *, within_pass: bool = False) -> dict[str, Any]:
        """The position; at the end of an epoch, the beginning of the next one.

        Args:
            within_pass: at the end of an epoch whose pass still runs, that end.
        """
        if self.is_at_end and not (within_pass and self.is_in_pass):
            return {"epoch": self.epoch + 1, **self.order.beginning(), **self.order.description()}
        return {"epoch": self.epoch, **self.order.saved(self.progress), **self.order.description()}


def _left_after(consumed: int) -> str:
    return (
        f"a pass over it was left after {consumed} samples or batches, and its epoch begins again. To go on instead: "
        "loader.load_state_dict(loader.state_dict()). To begin again after a resume too, call loader.leave_pass() "
        "before saving"
    )


def nothing_left(order: EpochOrder, progress: Progress) -> bool:
    """Whether an order of known size has no further batch."""
    if order.size is None:
        return False
    units, drop_last = order.steps(progress)
    return order.size - order.consumed(progress) < (units if drop_last else 1)
