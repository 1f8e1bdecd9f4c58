"""What ``certify`` was asked to do, and what it found out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from neuromanifold_gpt.certify.attempt import FINISHED, INTERRUPTED, Attempt
from neuromanifold_gpt.certify.cause import Diagnosis
from neuromanifold_gpt.certify.command import Command
from neuromanifold_gpt.certify.compare import RunComparison, RunFiles
from neuromanifold_gpt.certify.determinism import Determinism
from neuromanifold_gpt.certify.interruptions import Interruption, Plan
from neuromanifold_gpt.certify.left_out import LeftOut
from neuromanifold_gpt.certify.restarts import Restart
from neuromanifold_gpt.certify.verdict import Judgement, Verdict, worst


@dataclass
class Run:
    """One run of the program from nothing to its end, with all its restarts."""

    name: str
    out: Path
    attempts: list[Attempt]
    interruption: Interruption | None = None
    tries: int = 1

    @property
    def files(self) -> RunFiles:
        """What it left behind."""
        return RunFiles(self.out, [attempt.stdout for attempt in self.attempts])

    @property
    def finished(self) -> bool:
        """Whether the last attempt ended with exit code 0."""
        return self.attempts[-1].outcome == FINISHED

    @property
    def interrupted(self) -> bool:
        """Whether it was interrupted at all."""
        return any(attempt.outcome == INTERRUPTED for attempt in self.attempts)

    @property
    def duration_sec(self) -> float:
        """Of all attempts."""
        return sum(attempt.duration_sec for attempt in self.attempts)


@dataclass
class InterruptedRun:
    """A run that was to be interrupted, and what is to be said of it."""

    run: Run
    judgement: Judgement
    restarts: list[Restart]
    comparison: RunComparison | None
    diagnosis: Diagnosis | None


@dataclass
class Settings:
    """What ``certify`` was asked to do.

    Attributes:
        work: directory for everything: runs, logs, reports. It must be empty, or of an earlier ``certify``.
        tolerance: largest relative difference that is EQUAL WITHIN rather than DIVERGED.
        stall_sec: how long a program may be silent; ``None``: ten minutes, later three undisturbed runs.
        second_look: repeat a divergence with torch's hooks switched on, to name its cause; the verdict stands before.
        max_restarts: starts that fail in a row before it is said not to resume.
    """

    command: Command
    plan: Plan
    work: Path
    max_minutes: float | None = None
    tolerance: float = 1e-6
    stall_sec: float | None = None
    grace_sec: float = 30.0
    second_look: bool = True
    max_restarts: int = 2


@dataclass
class Certificate:
    """Everything found out about a program."""

    settings: Settings
    undisturbed: list[Run] = field(default_factory=list)
    determinism: Determinism | None = None
    left_out: LeftOut = field(default_factory=LeftOut)
    interrupted: list[InterruptedRun] = field(default_factory=list)
    not_run: list[Interruption] = field(default_factory=list)
    duration_sec: float = 0.0

    @property
    def verdict(self) -> Verdict:
        """Of all interruptions: the most severe one."""
        if self.determinism is not None and not self.determinism.deterministic:
            return Verdict.NOT_DETERMINISTIC
        verdict = worst([run.judgement.verdict for run in self.interrupted])
        resumed = any(run.judgement.proves for run in self.interrupted)
        if verdict.severity <= Verdict.EQUAL_WITHIN.severity and (self.not_run or not resumed):
            return Verdict.NOT_PROVEN
        return verdict

    @property
    def why_not_proven(self) -> str:
        """Why no interruption, or not every one, tells anything."""
        if self.not_run:
            return f"{len(self.not_run)} interruptions were not made: no time was left (--max-minutes)"
        return "every interruption came before the first checkpoint, or none took place, so no resume was seen"

    @property
    def exact(self) -> bool:
        """Whether every interrupted run ended in the same bits as the undisturbed one."""
        return self.verdict is Verdict.EXACT


class Observer:
    """Hears what is being done; the default does nothing."""

    def planned(self, runs: int) -> None:
        """So many runs are to be done altogether, as far as is known."""

    def starts(self, what: str) -> None:
        """A run begins."""

    def at_step(self, attempt: int, step: int | None, of: int | None) -> None:
        """The running attempt has reached a step."""

    def looks_again(self) -> None:
        """A failure is repeated to find its cause."""

    def undisturbed(self, certificate: Certificate, run: Run) -> None:
        """An undisturbed run is over."""

    def interrupted(self, certificate: Certificate, found: InterruptedRun) -> None:
        """An interrupted run is over and judged."""
