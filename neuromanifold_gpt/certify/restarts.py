"""What each restart continued from: found from the logs, the files it read, and the checkpoints that lay there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from neuromanifold_gpt.certify.attempt import FAILED, FINISHED, INTERRUPTED, Attempt
from neuromanifold_gpt.certify.compare import RunFiles
from neuromanifold_gpt.certify.left_out import LeftOut
from neuromanifold_gpt.certify.metrics import Series
from neuromanifold_gpt.certify.names import LEARNING_RATE, LOSS, is_clock_name
from neuromanifold_gpt.certify.saves import SavedCheckpoint

_MIN_TRAINING_SEC = 0.05
_TRAINING_SHARE = 0.3  # of the time that the undisturbed run needed: steps that came so slowly were trained
_MIN_PARTS = 4  # in so many looks were steps noticed that came one after another
_SAME_KIND = 0.9  # of the leaves of the fullest checkpoint: a file of weights alone cannot be resumed from


@dataclass(frozen=True)
class Restart:
    """One interruption and what the next start made of it.

    Attributes:
        interrupted_at: the step noticed when the program was ended; ``None`` if none had been.
        checkpoint: the newest checkpoint that was whole then; ``None`` if there was none.
        checkpoint_step: its step, in the steps of the main log.
        destroyed: the interrupted save had begun by overwriting the only checkpoint there was.
        first_step: the first step trained after the restart; ``None`` if unknown.
        is_bound: ``first_step`` is only known to be at most that.
        read: the saved files that were opened for reading.
        started_over: it began anew although it could have resumed.
        lost_steps: steps trained again although a newer checkpoint was there; 0 if unknown.
        trained_again: steps trained again altogether.
        had_ended: it had trained to its end before it was ended, as one does that takes no notice of SIGTERM.
    """

    attempt: Attempt
    next_attempt: Attempt
    interrupted_at: int | None
    checkpoint: SavedCheckpoint | None
    checkpoint_step: int | None
    destroyed: bool
    first_step: int | None
    is_bound: bool
    read: tuple[str, ...]
    started_over: bool
    lost_steps: int
    trained_again: int
    had_ended: bool = False

    @property
    def resumed(self) -> bool:
        """Whether there is evidence that training went on from a checkpoint."""
        if self.checkpoint is None or self.started_over:
            return False
        went_on = self.first_step is not None and not self.is_bound and self.first_step > 1 and not self.lost_steps
        return bool(self.read) or went_on

    @property
    def did_nothing(self) -> bool:
        """Whether the next start ended well without a step logged or a file saved."""
        following = self.next_attempt
        return following.outcome == FINISHED and not following.saved_at and self.first_step is None


class RestartReader:
    """Reads restarts in the light of the undisturbed run.

    Args:
        undisturbed: its files.
        attempt: its one start, as it was watched.
        left_out: what is not deterministic.
    """

    def __init__(self, undisturbed: RunFiles, attempt: Attempt, left_out: LeftOut) -> None:
        self._left_out = left_out
        self._undisturbed = attempt
        self._main = undisturbed.log.main_series
        self._steps = undisturbed.log.main_steps()
        self._values = undisturbed.log.values
        saved = [step for unit in undisturbed.units if (step := undisturbed.step_of(unit)) is not None]
        last = self._steps[-1] if self._steps else 0
        # Other columns, such as those of stdout, that follow the same steps.
        self._alike = [
            series
            for series, trained in attempt.noticed.items()
            if trained.unit == "step" and trained.last == last and 2 * len(trained.values) >= len(self._steps) > 0
        ]
        # Checkpoints may be numbered by epochs while the log counts steps.
        self._on_scale = bool(saved) and 0.5 * last <= max(saved) <= last + 2

    def read(self, attempts: Sequence[Attempt]) -> list[Restart]:
        """Every interruption of a run, with what followed it."""
        saved_at: dict[str, int | None] = {}
        found = []
        for number, attempt in enumerate(attempts[:-1]):
            saved_at.update(attempt.saved_at)
            if attempt.outcome == INTERRUPTED:
                later = [one for one in attempts[number + 1 :] if one.outcome != FAILED]
                following = later[0] if later else attempts[number + 1]
                found.append(self._restart(attempt, following, saved_at))
        return found

    def _restart(self, attempt: Attempt, following: Attempt, saved_at: dict[str, int | None]) -> Restart:
        last = attempt.trained(self._main).last
        checkpoint = self._newest(attempt, following, last, saved_at)
        step = self._step(checkpoint, saved_at) if checkpoint is not None else None
        existing = {file for saved in attempt.whole for file in saved.files}
        if checkpoint is None:  # one that the restart read was whole for sure
            known = [saved for saved in attempt.whole if following.read & set(saved.files) and not saved.is_best]
            checkpoint = known[-1] if known else None
            step = self._step(checkpoint, saved_at) if checkpoint is not None else None
        read = tuple(sorted(following.read & (existing | set(saved_at))))
        first, is_bound = self._first(following)
        torn = {half.relative for half in attempt.half_written if half.why == "torn"}
        again = is_bound and step is not None and bool(self._steps) and self._trained_through(following, step)
        if again and first is not None:
            first, is_bound = min(first, *following.trained(self._main).values), False
        usable = first is not None and step is not None and not (is_bound and read)
        behind = usable and first is not None and step is not None and first <= step - 1
        started_over = checkpoint is not None and not read and following.reads_are_complete
        # One that was ended before it read or logged anything has not shown what it would have done.
        started_over = started_over and not (following.outcome == INTERRUPTED and first is None)
        if behind and self._steps and first is not None and first <= self._steps[0]:
            started_over = not read or self._as_undisturbed(following, first)
        elif first is not None and not is_bound and not behind and step is not None:
            started_over = False  # the log shows that it went on, wherever it keeps its state
        return Restart(
            attempt=attempt,
            next_attempt=following,
            interrupted_at=last,
            checkpoint=checkpoint,
            checkpoint_step=step,
            destroyed=checkpoint is None and any(saved_at.get(file) is not None for file in torn),
            first_step=first,
            is_bound=is_bound,
            read=read,
            started_over=started_over,
            lost_steps=step - first + 1 if behind and step is not None and first is not None else 0,
            trained_again=max(0, last - first + 1) if last is not None and first is not None else 0,
            had_ended=attempt.exit_code == 0 and last is not None and bool(self._steps) and last >= self._steps[-1],
        )

    def _newest(
        self, attempt: Attempt, following: Attempt, last: int | None, saved_at: dict[str, int | None]
    ) -> SavedCheckpoint | None:
        """The newest whole checkpoint that training had left behind, or that the next start went on from.

        One that is just done may not be announced yet; what goes on from it shows that it was.
        """
        behind = []
        for saved in attempt.whole:
            step = self._step(saved, saved_at)
            untouched = not any(file in attempt.saved_at for file in saved.files)
            was_left = untouched or step is None or last is None or step < last
            if was_left or self._went_on_from(saved, step, following):
                behind.append((step if step is not None else -1, saved))
        kinds = [pair for pair in behind if not pair[1].is_best] or behind
        fullest = max((saved.leaves for _, saved in kinds), default=0)
        kinds = [pair for pair in kinds if pair[1].leaves >= _SAME_KIND * fullest]
        return max(kinds, key=lambda pair: pair[0])[1] if kinds else None

    def _went_on_from(self, saved: SavedCheckpoint, step: int | None, following: Attempt) -> bool:
        """Whether a start read all of a checkpoint and trained nothing that came before it."""
        first, is_bound = self._first(following)
        nothing_before = first is None or (not is_bound and step is not None and first > step)
        return nothing_before and following.read >= {*saved.files}

    def _step(self, saved: SavedCheckpoint, saved_at: dict[str, int | None]) -> int | None:
        if self._on_scale and saved.step is not None:
            return saved.step
        noticed = [step for file in saved.files if (step := saved_at.get(file)) is not None]
        return max(noticed, default=None)

    def _first(self, following: Attempt) -> tuple[int | None, bool]:
        """The first step trained: from the main log, else from another that grew line by line, else a bound."""
        trained = following.trained(self._main)
        if trained.first is not None:
            return trained.first, False
        for series in self._alike:
            if (first := following.trained(series).first) is not None:
                return first, False
        return trained.first_at_most, True

    def _trained_through(self, following: Attempt, checkpoint_step: int) -> bool:
        """Whether the steps up to a checkpoint came one after another, as only training makes them.

        A log that is written anew has them too, all at once, where the program keeps what it had logged before.
        """
        first, last = self._steps[0], checkpoint_step - 1
        undisturbed_sec = self._undisturbed.trained(self._main).seconds_between(first, last)
        found_sec = following.trained(self._main).seconds_between(first, last)
        return undisturbed_sec > _MIN_TRAINING_SEC and found_sec > _TRAINING_SHARE * undisturbed_sec

    def why_training_was_not_seen(self, restart: Restart) -> str | None:
        """Why a restart that ended in the right files may not have trained them: they can have been copied.

        What is buffered is buffered in both runs, so it cannot come in four parts in one and all at once in the other.
        """
        behind = [step for step in self._steps if step > (restart.checkpoint_step or 0)]
        noticed = self._undisturbed.trained(self._main).noticed_sec
        parts = {noticed[step] for step in behind if step in noticed}
        needed_sec = max(parts, default=0.0) - min(parts, default=0.0)
        if len(parts) < _MIN_PARTS or needed_sec < _MIN_TRAINING_SEC:
            return None
        following = restart.next_attempt
        series = [self._main, *self._alike]
        came = {sec for one in series for step, sec in following.trained(one).noticed_sec.items() if step >= behind[0]}
        if following.outcome != FINISHED or len(came) > 1:
            return None
        how = "logged all at once" if came else "not logged at all"
        return (
            f"steps {behind[0]} to {behind[-1]} were {how} after the restart; undisturbed, they took {needed_sec:.1f} s"
        )

    def _as_undisturbed(self, following: Attempt, step: int) -> bool:
        """Whether the first step logged after the restart was the undisturbed run's step of that number."""
        return step not in self.unlike_undisturbed(following)

    def unlike_undisturbed(self, attempt: Attempt) -> list[int]:
        """The steps of an attempt at which a logged loss, or what is like one, is not the undisturbed run's."""
        return sorted(
            {
                step
                for series, step in self._unlike(attempt)
                if LOSS.search(series[1]) or LEARNING_RATE.search(series[1])
            }
        )

    def unsteady(self, attempt: Attempt) -> set[Series]:
        """Other metrics that differ in it: of an attempt that nothing had disturbed, they tell nothing."""
        return {series for series, _ in self._unlike(attempt)}

    def _unlike(self, attempt: Attempt) -> Iterator[tuple[Series, int]]:
        for series, trained in attempt.noticed.items():
            if series in self._left_out.metrics or is_clock_name(series[1]):
                continue
            for step, value in trained.values.items():
                expected = self._values.get(series, {}).get(step)
                if expected is not None and value == value and value not in expected:
                    yield series, step
