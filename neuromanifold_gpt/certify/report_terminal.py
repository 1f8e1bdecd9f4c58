"""Tell on the terminal what is being done and what came out of it."""

from __future__ import annotations

import shlex
import sys
import time
from typing import Any, TextIO

from neuromanifold_gpt.certify.attempt import INTERRUPTED, Attempt
from neuromanifold_gpt.certify.certificate import Certificate, InterruptedRun, Observer, Run
from neuromanifold_gpt.certify.determinism import USUAL_CAUSES
from neuromanifold_gpt.certify.restarts import Restart
from neuromanifold_gpt.certify.verdict import Judgement, Verdict

RULE = "=" * 70
_REFRESH_SEC = 0.2


class TerminalObserver(Observer):
    """Prints a paragraph for each run, and beneath it, on a terminal, a line that says how far the present one is.

    Args:
        to: where to print.
        show_progress: draw the line that changes; without one, it is drawn on a terminal.
    """

    def __init__(self, to: TextIO | None = None, *, show_progress: bool | None = None) -> None:
        self._to = to or sys.stdout
        self._shows_progress = self._to.isatty() if show_progress is None else show_progress
        self._bar: Any = None
        self._runs = 0
        self._done = 0
        self._durations_sec: list[float] = []
        self._drawn_sec = 0.0
        self._started_sec = time.monotonic()

    def heading(self, arguments: tuple[str, ...]) -> None:
        """Say what is certified."""
        self._say(f"{RULE}\nCertifying: {shlex.join(arguments)}\n{RULE}")

    def planned(self, runs: int) -> None:
        """Note how many runs there will be."""
        self._runs = runs

    def starts(self, what: str) -> None:
        """Begin a paragraph."""
        self._say(f"\n{what}...")
        self._started_sec = time.monotonic()

    def at_step(self, attempt: int, step: int | None, of: int | None) -> None:
        """Draw the line: which run of how many, at which step, and how long all may still take."""
        now_sec = time.monotonic()
        if not self._shows_progress or now_sec - self._drawn_sec < _REFRESH_SEC:
            return
        self._drawn_sec = now_sec
        done = self._done + (min(1.0, step / of) if step and of else 0.0)
        where = (
            f"step {step} of {of}"
            if step and of
            else f"step {step}"
            if step
            else f"{now_sec - self._started_sec:.0f} s"
        )
        left = ""
        if self._durations_sec:
            left_sec = max(0.0, (self._runs - done) * sum(self._durations_sec) / len(self._durations_sec))
            left = f", about {_duration(left_sec)} left"
        filled = round(20 * done / max(self._runs, 1))
        bar = "█" * filled + "░" * (20 - filled)
        self._to.write(f"\r\033[K  {bar} run {self._done + 1} of {self._runs}, start {attempt}, {where}{left}")
        self._to.flush()

    def looks_again(self) -> None:
        """Say why there are more runs than planned."""
        self._say("  - Repeating it with torch's hooks switched on, to find the cause...")

    def undisturbed(self, certificate: Certificate, run: Run) -> None:
        """What an undisturbed run left, and after the second one, whether both agree."""
        self._over(run)
        for line in undisturbed_lines(certificate, run):
            self._say(line)

    def interrupted(self, certificate: Certificate, found: InterruptedRun) -> None:
        """What happened to an interrupted run."""
        self._over(found.run)
        for line in interrupted_lines(found):
            self._say(line)

    def _over(self, run: Run) -> None:
        self._done += 1
        self._durations_sec.append(run.duration_sec)

    def _say(self, text: str) -> None:
        if self._shows_progress:
            self._to.write("\r\033[K")
        self._to.write(text + "\n")
        self._to.flush()


def undisturbed_lines(certificate: Certificate, run: Run) -> list[str]:
    """A paragraph on an undisturbed run."""
    files = run.files
    source = files.log.main_source
    steps = f"{len(files.log.main_steps())} steps in {source}" if source is not None else "no log of steps"
    lines = [f"  ✓ Finished in {_duration(run.duration_sec)}: {steps}, {len(files.units)} checkpoints or further files"]
    found = certificate.determinism
    if found is None:
        return lines
    if found.deterministic:
        lines.append(
            f"  ✓ Deterministic: {found.leaves} saved values and {found.values} logged ones equal in every bit"
        )
    else:
        since = f", from step {found.first_step}" if found.first_step is not None else ""
        lines.append(
            f"  ✗ NOT DETERMINISTIC{since}: two undisturbed runs differ, so nothing can be said of resumed ones"
        )
        lines += [f"    {what}" for what in found.differing]
        lines += ["    The usual causes:", *(f"    - {cause}" for cause in USUAL_CAUSES)]
    if found.left_out:
        shown = ", ".join(found.left_out[:8]) + (
            f" and {len(found.left_out) - 8} more" if len(found.left_out) > 8 else ""
        )
        lines.append(f"  - Left out, since undisturbed runs differ in it: {shown}")
    return lines


