"""One start of the program, watched, and ended at the right moment."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from neuromanifold_gpt.certify.artifacts import is_artifact_name
from neuromanifold_gpt.certify.command import Running
from neuromanifold_gpt.certify.inotify import Happened, TreeWatch
from neuromanifold_gpt.certify.interruptions import Trigger
from neuromanifold_gpt.certify.metrics import Series
from neuromanifold_gpt.certify.progress import Progress, Trained
from neuromanifold_gpt.certify.saves import ExpectedSaves, HalfWritten, SavedCheckpoint

_LOOK_SEC = 0.01
_MAX_SAVE_SEC = 0.5  # longer than that, an interruption at a step does not wait for a save to be over
_STDERR_SHOWN_LINES = 5

FINISHED, INTERRUPTED, FAILED, STALLED, OUT_OF_TIME = "finished", "interrupted", "failed", "stalled", "out of time"


@dataclass(frozen=True)
class Limits:
    """How long to wait.

    Attributes:
        stall_sec: without a new byte in the output directory, on stdout or on stderr.
        grace_sec: after SIGTERM, before SIGKILL.
        deadline_sec: on the monotonic clock, for everything.
    """

    stall_sec: float
    grace_sec: float
    deadline_sec: float


@dataclass
class Attempt:
    """What one start of the program did, as far as it could be seen from outside.

    Attributes:
        outcome: ``"finished"``, ``"interrupted"``, ``"failed"`` (by itself), ``"stalled"`` or ``"out of time"``.
        exit_code: negative: ended by that signal.
        trigger: what it was waiting for when it was interrupted.
        noticed: what each metric tells of the steps trained.
        watchable: the metric that followed training while it ran.
        half_written: files in the middle of a save when it ended.
        whole: checkpoints that were whole when it ended.
        saved_at: for each checkpoint saved, the step noticed when its last byte came.
        first_saved_sec: when, since the start, the first file was saved.
        read: files that it opened for reading.
    """

    number: int
    arguments: list[str]
    stdout: Path
    stderr: Path
    outcome: str = FINISHED
    exit_code: int | None = None
    duration_sec: float = 0.0
    trigger: Trigger | None = None
    noticed: dict[Series, Trained] = field(default_factory=dict)
    watchable: Series | None = None
    half_written: list[HalfWritten] = field(default_factory=list)
    whole: list[SavedCheckpoint] = field(default_factory=list)
    saved_at: dict[str, int | None] = field(default_factory=dict)
    first_saved_sec: float | None = None
    read: set[str] = field(default_factory=set)
    reads_are_complete: bool = True

    def trained(self, series: Series | None) -> Trained:
        """What one metric tells."""
        return self.noticed.get(series, Trained()) if series is not None else Trained()

    @property
    def last_words(self) -> str:
        """The last lines on stderr."""
        lines = [line for line in self.stderr.read_text(errors="replace").splitlines() if line.strip()]
        return "\n".join(lines[-_STDERR_SHOWN_LINES:])


class Watcher:
    """Starts the program, follows it, and interrupts it when a trigger says so.

    Args:
        out: the output directory.
        series: the metric that tells the step; ``None`` while that is not known.
        expected: what saved files look like.
        limits: how long to wait.
        choice: for the moment within a save.
        on_look: called now and then with the step noticed, for a progress bar.
    """

    def __init__(
        self,
        out: Path,
        series: Series | None,
        expected: ExpectedSaves,
        limits: Limits,
        choice: random.Random,
        on_look: Callable[[int | None], None],
    ) -> None:
        self._out = out
        self._series = series
        self._expected = expected
        self._limits = limits
        self._choice = choice
        self._on_look = on_look
        self._were_whole: set[str] = set()
        self._due_since_sec = float("inf")

    def run(self, attempt: Attempt, signal_name: str, environment: dict[str, str] | None = None) -> Attempt:
        """Run the attempt to its end, natural or not, and fill in what it did."""
        progress = Progress(self._out, attempt.stdout)
        watch = TreeWatch(self._out)  # behind the line above, which reads files: only the program's reading counts
        changed: set[str] = set()
        started_sec = time.monotonic()
        try:
            with Running(attempt.arguments, attempt.stdout, attempt.stderr, environment) as running:
                self._follow(attempt, running, watch, progress, changed, signal_name)
                attempt.duration_sec = time.monotonic() - started_sec
            self._take_in(attempt, watch.wait(0), progress, changed)
        finally:
            watch.close()
        attempt.noticed = progress.by_series
        attempt.watchable = progress.watchable()
        attempt.read -= progress.own_reads
        interrupted_in_save = attempt.trigger is not None and attempt.trigger.during_save
        if attempt.outcome == FINISHED:
            attempt.half_written = []
        elif not (attempt.outcome == INTERRUPTED and interrupted_in_save):  # then it was looked at in that moment
            attempt.half_written = self._expected.half_written(self._out, changed)
        attempt.whole = self._expected.whole(self._out)
        return attempt

    def _follow(
        self,
        attempt: Attempt,
        running: Running,
        watch: TreeWatch,
        progress: Progress,
        changed: set[str],
        signal_name: str,
    ) -> None:
        started_sec = quiet_since_sec = time.monotonic()
        printed_bytes = 0
        while True:
            exit_code = running.exit_code
            happened = watch.wait(_LOOK_SEC)
            self._take_in(attempt, happened, progress, changed)
            if attempt.saved_at and attempt.first_saved_sec is None:
                attempt.first_saved_sec = time.monotonic() - started_sec
            if exit_code is not None:
                attempt.exit_code = exit_code
                attempt.outcome = FINISHED if exit_code == 0 else FAILED
                return
            now_sec = time.monotonic()
            if self._is_due(attempt, now_sec - started_sec, progress, happened, running, watch, changed):
                self._interrupt(attempt, running, watch, progress, changed, signal_name)
                return
            self._on_look(progress.trained(self._series or progress.watchable()).last)
            printed = attempt.stdout.stat().st_size + attempt.stderr.stat().st_size
            if happened.changed or printed != printed_bytes:
                quiet_since_sec, printed_bytes = now_sec, printed
            for limit_sec, outcome in (
                (quiet_since_sec + self._limits.stall_sec, STALLED),
                (self._limits.deadline_sec, OUT_OF_TIME),
            ):
                if now_sec > limit_sec:
                    attempt.outcome = outcome
                    running.kill()
                    attempt.exit_code = running.exit_code
                    return

    def _take_in(self, attempt: Attempt, happened: Happened, progress: Progress, changed: set[str]) -> None:
        # The step before what is new is noticed: a save may have been done for long when its log is read.
        last = progress.trained(self._series or progress.watchable()).last
        progress.notice(happened.changed)
        saved = [relative for relative in happened.changed if is_artifact_name(relative)]
        changed.update(saved)
        attempt.read |= {relative for relative in happened.read if is_artifact_name(relative)}
        attempt.reads_are_complete &= not happened.overflowed
        attempt.saved_at.update(dict.fromkeys(saved, last))

    def _is_due(
        self,
        attempt: Attempt,
        elapsed_sec: float,
        progress: Progress,
        happened: Happened,
        running: Running,
        watch: TreeWatch,
        changed: set[str],
    ) -> bool:
        trigger = attempt.trigger
        if trigger is None:
            return False
        if not trigger.during_save:
            last = progress.trained(self._series).last
            reached = last is not None and trigger.step is not None and last >= trigger.step
            if not reached and (trigger.after_sec is None or elapsed_sec < trigger.after_sec):
                return False
            self._due_since_sec = min(self._due_since_sec, elapsed_sec)
            return self._is_between_saves(attempt, running, watch, progress, changed, elapsed_sec)
        saving = [relative for relative in happened.changed if is_artifact_name(relative)]
        if not saving or (self._series is not None and progress.trained(self._series).last is None):
            return False  # before its first step a program tidies up and tries whether it can write; it saves nothing
        # Held where it is, so that what is seen now is what a kill leaves behind.
        running.stop()
        self._take_in(attempt, watch.wait(0), progress, changed)
        found = self._is_in_a_save(attempt, trigger, saving, changed)
        watch.wait(0)  # what was read just now was read by us
        if not found:
            running.go_on()
        return found

    def _is_between_saves(
        self,
        attempt: Attempt,
        running: Running,
        watch: TreeWatch,
        progress: Progress,
        changed: set[str],
        elapsed_sec: float,
    ) -> bool:
        """Whether no file is half-written: logs often tell a step in the middle of its save, which is another test."""
        running.stop()
        self._take_in(attempt, watch.wait(0), progress, changed)
        halves = self._expected.half_written(self._out, changed)
        watch.wait(0)  # what was read just now was read by us
        if halves and elapsed_sec < self._due_since_sec + _MAX_SAVE_SEC:
            running.go_on()
            return False
        return True

    def _is_in_a_save(self, attempt: Attempt, trigger: Trigger, saving: list[str], changed: set[str]) -> bool:
        attempt.half_written = self._expected.half_written(self._out, changed)
        halves = {half.relative for half in attempt.half_written}
        whole = [saved for saved in self._expected.whole(self._out) if not halves & set(saved.files)]
        others = [saved for saved in whole if not set(saving) & set(saved.files)]
        # A program's only file, torn while it is overwritten, has no other beside it.
        overwriting = bool(self._were_whole & (halves if trigger.patience < 2 else set(saving)))
        self._were_whole |= {file for saved in whole for file in saved.files}
        if trigger.patience == 2:
            return bool(others) or overwriting
        if not halves or not (overwriting or others):
            return False
        return trigger.patience > 0 or self._choice.random() < 0.5

    def _interrupt(
        self,
        attempt: Attempt,
        running: Running,
        watch: TreeWatch,
        progress: Progress,
        changed: set[str],
        signal_name: str,
    ) -> None:
        attempt.outcome = INTERRUPTED
        if signal_name == "TERM":
            running.terminate()
            running.go_on()
            deadline_sec = time.monotonic() + self._limits.grace_sec
            while running.exit_code is None and time.monotonic() < deadline_sec:
                self._take_in(attempt, watch.wait(_LOOK_SEC), progress, changed)
        ended_by_itself = running.exit_code
        running.kill()
        attempt.exit_code = running.exit_code if ended_by_itself is None else ended_by_itself
