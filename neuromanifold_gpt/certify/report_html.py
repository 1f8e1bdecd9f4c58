"""``report.html``: one file that needs no network, readable on a phone and from the keyboard, light and dark."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from neuromanifold_gpt.certify.certificate import Certificate, InterruptedRun
from neuromanifold_gpt.certify.compare import FileComparison
from neuromanifold_gpt.certify.report_charts import MAX_RUNS, charts
from neuromanifold_gpt.certify.report_json import environment, repeat_command
from neuromanifold_gpt.certify.report_terminal import conclusion, interrupted_lines, undisturbed_lines, verdict_text
from neuromanifold_gpt.certify.trees import LeafDifference
from neuromanifold_gpt.certify.verdict import Verdict

_MAX_LEAVES = 60
_UNSURE = (Verdict.NOT_PROVEN, Verdict.NOT_DETERMINISTIC, Verdict.EQUAL_WITHIN)


def write_html(certificate: Certificate, directory: Path) -> Path:
    """Write ``report.html``; returns its path. Every name and value in it is escaped."""
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = charts(certificate)
    text = pages.get_template("report.html.jinja").render(
        verdict=str(certificate.verdict),
        sentence=conclusion(certificate),
        command=shlex.join(certificate.settings.command.start),
        undisturbed=[
            _plain(line) for run in certificate.undisturbed[-1:] for line in undisturbed_lines(certificate, run)
        ],
        charts=drawn,
        no_charts=""
        if drawn
        else "No curves: nothing was logged, or matplotlib is missing (pip install '.[certify]').",
        not_drawn=max(0, len(certificate.interrupted) - MAX_RUNS),
        interruptions=[_interruption(found, certificate) for found in certificate.interrupted],
        not_run=[str(interruption) for interruption in certificate.not_run],
        environment=environment(),
        tone=_tone,
        mark=lambda verdict: "✓" if verdict == Verdict.EXACT else "✗",
    )
    path = directory / "report.html"
    path.write_text(text)
    return path


def _tone(verdict: str) -> str:
    if verdict == Verdict.EXACT:
        return "good"
    return "unsure" if verdict in _UNSURE else "bad"


def _plain(line: str) -> str:
    return line.strip().removeprefix("- ").strip()


def _interruption(found: InterruptedRun, certificate: Certificate) -> dict[str, Any]:
    files = sorted(
        (file for file in (found.comparison.files if found.comparison is not None else []) if file.differences),
        key=lambda file: file.step if file.step is not None else 1 << 62,
    )
    rows = [_row(file, leaf) for file in files for leaf in file.differences]
    return {
        "name": str(found.run.interruption),
        "verdict": str(found.judgement.verdict),
        "text": verdict_text(found.judgement),
        "cause": "" if found.diagnosis is None else f"{found.diagnosis.component}: {found.diagnosis.sentence}",
        "lines": [_plain(line) for line in interrupted_lines(found)],
        "leaves": rows[:_MAX_LEAVES],
        "leaves_total": len(rows),
        "repeat": repeat_command(found, certificate.settings.command),
        "directory": str(found.run.out.parent),
    }


def _row(file: FileComparison, leaf: LeafDifference) -> dict[str, Any]:
    return {
        "step": "–" if file.step is None else file.step,
        "file": file.relative,
        "path": leaf.path,
        "part": leaf.component,
        "elements": f"{leaf.differing} of {leaf.elements}",
        "absolute": _number(leaf.largest_absolute),
        "relative": _number(leaf.largest_relative),
        "ulps": _number(leaf.largest_ulps),
        "both": f"{leaf.expected} / {leaf.found}",
    }


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
