"""The charts of the HTML report, as SVG by matplotlib, in colours that the page's style sheet chooses."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neuromanifold_gpt.certify.certificate import Certificate, InterruptedRun
from neuromanifold_gpt.certify.metrics import MetricLog, Series
from neuromanifold_gpt.certify.names import LEARNING_RATE, LOSS, is_clock_name

MAX_RUNS = 6
# Each stands for a variable of the style sheet, which has a light and a dark value for it.
_COLOURS = {"#010203": "var(--ink)", "#010204": "var(--grid)", "#010205": "var(--undisturbed)"}
_COLOURS.update({f"#0103{index:02x}": f"var(--run-{index})" for index in range(MAX_RUNS)})
_INK, _GRID, _UNDISTURBED = list(_COLOURS)[:3]
_RUNS = list(_COLOURS)[3:]
_DASHES = ["--", ":", "-.", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1))]


@dataclass(frozen=True)
class Chart:
    """One chart: its title, what it shows in words, and the drawing."""

    title: str
    description: str
    svg: str


def charts(certificate: Certificate) -> list[Chart]:
    """Loss, learning rate and their differences; empty without matplotlib, or without a log."""
    try:
        import matplotlib.style
    except ImportError:
        return []
    if not certificate.undisturbed:
        return []
    log = certificate.undisturbed[0].files.log
    shown = shown_runs(certificate)
    logs = [found.run.files.log for found in shown]
    drawn = []
    with matplotlib.style.context(["default", _style()]):
        for pattern, what in ((LOSS, "loss"), (LEARNING_RATE, "learning rate")):
            series = _series(log, pattern, certificate)
            if series is None:
                continue
            drawn.append(_curves(what, series, log, shown, logs))
            if what == "loss" and shown:
                drawn.append(_differences(series, log, shown, logs))
    return [Chart(title, description, _inline(svg, number)) for number, (title, description, svg) in enumerate(drawn)]


def shown_runs(certificate: Certificate) -> list[InterruptedRun]:
    """The runs that are drawn, the worst first where there are too many."""
    ordered = sorted(certificate.interrupted, key=lambda found: -found.judgement.verdict.severity)[:MAX_RUNS]
    return [found for found in certificate.interrupted if found in ordered]


def _style() -> dict[str, Any]:
    return {
        "svg.fonttype": "none",  # text stays text: searchable, and read aloud
        "font.family": "sans-serif",
        "font.size": 10,
        "figure.figsize": (4.6, 3.1),
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "legend.frameon": False,
        "legend.fontsize": 8,
        "axes.grid": True,
        "grid.linewidth": 0.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), _INK),
        "grid.color": _GRID,
    }


def _series(log: MetricLog, pattern: re.Pattern[str], certificate: Certificate) -> Series | None:
    """The column of that kind with the most steps."""
    fitting = [
        series
        for series in log.values
        if pattern.search(series[1]) and series not in certificate.left_out.metrics and not is_clock_name(series[1])
    ]
    return max(fitting, key=lambda series: (len(log.values[series]), -len(series[1])), default=None)


def _curves(
    what: str, series: Series, log: MetricLog, shown: Sequence[InterruptedRun], logs: Sequence[MetricLog]
) -> tuple[str, str, str]:
    figure, axes = _figure()
    steps, values = _points(log.values[series])
    axes.plot(steps, values, color=_UNDISTURBED, linewidth=3.5, alpha=0.45, label="undisturbed")
    for index, (found, other) in enumerate(zip(shown, logs, strict=True)):
        steps, values = _points(other.values.get(series, {}))
        axes.plot(steps, values, color=_RUNS[index], linestyle=_DASHES[index], linewidth=1.2, label=_label(found))
        for restart in found.restarts:
            if restart.interrupted_at is not None:
                axes.axvline(restart.interrupted_at, color=_RUNS[index], linewidth=0.8, alpha=0.7)
    axes.set_xlabel("step")
    axes.set_ylabel(series[1], parse_math=False)
    axes.legend()
    marked = ", ".join(f"{_label(found)} ({found.judgement.verdict})" for found in shown)
    return (
        f"{what.capitalize()} of every step",
        f"{series[1]} by step of the undisturbed run and of the interrupted ones laid over it: {marked}. Vertical "
        "lines mark the interruptions.",
        _svg(figure),
    )


def _differences(
    series: Series, log: MetricLog, shown: Sequence[InterruptedRun], logs: Sequence[MetricLog]
) -> tuple[str, str, str]:
    figure, axes = _figure()
    words = []
    expected = dict(zip(*_points(log.values[series]), strict=True))
    for index, (found, other) in enumerate(zip(shown, logs, strict=True)):
        steps, values = _points(other.values.get(series, {}))
        apart = [
            (step, abs(value - expected[step]))
            for step, value in zip(steps, values, strict=True)
            if step in expected and value != expected[step]
        ]
        label = f"{_label(found)}: {'equal everywhere' if not apart else f'from step {apart[0][0]}'}"
        words.append(label)
        axes.plot(
            [step for step, _ in apart],
            [size for _, size in apart],
            color=_RUNS[index],
            linestyle=_DASHES[index],
            marker=".",
            markersize=3,
            linewidth=0.8,
            label=label,
        )
    axes.set_yscale("log")
    if expected:
        axes.set_xlim(min(expected), max(expected))
    axes.set_xlabel("step")
    axes.set_ylabel(f"|difference of {series[1]}|", parse_math=False)
    axes.legend()
    return (
        "Difference from the undisturbed run",
        f"Absolute difference of {series[1]} per step on a logarithmic scale; equal steps are not drawn. "
        f"{'; '.join(words)}.",
        _svg(figure),
    )


def _points(values: Mapping[int, Sequence[float]]) -> tuple[list[int], list[float]]:
    """The last value of each step: what a step that was trained again came to."""
    steps = sorted(step for step, found in values.items() if math.isfinite(found[-1]))
    return steps, [values[step][-1] for step in steps]


def _label(found: InterruptedRun) -> str:
    return f"{found.run.name.rpartition('-')[2]}. {found.run.interruption}"


def _figure() -> tuple[Any, Any]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _svg(figure: Any) -> str:
    target = io.StringIO()
    figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    return target.getvalue()


def _inline(svg: str, number: int) -> str:
    """Ready to stand in a page beside others: names of its own, the page's colours, no fixed size."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>chart{number}-", svg)
    for size in ("width", "height"):
        svg = re.sub(rf'(<svg[^>]*?) {size}="[^"]*"', r"\1", svg, count=1)
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg", f'<svg role="img" aria-labelledby="chart{number}-title"', 1)
