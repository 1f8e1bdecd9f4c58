"""``report.json``: everything found out, for programs. docs/certify.md has the schema."""

from __future__ import annotations

import json
import math
import platform
import shlex
from pathlib import Path
from typing import Any

from neuromanifold_gpt.certify.attempt import Attempt
from neuromanifold_gpt.certify.certificate import Certificate, InterruptedRun, Run
from neuromanifold_gpt.certify.command import Command
from neuromanifold_gpt.certify.compare import FileComparison, MetricDifference
from neuromanifold_gpt.certify.interruptions import Trigger
from neuromanifold_gpt.certify.restarts import Restart
from neuromanifold_gpt.certify.trees import LeafDifference
from neuromanifold_gpt.checkpoint.environment import current_environment

SCHEMA_VERSION = 1
_SHOWN_DIFFERENCES = 200


def report(certificate: Certificate) -> dict[str, Any]:
    """The report as plain JSON values."""
    settings = certificate.settings
    found = certificate.determinism
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": str(certificate.verdict),
        "command": list(settings.command.start),
        "resume_command": list(settings.command.resume),
        "duration_sec": round(certificate.duration_sec, 3),
        "environment": environment(),
        "undisturbed": [_run(run) for run in certificate.undisturbed],
        "determinism": None
        if found is None
        else {
            "deterministic": found.deterministic,
            "first_step": found.first_step,
            "differing": found.differing,
            "left_out": found.left_out,
            "files": found.files,
            "saved_values": found.leaves,
            "logged_values": found.values,
        },
        "interruptions": [_interrupted(one, settings.command) for one in certificate.interrupted],
        "not_run": [str(interruption) for interruption in certificate.not_run],
    }


def environment() -> dict[str, Any]:
    """Where it was certified."""
    return {**current_environment(), "python": platform.python_version(), "system": platform.platform()}


def write_report(certificate: Certificate, directory: Path) -> Path:
    """Write ``report.json``; returns its path."""
    path = directory / "report.json"
    path.write_text(json.dumps(_finite(report(certificate)), indent=1, allow_nan=False) + "\n")
    return path


def repeat_command(found: InterruptedRun, command: Command) -> str:
    """The command line that repeats one interruption alone."""
    words = ["neuromanifold", "certify"]
    interruption = found.run.interruption
    if interruption is not None:
        words += _trigger_options(interruption.triggers[0], found.restarts)
        words += ["--times", str(len(interruption.triggers))] if len(interruption.triggers) > 1 else []
        words += ["--signal", interruption.signal_name]
    if command.resume != command.start:
        words += ["--resume-cmd", shlex.join(command.resume)]
    return shlex.join([*words, "--", *command.start])


def _trigger_options(trigger: Trigger, restarts: list[Restart]) -> list[str]:
    if trigger.during_save:
        return ["--during-save"]
    if trigger.step is not None:
        return ["--at-step", str(trigger.step)]
    noticed = next((restart.interrupted_at for restart in restarts if restart.interrupted_at is not None), None)
    return ["--at-step", str(noticed)] if noticed is not None else ["--at-random", "1"]


def _interrupted(found: InterruptedRun, command: Command) -> dict[str, Any]:
    judgement, comparison = found.judgement, found.comparison
    within = judgement.within
    return {
        "interruption": str(found.run.interruption),
        "verdict": str(judgement.verdict),
        "proves_a_resume": judgement.proves,
        "reasons": judgement.reasons,
        "notes": judgement.notes,
        "first_step": judgement.first_step,
        "largest": None if within is None else {"absolute": within[0], "relative": within[1], "ulps": within[2]},
        "diagnosis": None
        if found.diagnosis is None
        else {
            "component": found.diagnosis.component,
            "sentence": found.diagnosis.sentence,
            "evidence": found.diagnosis.evidence,
        },
        "restarts": [_restart(restart) for restart in found.restarts],
        "files": [] if comparison is None else [_file(file) for file in comparison.files],
        "metric_differences": []
        if comparison is None
        else [_metric(difference) for difference in comparison.metric_differences[:_SHOWN_DIFFERENCES]],
        "missing_steps": {} if comparison is None else comparison.missing_steps,
        "repeated_steps": {} if comparison is None else comparison.repeated_steps,
        "files_only_there": [] if comparison is None else comparison.only_there,
        "repeat": repeat_command(found, command),
        **_run(found.run),
    }


def _run(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "directory": str(run.out),
        "tries": run.tries,
        "duration_sec": round(run.duration_sec, 3),
        "attempts": [_attempt(attempt) for attempt in run.attempts],
    }


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "number": attempt.number,
        "arguments": attempt.arguments,
        "outcome": attempt.outcome,
        "exit_code": attempt.exit_code,
        "duration_sec": round(attempt.duration_sec, 3),
        "trigger": None if attempt.trigger is None else str(attempt.trigger),
        "half_written": [
            {"file": half.relative, "size_bytes": half.size_bytes, "why": half.why} for half in attempt.half_written
        ],
        "whole_checkpoints": [{"name": saved.name, "step": saved.step} for saved in attempt.whole],
        "stdout": str(attempt.stdout),
        "stderr": str(attempt.stderr),
    }


def _restart(restart: Restart) -> dict[str, Any]:
    return {
        "attempt": restart.attempt.number,
        "interrupted_at_step": restart.interrupted_at,
        "checkpoint": None if restart.checkpoint is None else restart.checkpoint.name,
        "checkpoint_step": restart.checkpoint_step,
        "only_checkpoint_destroyed": restart.destroyed,
        "first_step": restart.first_step,
        "first_step_is_bound": restart.is_bound,
        "files_read": list(restart.read),
        "started_over": restart.started_over,
        "lost_steps": restart.lost_steps,
        "steps_trained_again": restart.trained_again,
    }


def _file(file: FileComparison) -> dict[str, Any]:
    return {
        "file": file.relative,
        "step": file.step,
        "state": file.state,
        "reason": file.reason,
        "renamed": file.renamed,
        "values": file.leaves,
        "differences": [_leaf(leaf) for leaf in file.differences[:_SHOWN_DIFFERENCES]],
        "differences_total": len(file.differences),
    }


def _leaf(leaf: LeafDifference) -> dict[str, Any]:
    return {
        "path": leaf.path,
        "component": leaf.component,
        "expected": leaf.expected,
        "found": leaf.found,
        "largest_absolute": leaf.largest_absolute,
        "largest_relative": leaf.largest_relative,
        "largest_ulps": leaf.largest_ulps,
        "differing_elements": leaf.differing,
        "elements": leaf.elements,
    }


def _metric(difference: MetricDifference) -> dict[str, Any]:
    return {
        "source": difference.source,
        "name": difference.name,
        "step": difference.step,
        "expected": difference.expected,
        "found": difference.found,
    }


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are written as strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
