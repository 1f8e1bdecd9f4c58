"""``certify(...)`` as a function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from neuromanifold_gpt.certify.certificate import Certificate, Observer, Settings
from neuromanifold_gpt.certify.command import Command
from neuromanifold_gpt.certify.interruptions import Plan
from neuromanifold_gpt.certify.report_html import write_html
from neuromanifold_gpt.certify.report_json import write_report
from neuromanifold_gpt.certify.report_junit import write_junit
from neuromanifold_gpt.certify.report_terminal import TerminalObserver, summary
from neuromanifold_gpt.certify.run import Certification


def certify(
    command: Sequence[str] | str,
    *,
    work: str | Path,
    resume_command: Sequence[str] | str | None = None,
    at_steps: Sequence[int] = (),
    at_random: int = 0,
    during_save: int = 0,
    every_step: bool = False,
    times: int = 1,
    signals: Sequence[str] = ("KILL",),
    seed: int = 0,
    max_minutes: float | None = None,
    tolerance: float = 1e-6,
    stall_sec: float | None = None,
    grace_sec: float = 30.0,
    second_look: bool = True,
    junit: str | Path | None = None,
    verbose: bool = False,
) -> Certificate:
    """Interrupt a training command, let it resume, and compare with the same command undisturbed.

    Args:
        command: starts the training, with ``{out}`` where it takes its output directory.
        work: directory for all runs and reports; empty, or of an earlier call.
        resume_command: starts it again; ``None``: the same command.
        at_steps, at_random, during_save, every_step: where to interrupt, one run each; at two random steps and once
            during a save if nothing is said.
        times: interruptions in one run.
        signals: ``"KILL"`` and ``"TERM"``.
        seed: of the random choices.
        max_minutes: for everything; what could not be done by then is not proven.
        tolerance: largest relative difference that is EQUAL WITHIN rather than DIVERGED.
        stall_sec: how long the command may be silent.
        grace_sec: how long it has after SIGTERM.
        second_look: repeat a divergence with torch's hooks switched on, to name its cause.
        junit: write the verdicts there as JUnit XML too.
        verbose: print what ``neuromanifold certify`` prints.

    Returns:
        The certificate. ``certificate.exact`` says whether every run ended in the same bits; ``work`` has
        report.json and report.html.

    Raises:
        PlanError: the command or the options cannot be used.
        CommandFailedError: the command fails undisturbed.
    """
    plan = Plan(
        at_steps=tuple(at_steps),
        at_random=at_random,
        during_save=during_save,
        every_step=every_step,
        times=times,
        signal_names=tuple(signals),
        seed=seed,
    )
    if plan.is_empty:
        plan = replace(plan, at_random=2, during_save=1)
    settings = Settings(
        command=Command.parse(command, resume_command),
        plan=plan,
        work=Path(work),
        max_minutes=max_minutes,
        tolerance=tolerance,
        stall_sec=stall_sec,
        grace_sec=grace_sec,
        second_look=second_look,
    )
    observer = TerminalObserver() if verbose else Observer()
    if isinstance(observer, TerminalObserver):
        observer.heading(settings.command.start)
    certificate = Certification(settings, observer).certify()
    write_report(certificate, Path(work).resolve())
    page = write_html(certificate, Path(work).resolve())
    if junit is not None:
        write_junit(certificate, Path(junit))
    if verbose:
        print(summary(certificate))
        print(f"Report: {page}")
    return certificate
