"""Notice which step a running program has reached, from the logs that grow, without its help."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from neuromanifold_gpt.certify.artifacts import is_artifact_name, step_in_path, without_numbers
from neuromanifold_gpt.certify.metrics import (
    Row,
    Series,
    fitness,
    is_metric_file,
    rows_of,
    source_of,
    table_rows,
    text_rows,
)

STDOUT = "stdout"
SAVED_NAMES = "names of saved files"
_MIN_BURSTS = 3
_BY_LINE = (".csv", ".tsv", ".jsonl", ".ndjson", ".log", ".txt", ".out", "")


@dataclass
class _Tail:
    """How much of a log has been read."""

    inode: int = 0
    offset: int = 0
    header: str | None = None
    rows: int = 0  # of a file that is read as a whole
    anew: bool = False  # it was emptied or replaced, and nothing of its new content has been read yet


@dataclass
class Trained:
    """What one column of a log tells of the steps that one attempt trained.

    Attributes:
        last: the newest step noticed.
        first: the first step that was logged behind what had been there before; ``None`` if no log grew.
        first_at_most: the same where a log was written anew as a whole, which tells only a bound.
        bursts: in how many looks rows were noticed; a log that is written at the end has one.
        values: the newest value of each step.
        noticed_sec: when each step was first noticed, on the monotonic clock.
        unit: what the steps count.
    """

    last: int | None = None
    first: int | None = None
    first_at_most: int | None = None
    bursts: int = 0
    values: dict[int, float] = field(default_factory=dict)
    noticed_sec: dict[int, float] = field(default_factory=dict)
    unit: str = "step"

    def seconds_between(self, first: int, last: int) -> float:
        """How long it took from one step to another, as far as they were noticed apart."""
        times = [sec for step, sec in self.noticed_sec.items() if first <= step <= last]
        return max(times) - min(times) if times else 0.0

    @property
    def is_live(self) -> bool:
        """Whether it followed training while it ran."""
        return self.bursts >= _MIN_BURSTS


class Progress:
    """Reads what is added to the logs of one attempt.

    Args:
        out: the output directory, with what earlier attempts left in it.
        stdout: the file of the program's standard output.
    """

    def __init__(self, out: Path, stdout: Path) -> None:
        self._out = out
        self._stdout = stdout
        self._tails: dict[str, _Tail] = {STDOUT: _Tail()}
        self.by_series: dict[Series, Trained] = {}
        self.own_reads: set[str] = set()  # histories in JSON, read as a whole while the program runs
        self._no_logs: set[str] = set()  # JSON files that turned out to be no history
        for path in out.rglob("*"):
            relative = str(path.relative_to(out))
            if path.is_file() and self._is_log(relative):
                self._skip_to_end(relative, path)

    def notice(self, changed: Iterable[str], *, stdout: bool = True) -> None:
        """Read what is new in the logs among ``changed``, and on standard output."""
        for relative in changed:
            if self._is_log(relative) and without_numbers(relative) not in self._no_logs:
                self._read(relative, self._out / relative, source_of(relative))
            if is_artifact_name(relative) and (step := step_in_path(relative)) is not None:
                self._note(SAVED_NAMES, [Row(step, {"step": step})], anew=True)
        if stdout:
            self._read(STDOUT, self._stdout, STDOUT)

    def watchable(self) -> Series | None:
        """The metric that follows training most closely while it runs; ``None`` if none does."""
        live = [series for series, trained in self.by_series.items() if trained.is_live]
        by_step = [series for series in live if self.by_series[series].unit == "step"] or live
        return max(by_step, key=lambda series: (len(self.by_series[series].values), *fitness(series)), default=None)

    def trained(self, series: Series | None) -> Trained:
        """What is known from one metric."""
        return self.by_series.get(series, Trained()) if series is not None else Trained()

    @staticmethod
    def _is_log(relative: str) -> bool:
        return is_metric_file(relative) or Path(relative).suffix in (".json", ".log", ".txt", ".out")

    def _skip_to_end(self, relative: str, path: Path) -> None:
        status = path.stat()
        tail = self._tails[relative] = _Tail(status.st_ino, status.st_size)
        if path.suffix in (".csv", ".tsv"):
            with path.open(errors="replace") as file:
                tail.header = file.readline().rstrip("\n") or None
            content = path.read_bytes()
            tail.offset = content.rfind(b"\n") + 1
        elif path.suffix not in _BY_LINE:
            tail.rows = len(rows_of(path))
            self._remember_if_no_log(relative, tail.rows)

    def _remember_if_no_log(self, relative: str, rows: int) -> None:
        """So that a checkpoint in JSON is not read again and again, which would look as if the program read it."""
        if relative.endswith(".json") and not rows:
            self._no_logs.add(without_numbers(relative))

    def _read(self, name: str, path: Path, source: str) -> None:
        try:
            status = path.stat()
        except FileNotFoundError:
            return
        known = name in self._tails
        tail = self._tails.setdefault(name, _Tail(status.st_ino))
        by_line = name == STDOUT or path.suffix in _BY_LINE
        if not by_line:
            rows = rows_of(path)
            self.own_reads.add(name)
            was, tail.rows = tail.rows, len(rows)
            self._remember_if_no_log(name, len(rows))
            whole = path.suffix == ".json" or len(rows) < was
            self._note(source, rows if whole else rows[was:], anew=whole)
            return
        if known and name != STDOUT and (status.st_ino != tail.inode or status.st_size < tail.offset):
            tail.inode, tail.offset, tail.header, tail.anew = status.st_ino, 0, None, True
        if status.st_size <= tail.offset:
            return
        with path.open("rb") as file:
            file.seek(tail.offset)
            content = file.read()
        whole_lines = content[: content.rfind(b"\n") + 1]
        tail.offset += len(whole_lines)
        text = whole_lines.decode(errors="replace")
        if path.suffix in (".csv", ".tsv"):
            rows = list(table_rows(text, path.suffix, tail.header))
            tail.header = tail.header or text.split("\n", 1)[0]
        elif path.suffix in (".jsonl", ".ndjson"):
            rows = list(table_rows(text, path.suffix))
        else:
            rows = list(text_rows(text))
        self._note(source, rows, anew=tail.anew)
        tail.anew = tail.anew and not rows

    def _note(self, source: str, rows: list[Row], *, anew: bool) -> None:
        if not rows:
            return
        now_sec = time.monotonic()
        columns: dict[str, list[Row]] = {}
        for row in rows:
            for name in row.values:
                columns.setdefault(name, []).append(row)
        for name, of_column in columns.items():
            trained = self.by_series.setdefault((source, name), Trained(unit=rows[0].unit))
            trained.bursts += 1
            highest = max(row.step for row in of_column)
            if anew:
                trained.first_at_most = min(highest, trained.first_at_most or highest)
            elif trained.first is None and trained.first_at_most is None:
                trained.first = of_column[0].step
            elif trained.first is None and trained.bursts == 2 and of_column[0].step == (trained.last or 0) + 1:
                trained.first_at_most = of_column[0].step  # what was there anew had been kept, and now it grows
            trained.values.update((row.step, row.values[name]) for row in of_column)
            for row in of_column:
                trained.noticed_sec.setdefault(row.step, now_sec)
            trained.last = of_column[-1].step
