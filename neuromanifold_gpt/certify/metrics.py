"""Read what a program logged: CSV, JSON lines, JSON histories, TensorBoard event files, and lines of text.

Whatever the form, a log becomes rows: a step and the numbers noted at it.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from neuromanifold_gpt.certify.names import LOSS

_STEP_NAMES = (
    *("global_step", "step", "steps", "iteration", "iter", "iter_num", "it", "trainer/global_step", "_step"),
    *("train_step", "train/step", "train/global_step", "current_step", "update", "updates", "num_updates", "n_iter"),
    *("batch", "batch_idx", "epoch", "episode", "round"),
)
_COARSE = ("epoch", "episode", "round")  # what holds many steps
_TEXT_STEP = re.compile(r"\b(?:global[_ ]?step|step|iteration|iter|it|update)s?\b\s*[:=#]?\s*(\d+)", re.IGNORECASE)
_TEXT_EPOCH = re.compile(r"\b(?:epoch|episode|round)\b\s*[:=#]?\s*(\d+)", re.IGNORECASE)
_TEXT_VALUE = re.compile(
    r"([A-Za-z][\w/.\-]*)\s*(?:[:=]\s*|\s)([-+]?(?:\d+\.\d*(?:e[-+]?\d+)?|\d+e[-+]?\d+|nan\b|inf\b))", re.IGNORECASE
)
# Lines that tell of saving and resuming name steps too, but no step was trained when they were printed.
_TEXT_NOT_A_STEP = re.compile(r"resum|restor|load|sav|checkpoint|warn|error", re.IGNORECASE)
YAML = (".yaml", ".yml")
_SETTINGS_FILE = re.compile(r"config|hparams|hyper_?param|args|settings|hydra|overrides|options|params", re.IGNORECASE)
_EVENT_FILE = re.compile(r"tfevents")
_RUN_SPECIFIC = re.compile(
    r"version_\d+|\d{4}-\d\d-\d\d|\d\d-\d\d-\d\d|\d{6,}|[A-Z][a-z]{2}\d\d_\d\d-\d\d-\d\d_[\w.\-]+"
)

Series = tuple[str, str]  # the file and the column


@dataclass(frozen=True)
class Row:
    """Numbers that were logged for one step. ``unit`` is what the steps count: ``"step"`` or ``"epoch"``."""

    step: int
    values: Mapping[str, float]
    unit: str = "step"


@dataclass
class MetricLog:
    """Everything that one run logged.

    Attributes:
        values: for each metric, named by the file and the column, the values of each step in the order of logging;
            more than one where a step was trained more than once.
        units: what the steps of each source count.
    """

    values: dict[Series, dict[int, list[float]]] = field(default_factory=lambda: defaultdict(dict))
    units: dict[str, str] = field(default_factory=dict)

    def add(self, source: str, rows: Iterable[Row]) -> None:
        """Add the rows of one file."""
        for row in rows:
            self.units.setdefault(source, row.unit)
            for name, value in row.values.items():
                self.values[source, name].setdefault(row.step, []).append(value)

    def steps(self, source: str) -> set[int]:
        """Every step that the source has a row for."""
        return {step for (of, _), series in self.values.items() if of == source for step in series}

    @property
    def main_series(self) -> Series | None:
        """The metric that follows training most closely: the one with the most steps, a log of lines if in doubt."""
        by_step = [series for series in self.values if self.units[series[0]] == "step"] or list(self.values)
        return max(by_step, key=lambda series: (len(self.values[series]), *fitness(series)), default=None)

    @property
    def main_source(self) -> str | None:
        """The file of that metric."""
        return self.main_series[0] if self.main_series is not None else None

    def main_steps(self) -> list[int]:
        """The steps of that metric, in order."""
        return sorted(self.values[self.main_series]) if self.main_series is not None else []


def is_metric_file(relative: str) -> bool:
    """Whether a path is a log of numbers by its name; JSON histories are told by content, see :func:`history_rows`."""
    return Path(relative).suffix in (".csv", ".tsv", ".jsonl", ".ndjson") or bool(_EVENT_FILE.search(relative))


def is_by_line(relative: str) -> bool:
    """Whether a log grows line by line, so that what was added by whom can be told."""
    return Path(relative).suffix in (".csv", ".tsv", ".jsonl", ".ndjson")


def fitness(series: Series) -> tuple[bool, bool]:
    """Which of two metrics with as many steps follows training better: one in a log of lines, one that is a loss."""
    return is_by_line(series[0]), bool(LOSS.search(series[1]))


def is_text_log(relative: str) -> bool:
    """Whether a path is text for people: what it says is no state, though it may tell the step."""
    suffix = Path(relative).suffix
    if suffix in YAML:  # in which some programs keep their counters, and most their settings
        return bool(_SETTINGS_FILE.search(relative))
    return suffix in (".log", ".txt", ".out", ".err", ".md", ".lock", ".pid")


def source_of(relative: str) -> str:
    """The name of a log, without what a program makes up anew at each start (``version_3``, dates)."""
    if _EVENT_FILE.search(relative):
        relative = str(Path(relative).parent / "tensorboard events")
    if Path(relative).name == "trainer_state.json":  # one in every checkpoint, with the same history
        return "trainer_state.json"
    return _RUN_SPECIFIC.sub("*", relative)


def read_metrics(out: Path, stdouts: Iterable[Path]) -> MetricLog:
    """Read every log below ``out``; where there is none, the lines that the program printed."""
    log = MetricLog()
    for path in sorted((path for path in out.rglob("*") if path.is_file()), key=lambda path: path.stat().st_mtime_ns):
        relative = str(path.relative_to(out))
        if is_metric_file(relative) or path.suffix == ".json":
            log.add(source_of(relative), rows_of(path))
    if not any(log.values.values()):
        for path in sorted(out.rglob("*")):
            if path.suffix in (".log", ".txt", ".out") and path.is_file():
                log.add(source_of(str(path.relative_to(out))), text_rows(_text(path)))
    if not any(log.values.values()):
        for path in stdouts:
            log.add("stdout", text_rows(_text(path)))
    return log


def rows_of(path: Path) -> list[Row]:
    """The rows of one file; empty if it is no log. A torn last line is left out."""
    if _EVENT_FILE.search(path.name):
        return list(_event_rows(path))
    if path.suffix == ".json":
        try:
            return history_rows(json.loads(_text(path)))
        except ValueError:
            return []
    return list(table_rows(_text(path), path.suffix))


def table_rows(text: str, suffix: str, header: str | None = None) -> Iterator[Row]:
    """Rows of CSV or JSON lines; ``header`` is the CSV's first line where ``text`` begins behind it."""
    lines = text[: text.rfind("\n") + 1].splitlines()
    if suffix in (".jsonl", ".ndjson"):
        for line in lines:
            try:
                content = json.loads(line)
            except ValueError:
                continue
            if isinstance(content, dict) and (row := _row(_flat(content))) is not None:
                yield row
        return
    if header is not None:
        lines.insert(0, header)
    for number, cells in enumerate(csv.DictReader(lines, delimiter="\t" if suffix == ".tsv" else ",")):
        named = {key: cell for key, cell in cells.items() if isinstance(key, str) and isinstance(cell, str)}
        if named == {key: key for key in named}:  # a header in the middle: the program began to write anew
            continue
        row = _row(named)
        if row is None and header is None and not _step_name(named):
            row = _row({**named, "_step": number})  # rows without a step are counted
        if row is not None:
            yield row


