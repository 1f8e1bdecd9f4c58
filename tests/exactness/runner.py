"""Runs a cell: A, A again, then B in several real processes, and says what came of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import neuromanifold_gpt
from neuromanifold_gpt import list_checkpoints

from .cell import Cell, Expected
from .comparison import (
    Difference,
    buffer_names,
    differences_of_checkpoints,
    differences_of_dumps,
    differences_of_logs,
    differences_of_traces,
    first_difference,
)
from .phase import Phase

_REPOSITORY = Path(__file__).parents[2]
_TIMEOUT_SEC = 120
# Exit codes; a process that was to die at any moment may have come to its end before.
_ENDED: dict[str, tuple[int, ...]] = {
    "kill": (-9,),
    "kill at any moment": (-14, 0),
    "kill while saving": (-9,),
    "kill in validation": (-9,),
    "finish": (0,),
    "should_stop": (0,),
    "exception": (1,),
    "sigterm": (1,),
}


class FailedError(Exception):
    """A process did not end as the cell says."""


@dataclass
class Verdict:
    """What came of a cell.

    Attributes:
        outcome: ``exact``, ``inexact``, ``warned``, ``error``, or ``unusable`` where A differs from A.
        expected: whether that is what the cell expects.
        first: the first difference.
        said: warnings of the resumed processes, or the error.
    """

    cell: str
    outcome: str
    expected: bool
    first: Difference | None = None
    said: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        lines = [f"{self.cell}: {self.outcome} ({self.seconds:.1f} s)"]
        lines += [f"  first difference: {self.first}"] if self.first else []
        return "\n".join(lines + [f"  said: {text[:400]}" for text in self.said])


class Runner:
    """Runs cells in forked processes; runs A are kept for the cells that share one.

    Args:
        directory: an empty one, for everything that the runs write.
        server: module of the fork server.
    """

    def __init__(self, directory: Path, server: str = "tests.exactness.fork_server") -> None:
        self._directory = directory
        self._uninterrupted: dict[str, tuple[Path, Difference | None]] = {}
        self._runs = 0
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_REPOSITORY)}
        self._environment = environment
        self._server = subprocess.Popen(
            [sys.executable, "-m", server],
            cwd=_REPOSITORY,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """End the fork server."""
        # Said in words: data workers forked from this process may still hold its end of the pipe open.
        assert self._server.stdin is not None
        print(json.dumps(None), file=self._server.stdin, flush=True)
        self._server.stdin.close()
        self._server.wait(timeout=30)

    def run(self, cell: Cell, *, sabotage: str | None = None) -> Verdict:
        """Run a cell; with ``sabotage``, a part of the state is dropped on purpose when run B resumes."""
        began = time.monotonic()
        try:
            verdict = self._judge(cell, sabotage)
        except FailedError as error:
            verdict = Verdict(cell.name, "error", expected=False, said=[str(error)])
        verdict.seconds = time.monotonic() - began
        return verdict

    # ---------------------------------------------------------------------------------- runs

    def _judge(self, cell: Cell, sabotage: str | None) -> Verdict:
        a, unequal = self._run_a(cell)
        if unequal is not None:
            return Verdict(cell.name, "unusable", expected=False, first=unequal)
        at_start = [entry["message"] for entry in _warnings_of(a, 0, cell.expected) if entry["at_start"]]
        b = self._new_directory(cell)
        error, resumed_at = self._run_b(cell, b, sabotage)
        if error is not None:
            expected = cell.expected.outcome in ("error", "not silent", "exact or said") and _is(error, cell.expected)
            return Verdict(cell.name, "error", expected, said=[f"{error['classes'][0]}: {error['message']}"])
        if cell.starts_over != (max(resumed_at) == 0 and cell.save_in_hook is None):
            raise FailedError(f"the processes of run B began at steps {resumed_at}: what does the cell prove?")
        first = first_difference(list(_differences(cell, a, b, resumed_at)))
        entries = [
            _warnings_of(b, process, cell.expected) for process in range(_first_that_may_say(cell), len(resumed_at))
        ]
        said = [entry["message"] for process in entries for entry in process]
        shutil.rmtree(b)
        return _verdict(cell, first, said, [len(process) for process in entries], at_start)

    def _run_a(self, cell: Cell) -> tuple[Path, Difference | None]:
        """Run A, and how a second one differs from it, which saves no checkpoints: saving must not disturb either."""
        if cell.uninterrupted not in self._uninterrupted:
            a, again = self._new_directory(cell), self._new_directory()
            for directory, saves in ((a, True), (again, cell.loader == "plain" or cell.driver == "train.py")):
                phase = Phase(cell.name, str(directory), saves=saves, ranks=cell.ranks)
                outcome = self._start(cell, [phase], directory, forked=True)
                if outcome["codes"] != [0] * cell.ranks:
                    raise FailedError(f"run A ended with {outcome['codes']}: {_log(directory)}")
            found = [
                difference
                for rank in range(cell.ranks)
                for difference in [
                    *differences_of_traces(a, again, 0, 0, rank=rank),
                    *differences_of_dumps(a, again, rank=rank),
                ]
            ]
            if cell.same_place:
                a = a.rename(self._new_directory())
            self._uninterrupted[cell.uninterrupted] = a, first_difference(found)
            shutil.rmtree(again)
        return self._uninterrupted[cell.uninterrupted]

    def _run_b(self, cell: Cell, b: Path, sabotage: str | None) -> tuple[dict[str, Any] | None, list[int]]:
        """All processes of run B; the error of the last one, if any, and where each process resumed."""
        stops = [*cell.stops, None]
        phases = [
            Phase(
                cell.name, str(b), process, stop, process == 0, interrupted=True, sabotage=sabotage if process else None
            )
            for process, stop in enumerate(stops)
        ]
        if cell.ending in ("same process", "same trainer"):
            outcome = self._start(cell, phases, b)
            if outcome["codes"] != [0] * cell.ranks:
                return _error_of(b, len(stops) - 1), []
            return None, [0, *cell.stops]
        resumed_at: list[int] = []
        for phase in phases:
            resumed_at.append(_newest_step(cell, phase))
            phase = replace(phase, first=not _has_saved(phase), resumed_at=resumed_at[-1])
            ranks = cell.ranks if phase.first else cell.resumed.ranks
            outcome = self._start(cell, [phase], b, ranks=ranks)
            expected = (0,) if phase.stop is None else _ENDED[cell.ending]
            if outcome["codes"][-1] not in expected:
                if phase.stop is None:
                    return _error_of(b, phase.process), resumed_at
                raise FailedError(f"process {phase.process} ended with {outcome['codes']}: {_log(b)}")
        return None, resumed_at

    def _start(
        self, cell: Cell, phases: list[Phase], directory: Path, *, ranks: int | None = None, forked: bool = False
    ) -> Any:
        """Run the phases of one process, or of one on each rank. Run A is always forked, to compare both ways."""
        ranks = ranks or cell.ranks
        jobs = [[{**asdict(phase), "rank": rank, "ranks": ranks} for phase in phases] for rank in range(ranks)]
        if cell.fresh_interpreter and not forked:
            return self._start_fresh(jobs[0], directory)
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        job = {"ranks": jobs, "log": str(directory / "log"), "timeout_sec": _TIMEOUT_SEC}
        print(json.dumps(job), file=self._server.stdin, flush=True)
        answer = self._server.stdout.readline()
        if not answer:
            raise RuntimeError("the fork server has ended")
        return json.loads(answer)

    def _start_fresh(self, phases: list[dict[str, Any]], directory: Path) -> dict[str, Any]:
        with (directory / "log").open("a") as log:
            command = [sys.executable, "-m", "tests.exactness.child", json.dumps(phases)]
            done = subprocess.run(
                command, cwd=_REPOSITORY, env=self._environment, stdout=log, stderr=log, timeout=_TIMEOUT_SEC
            )
        return {"codes": [done.returncode]}

    def _new_directory(self, cell: Cell | None = None) -> Path:
        self._runs += 1
        directory = self._directory / ("place" if cell is not None and cell.same_place else f"run{self._runs}")
        directory.mkdir(parents=True)
        return directory


def _differences(cell: Cell, a: Path, b: Path, resumed_at: list[int]) -> Iterator[tuple[int, Difference]]:
    keeps = cell.expected.keeps
    fields = () if "all" in keeps or not keeps else ("step", *keeps)
    last = len(resumed_at) - 1
    ranks = range(cell.ranks) if cell.ranks == cell.resumed.ranks else [None]
    window = 1
    if cell.save_in_hook == "inside a window" or "saves in windows" in cell.loop:
        window = cell.accumulate
    elif cell.module == "accumulates by hand":
        window = 3
    for process, step in enumerate(resumed_at):
        for rank in ranks:
            yield from differences_of_traces(
                a, b, process, step, rank=rank, last=process == last, fields=fields, window=window
            )
    if not fields:
        if "network" not in cell.changes:  # parameters are numbered in another order then
            buffers = buffer_names(torch.load(a / "dump-0.pt", weights_only=False))
            yield from differences_of_checkpoints(a, b, resumed_at, buffers, cell.clocks)
        yield from differences_of_logs(a, b, resumed_at)
        for rank in range(cell.ranks):
            yield from differences_of_dumps(a, b, rank=rank)


_IS_NOT_EXACT = "has given other weights than in the run that was interrupted"  # which no list of causes stands behind


def _first_that_may_say(cell: Cell) -> int:
    """What is saved at a bad moment is said by the process that saves it."""
    return 0 if cell.save_in_hook else 1


def _verdict(cell: Cell, first: Difference | None, said: list[str], times: list[int], at_start: list[str]) -> Verdict:
    expected = cell.expected
    if expected.outcome == "not silent":
        return Verdict(cell.name, "warned" if said else "inexact" if first else "exact", bool(said), first, said)
    if expected.outcome == "warns":
        right = bool(said) and (expected.times is None or max(times) == expected.times)
        kept = first is None or not expected.keeps
        return Verdict(cell.name, "warned" if said else "inexact" if first else "exact", right and kept, first, said)
    if first is None:
        is_right = expected.outcome != "error" and not any(_IS_NOT_EXACT in message for message in said)
        return Verdict(cell.name, "exact", is_right, said=said)
    if expected.outcome == "exact or said" and (said or at_start):
        return Verdict(cell.name, "warned", True, first, [*at_start, *said])
    if expected.outcome == "exact or said at start" and at_start:
        return Verdict(cell.name, "warned", True, first, at_start)
    return Verdict(cell.name, "inexact", False, first, said)


def _has_saved(phase: Phase) -> bool:
    return phase.by_hand.exists() or bool(list_checkpoints(phase.checkpoints))


def _newest_step(cell: Cell, phase: Phase) -> int:
    """Where a process must resume."""
    if phase.by_hand.exists():
        return cell.stops[0]
    complete = [checkpoint for checkpoint in list_checkpoints(phase.checkpoints) if not checkpoint.model_only]
    return max((checkpoint.step for checkpoint in complete), default=0)


def _warnings_of(directory: Path, process: int, expected: Expected) -> list[dict[str, Any]]:
    path = directory / f"warnings-{process}-0.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [entry for entry in map(json.loads, lines) if _is(entry, expected)]


def _is(entry: dict[str, Any], expected: Expected) -> bool:
    """Lightning warns of many things; what counts is what this package says."""
    known = entry["ours"] or expected.by_anyone
    return known and expected.says in entry["classes"] and expected.match in entry["message"]


def _error_of(directory: Path, process: int) -> dict[str, Any]:
    path = directory / f"error-{process}-0.json"
    if path.exists():
        return dict(json.loads(path.read_text()))
    return {"classes": ["Died"], "ours": False, "message": _log(directory)}


def _log(directory: Path) -> str:
    path = directory / "log"
    return path.read_text()[-300:] if path.exists() else "(nothing was printed)"


assert Path(neuromanifold_gpt.__file__).is_relative_to(_REPOSITORY), "another copy of the package is imported"