def interrupted_lines(found: InterruptedRun) -> list[str]:
    """A paragraph on an interrupted run."""
    lines = []
    restarts = {restart.attempt.number: restart for restart in found.restarts}
    for attempt in found.run.attempts:
        if attempt.outcome == INTERRUPTED:
            lines += _interruption(attempt, restarts.get(attempt.number))
        elif attempt.outcome == "finished":
            lines.append(f"  ✓ Finished by itself (start {attempt.number}, exit code 0)")
        else:
            lines.append(f"  ✗ Start {attempt.number}: {attempt.outcome}, exit code {attempt.exit_code}")
    lines += [f"  - {note}" for note in found.judgement.notes]
    lines.append(f"  {mark(found.judgement.verdict)} {verdict_text(found.judgement)}")
    lines += [f"    {reason}" for reason in found.judgement.reasons]
    if found.diagnosis is not None:
        lines.append(f"    First went: {found.diagnosis.component}: {found.diagnosis.sentence}")
        lines += [f"      {evidence}" for evidence in found.diagnosis.evidence]
    return lines


def _interruption(attempt: Attempt, restart: Restart | None) -> list[str]:
    where = restart.interrupted_at if restart is not None else None
    at = f"at step {where}" if where is not None else "before a step was noticed"
    halves = f"; half-written: {', '.join(map(str, attempt.half_written))}" if attempt.half_written else ""
    if attempt.trigger is not None and attempt.trigger.during_save and not attempt.half_written:
        halves = "; no half-written file was seen in the output directory"
    lines = [f"  ✓ Ended {at} (exit code {attempt.exit_code}){halves}"]
    if restart is None:
        return lines
    if restart.checkpoint is not None:
        name, step = restart.checkpoint.name, restart.checkpoint_step
        lines.append(f"  - Newest whole checkpoint: {name}{f' (step {step})' if name != f'step {step}' else ''}")
    if restart.first_step is not None:
        bound = "at or before step" if restart.is_bound else "with step"
        lines.append(f"  - Went on {bound} {restart.first_step}; {restart.trained_again} steps trained again")
    if restart.read:
        more = f" and {len(restart.read) - 4} more" if len(restart.read) > 4 else ""
        lines.append(f"  - Read: {', '.join(restart.read[:4])}{more}")
    return lines


def account(certificate: Certificate) -> str:
    """Everything that was said while it was done, and the summary."""
    lines: list[str] = []
    for number, run in enumerate(certificate.undisturbed, start=1):
        lines += [f"[Run {number}] Undisturbed", *undisturbed_lines(certificate, run)]
    for number, found in enumerate(certificate.interrupted, start=1):
        lines += [f"[Interruption {number}] {found.run.interruption}", *interrupted_lines(found)]
    return "\n".join(lines) + summary(certificate)


def summary(certificate: Certificate) -> str:
    """The verdicts of all interruptions, and the one of the program."""
    lines = ["", RULE, "Verdict", RULE]
    for number, found in enumerate(certificate.interrupted, start=1):
        text = verdict_text(found.judgement)
        lines.append(f"{number}. {found.run.interruption}: {mark(found.judgement.verdict)} {text}")
    lines += [f"-  {interruption}: not made, no time was left" for interruption in certificate.not_run]
    lines.append(RULE)
    tick = "✅" if certificate.exact else "❌"
    lines.append(f"\n{tick} {certificate.verdict}: {conclusion(certificate)}")
    return "\n".join(lines)


def conclusion(certificate: Certificate) -> str:
    """The verdict in a sentence."""
    found = [run.judgement.verdict for run in certificate.interrupted]
    verdict = certificate.verdict
    if verdict is Verdict.NOT_DETERMINISTIC and not found:
        return "two undisturbed runs of the program differ"
    if verdict is Verdict.NOT_PROVEN and verdict not in found:
        return certificate.why_not_proven
    if verdict is Verdict.EXACT:
        return "every interrupted run ended in the same bits as the undisturbed one"
    return f"so ended {found.count(verdict)} of {len(found)} interrupted runs"


def verdict_text(judgement: Judgement) -> str:
    """The verdict with its numbers."""
    text = str(judgement.verdict)
    if judgement.within is not None:
        absolute, relative, ulps = judgement.within
        apart = f"absolute {absolute:.3g}, relative {relative:.3g}" + (f", {ulps:.3g} ULPs" if ulps is not None else "")
        text += f" {absolute:.3g} ({apart})" if judgement.verdict is Verdict.EQUAL_WITHIN else f" (largest: {apart})"
    if judgement.first_step is not None:
        text += f", first at step {judgement.first_step}"
    return text


def mark(verdict: Verdict) -> str:
    """A tick or a cross."""
    return "✓" if verdict is Verdict.EXACT else "✗"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"