def history_rows(content: Any) -> list[Row]:
    """Rows of a JSON history: a list of records, or HF Trainer's ``{"log_history": [...]}``."""
    if isinstance(content, dict):
        content = content.get("log_history")
    if not isinstance(content, list) or not all(isinstance(record, dict) for record in content):
        return []
    return [row for record in content if (row := _row(_flat(record))) is not None]


def text_rows(text: str) -> Iterator[Row]:
    """Rows of lines such as ``iter 100: loss 3.2171, lr 1.0e-3``."""
    for line in text[: text.rfind("\n") + 1].replace("\r", "\n").splitlines():
        if _TEXT_NOT_A_STEP.search(line):
            continue
        found, unit = _TEXT_STEP.search(line), "step"
        if found is None:
            found, unit = _TEXT_EPOCH.search(line), "epoch"
        values = {name: float(value) for name, value in _TEXT_VALUE.findall(line)}
        if found is not None and values:
            yield Row(int(found[1]), values, unit)


def _row(record: Mapping[str, Any]) -> Row | None:
    name = _step_name(record)
    step = _number(record[name]) if name else None
    if name is None or step is None or not math.isfinite(step) or step != int(step):
        return None
    values = {key: number for key, cell in record.items() if key != name and (number := _number(cell)) is not None}
    return Row(int(step), values, "epoch" if name.lower() in _COARSE else "step")


def _step_name(record: Mapping[str, Any]) -> str | None:
    lowered = {key.lower(): key for key in reversed(list(record)) if record[key] not in ("", None)}
    return next((lowered[name] for name in _STEP_NAMES if name in lowered), None)


def _number(cell: Any) -> float | None:
    if isinstance(cell, bool) or not isinstance(cell, int | float | str):
        return None
    try:
        return float(cell)
    except ValueError:
        return None


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@cache
def _event_loader() -> Any:
    try:
        from tensorboard.backend.event_processing import event_file_loader
    except ImportError:
        return None
    return event_file_loader.EventFileLoader


def _event_rows(path: Path) -> Iterator[Row]:
    if _event_loader() is None:
        return
    from tensorboard.util import tensor_util

    for event in _event_loader()(str(path)).Load():
        for value in event.summary.value:
            if value.HasField("tensor") and not value.tensor.string_val and not value.tensor.tensor_shape.dim:
                yield Row(event.step, {value.tag: float(tensor_util.make_ndarray(value.tensor))})


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:  # removed by the program meanwhile
        return ""
