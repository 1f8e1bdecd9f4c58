"""Runs a cell with a peer: A, A again, then B in several processes, and says what diverged first."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from tests.exactness.cell import Cell
from tests.exactness.comparison import buffer_names, deep_differences, read_trace
from tests.exactness.phase import Phase
from tests.exactness.runner import FailedError, Runner

from .progress import newest_step

_SERVER = "benchmarks.exactness.server"
_ENDED = {"kill": -9, "finish": 0, "exception": 1, "same process": 0}
# In the order in which one explains the next.
_FIELDS = {"ids": "order", "lr": "learning rate", "weights": "weights", "buffers": "buffers", "loss": "RNG"}
_OF_FINAL_STATE = {
    "lr_schedulers": "scheduler",
    "weights and buffers": "weights",
    "optimizers": "optimizer",
    "averages": "averages",
    "trained": "weights",
}


@dataclass(frozen=True)
class Outcome:
    """What came of a scenario in one column.

    Attributes:
        kind: ``exact``, ``inexact``, ``error`` or ``n/a``.
        detail: the first diverging step and what diverged, the type of the error, or why not.
        seconds: it took.
    """

    kind: str
    detail: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        return self.kind if self.kind == "exact" else f"{self.kind}: {self.detail}"


class PeerRunner(Runner):
    """Runs cells of peers; what is their checkpoint is told by its name."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, _SERVER)

    def outcome(self, cell: Cell) -> Outcome:
        """Run a cell."""
        try:
            a, unequal = self._run_a(cell)
        except FailedError:
            return Outcome("n/a", f"cannot train it: {_error_in(self._directory / f'run{self._runs - 1}', 0)}")
        if unequal is not None:
            return Outcome("n/a", f"A differs from A: {unequal}")
        b = self._new_directory()
        resumed_at, error = self._run_all(cell, b)
        if error:
            return Outcome("error", error)
        first = _first_difference(cell, a, b, resumed_at)
        shutil.rmtree(b)
        return Outcome("inexact", first) if first else Outcome("exact")

    def _run_all(self, cell: Cell, b: Path) -> tuple[list[int], str]:
        """Where each process of run B resumed, and the error of one that failed."""
        stops = [*cell.stops, None]
        if cell.ending == "same process":
            phases = [Phase(cell.name, str(b), n, stop, n == 0, interrupted=True) for n, stop in enumerate(stops)]
            codes = self._start(cell, phases, b)["codes"]
            return [0, *cell.stops], "" if codes == [0] else _error_in(b, len(cell.stops))
        resumed_at: list[int] = []
        for process, stop in enumerate(stops):
            phase = Phase(cell.name, str(b), process, stop, interrupted=True)
            resumed_at.append(newest_step(phase.checkpoints))
            phase = replace(phase, first=resumed_at[-1] == 0)
            ranks = cell.ranks if phase.first else cell.resumed.ranks
            codes = self._start(cell, [phase], b, ranks=ranks)["codes"]
            if codes[-1] != (0 if stop is None else _ENDED[cell.ending]):
                return resumed_at, _error_in(b, process)
        return resumed_at, ""


def _first_difference(cell: Cell, a: Path, b: Path, resumed_at: list[int]) -> str:
    """The first diverging step and what diverged; empty if nothing did."""
    found = [
        difference
        for process, (step, until) in enumerate(pairwise([*resumed_at, None]))
        for rank in range(cell.ranks)
        for difference in _of_traces(a, b, process, step or 0, rank, last=until is None)
    ]
    if found:
        step, what = min(found, key=lambda difference: difference[0])
        return f"step {step}, {what}"
    return next((f"at the end, {what}" for rank in range(cell.ranks) for what in _of_final_states(a, b, rank)), "")


def _of_traces(a: Path, b: Path, process: int, resumed_at: int, rank: int, *, last: bool) -> Iterator[tuple[int, str]]:
    expected = [entry for entry in read_trace(a, 0, rank) if entry["step"] >= resumed_at]
    found = read_trace(b, process, rank)
    for number, (one, other) in enumerate(zip(expected, found, strict=False)):
        for field, what in _FIELDS.items():
            if one.get(field) != other.get(field):
                late = field == "weights" and number > 0  # all was equal until the last update
                yield one["step"], "optimizer" if late else what
                return
    common = min(len(expected), len(found))
    if len(found) > len(expected):
        yield found[common]["step"], "number of steps"
    elif last and len(found) < len(expected):
        yield expected[common]["step"], "number of steps"


def _of_final_states(a: Path, b: Path, rank: int) -> Iterator[str]:
    one, other = (torch.load(run / f"dump-{rank}.pt", weights_only=False) for run in (a, b))
    buffers = buffer_names(one)
    for key, what in _OF_FINAL_STATE.items():
        for path, _, _ in deep_differences(one.get(key), other.get(key), (key,)):
            yield "buffers" if key == "weights and buffers" and path[1] in buffers else what


def _error_in(directory: Path, process: int) -> str:
    path = directory / f"error-{process}-0.json"
    if not path.exists():
        log = directory / "log"
        return "died: " + (log.read_text()[-200:] if log.exists() else "")
    error: dict[str, Any] = json.loads(path.read_text())
    first_line = next(iter(error["message"].strip().splitlines()), "")
    return f"{error['classes'][0]}: {first_line[:150]}"
