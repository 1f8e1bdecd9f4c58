"""Certify: run undisturbed, interrupt, compare, judge."""

from __future__ import annotations

import os
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

from neuromanifold_gpt.certify.attempt import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    OUT_OF_TIME,
    STALLED,
    Attempt,
    Limits,
    Watcher,
)
from neuromanifold_gpt.certify.cause import Diagnosis, better
from neuromanifold_gpt.certify.certificate import Certificate, InterruptedRun, Observer, Run, Settings
from neuromanifold_gpt.certify.command import require_linux
from neuromanifold_gpt.certify.compare import compare_runs
from neuromanifold_gpt.certify.determinism import determinism
from neuromanifold_gpt.certify.diagnosis import Diagnoser
from neuromanifold_gpt.certify.errors import CommandFailedError, PlanError
from neuromanifold_gpt.certify.interruptions import Interruption, Trigger
from neuromanifold_gpt.certify.left_out import names_left_out
from neuromanifold_gpt.certify.metrics import Series
from neuromanifold_gpt.certify.restarts import RestartReader
from neuromanifold_gpt.certify.saves import ExpectedSaves
from neuromanifold_gpt.certify.second_look import GRADIENTS, diagnose_traces, ranks, read_trace, tracing_environment
from neuromanifold_gpt.certify.verdict import Verdict, judge

_TRIES = 3
_MARKER = ".neuromanifold-certify"
_FIRST_STALL_SEC = 600.0
_MIN_STALL_SEC = 60.0
_MAX_SECOND_LOOKS = 3


class Certification:
    """Carries a plan out.

    Args:
        known: an earlier certificate of the same command, whose undisturbed runs stand for new ones.

    Raises:
        PlanError: the work directory holds something else.
    """

    def __init__(self, settings: Settings, observer: Observer, known: Certificate | None = None) -> None:
        require_linux()
        self._settings = settings
        self._observer = observer
        self._work = _empty_directory(settings.work)
        self._out = self._work / "out"
        minutes = settings.max_minutes
        self._deadline_sec = time.monotonic() + (minutes * 60 if minutes is not None else float("inf"))
        self._series: Series | None = None
        self._last_step: int | None = None
        self._expected = ExpectedSaves(None)
        self._stall_sec = settings.stall_sec or _FIRST_STALL_SEC
        self._choice = random.Random(settings.plan.seed)
        self._traced: Attempt | None = None
        self._looks_left = _MAX_SECOND_LOOKS if settings.second_look else 0
        self.certificate = Certificate(settings)
        if known is not None:
            self.certificate.undisturbed = known.undisturbed
            self.certificate.determinism = known.determinism
            self.certificate.left_out = known.left_out

    def certify(self) -> Certificate:
        """Run everything, and judge.

        Raises:
            CommandFailedError: the command fails undisturbed.
        """
        started_sec = time.monotonic()
        found = self.certificate
        if found.undisturbed:
            self._learn(found.undisturbed[0])
        else:
            self._run_undisturbed()
        if found.determinism is not None and found.determinism.deterministic:
            interruptions = self._planned()
            self._observer.planned(len(interruptions) + 2)
            reader = RestartReader(found.undisturbed[0].files, found.undisturbed[0].attempts[0], found.left_out)
            for number, interruption in enumerate(interruptions, start=1):
                if time.monotonic() > self._deadline_sec:
                    found.not_run = interruptions[number - 1 :]
                    break
                self._observer.starts(f"[Interruption {number}/{len(interruptions)}] {interruption}")
                result = self._judged(self._interrupted(number, interruption), reader)
                found.interrupted.append(result)
                self._observer.interrupted(found, result)
        found.duration_sec = time.monotonic() - started_sec
        return found

    def _run_undisturbed(self) -> None:
        found = self.certificate
        self._observer.planned(2 + max(1, len(self._planned()) if not self._settings.plan.every_step else 1))
        for number in (1, 2):
            self._observer.starts(f"[Run {number}] Undisturbed{' again' if number == 2 else ''}")
            run = self._run(f"undisturbed-{number}", None)
            if not run.finished:
                raise _failed(run)
            found.undisturbed.append(run)
            if number == 1:
                self._learn(run)
            else:
                comparison = compare_runs(found.undisturbed[0].files, run.files)
                found.left_out = names_left_out(comparison)
                found.determinism = determinism(comparison)
            self._observer.undisturbed(found, run)

    def _learn(self, run: Run) -> None:
        """What the first undisturbed run tells of how to watch the others."""
        files = run.files
        attempt = run.attempts[0]
        self._expected = ExpectedSaves(files, attempt.saved_at)
        main = files.log.main_series
        self._series = main if attempt.trained(main).is_live else attempt.watchable
        self._last_step = attempt.trained(self._series).last
        if self._settings.stall_sec is None:
            self._stall_sec = max(_MIN_STALL_SEC, 3 * run.duration_sec)

    def _planned(self) -> list[Interruption]:
        if not self.certificate.undisturbed:
            return self._settings.plan.interruptions([], None, (0.0, 1.0))
        attempt = self.certificate.undisturbed[0].attempts[0]
        steps = sorted(attempt.trained(self._series).values)
        window_sec = attempt.first_saved_sec or 0.5 * attempt.duration_sec, attempt.duration_sec
        saves = [step for step in attempt.saved_at.values() if step is not None]
        return self._settings.plan.interruptions(steps, min(saves, default=None), window_sec)

    def _interrupted(self, number: int, interruption: Interruption) -> Run:
        """Run and interrupt; if the program ends before, try again a little earlier."""
        for tries in range(1, _TRIES + 1):
            run = self._run(f"interrupted-{number}", interruption)
            run.tries = tries
            if run.interrupted or not run.finished or time.monotonic() > self._deadline_sec:
                break
            triggers = tuple(trigger.eager(tries) for trigger in interruption.triggers)
            interruption = Interruption(triggers, interruption.signal_name)
        return run

    def _run(self, name: str, interruption: Interruption | None, *, traced: bool = False) -> Run:
        logs = self._work / "runs" / name
        shutil.rmtree(logs, ignore_errors=True)
        shutil.rmtree(self._out, ignore_errors=True)
        logs.mkdir(parents=True)
        self._out.mkdir()
        triggers = list(interruption.triggers) if interruption is not None else []
        signal_name = interruption.signal_name if interruption is not None else "KILL"
        attempts: list[Attempt] = []
        failures = 0
        while True:
            attempt = self._attempt(logs, len(attempts) + 1, triggers.pop(0) if triggers else None, signal_name, traced)
            attempts.append(attempt)
            failures = failures + 1 if attempt.outcome == FAILED else 0
            if attempt.outcome in (FINISHED, STALLED, OUT_OF_TIME) or failures >= self._settings.max_restarts:
                break
            if attempt.outcome == FAILED and not any(one.outcome == INTERRUPTED for one in attempts):
                break
        self._out.rename(logs / "out")
        return Run(name, logs / "out", attempts, interruption)

    def _attempt(self, logs: Path, number: int, trigger: Trigger | None, signal_name: str, traced: bool) -> Attempt:
        limits = Limits(self._stall_sec, self._settings.grace_sec, self._deadline_sec)
        watcher = Watcher(
            self._out,
            self._series,
            self._expected,
            limits,
            self._choice,
            lambda step: self._observer.at_step(number, step, self._last_step),
        )
        arguments = self._settings.command.arguments(self._out, resuming=number > 1)
        attempt = Attempt(
            number, arguments, logs / f"attempt-{number}.stdout", logs / f"attempt-{number}.stderr", trigger=trigger
        )
        python_path = os.environ.get("PYTHONPATH", "")
        return watcher.run(attempt, signal_name, tracing_environment(_trace(attempt), python_path) if traced else None)

    def _judged(self, run: Run, reader: RestartReader) -> InterruptedRun:
        found = self.certificate
        undisturbed = found.undisturbed[0].files
        restarts = reader.read(run.attempts)
        left_out = replace(found.left_out, metrics=found.left_out.metrics | reader.unsteady(run.attempts[0]))
        comparison = left_out.without(compare_runs(undisturbed, run.files)) if run.finished else None
        judgement = judge(run.attempts, restarts, comparison, undisturbed, reader, self._settings.tolerance)
        diagnosis = None
        if comparison is not None and judgement.verdict in (Verdict.DIVERGED, Verdict.EQUAL_WITHIN):
            diagnosis = Diagnoser(comparison, restarts, undisturbed).diagnose()
            diagnosis = better(diagnosis, self._second_look(run, reader))
        if judgement.verdict is Verdict.EXACT:  # its logs stay, for the curves; HF Trainer's are in JSON
            for artifact in run.files.artifacts.values():
                if artifact.path.suffix != ".json":
                    artifact.path.unlink()
        return InterruptedRun(run, judgement, restarts, comparison, diagnosis)

    def _second_look(self, run: Run, reader: RestartReader) -> Diagnosis | None:
        """Repeat a failure traced; ``None`` if the program is not of torch, or nothing could be told."""
        interruption = run.interruption
        if interruption is None or self._looks_left == 0 or time.monotonic() > self._deadline_sec:
            return None
        self._looks_left -= 1
        if self._traced is None:
            self._observer.looks_again()
            self._traced = self._run("traced-undisturbed", None, traced=True).attempts[0]
        if not ranks(_trace(self._traced)):
            return None
        for triggers in (interruption.triggers, tuple(trigger.later() for trigger in interruption.triggers)):
            repeated = Interruption(triggers, interruption.signal_name)
            again = self._run(f"traced-{run.name}", repeated, traced=True)
            restarts = reader.read(again.attempts)
            if again.finished and len(restarts) == 1:
                break
        else:
            return None
        files = self.certificate.undisturbed[0].files
        undisturbed = _trace(self._traced)
        found: Diagnosis | None = None
        for rank in ranks(undisturbed):
            diagnosis = diagnose_traces(
                read_trace(undisturbed, rank),
                read_trace(_trace(restarts[0].attempt), rank),
                read_trace(_trace(again.attempts[-1]), rank),
                None if restarts[0].is_bound else restarts[0].first_step,
                files.log.main_steps(),
            )
            if found is None:
                found = diagnosis
            if diagnosis is not None and diagnosis.component != GRADIENTS:
                if rank:
                    diagnosis = replace(diagnosis, sentence=f"on rank {rank}, {diagnosis.sentence}")
                return diagnosis  # averaged gradients differ on every rank, what made them differ may on one alone
        return found


def _trace(attempt: Attempt) -> Path:
    return attempt.stdout.with_name(f"attempt-{attempt.number}.trace")


def _failed(run: Run) -> CommandFailedError:
    attempt = run.attempts[-1]
    how = {
        FAILED: f"exit code {attempt.exit_code}",
        STALLED: "no output for too long (--stall-sec)",
        OUT_OF_TIME: "no time left (--max-minutes)",
    }[attempt.outcome]
    return CommandFailedError(
        f"{run.name}: the command must end with exit code 0 when nobody interrupts it; found {how}. "
        f"Its last words, in {attempt.stderr}:\n{attempt.last_words}"
    )


def _empty_directory(work: Path) -> Path:
    work = work.resolve()
    if work.exists() and not (work / _MARKER).exists() and (not work.is_dir() or any(work.iterdir())):
        raise PlanError(f"{work}: expected an empty directory, or one that certify made; give another one.")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / _MARKER).touch()
    return work
