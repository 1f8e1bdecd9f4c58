"""Run cells of the matrix, print what came of each: ``python -m tests.exactness.matrix [WORD ...] [--json=PATH]``."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from queue import Empty, SimpleQueue

from .cell import Cell
from .cells import CELLS
from .runner import Runner, Verdict

_RUNNERS = 2  # at once, each with a fork server of its own


def main(arguments: list[str]) -> int:
    """Run every cell whose name contains all words, and none that is preceded by ``-``; return 1 if one is red.

    ``--json=PATH`` writes the verdicts as well.
    """
    words = [word for word in arguments if not word.startswith("--json=")]
    chosen = [
        cell for cell in CELLS if all((word.removeprefix("-") in cell.name) != (word[0] == "-") for word in words)
    ]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="exactness-") as directory, ThreadPoolExecutor(_RUNNERS) as pool:
        groups = _sharing_run_a(chosen)
        running = [pool.submit(_run_in_turn, groups, Path(directory) / str(number)) for number in range(_RUNNERS)]
        verdicts = [verdict for runner in running for verdict in runner.result()]
    for path in (word.removeprefix("--json=") for word in arguments if word.startswith("--json=")):
        Path(path).write_text(json.dumps([asdict(verdict) for verdict in verdicts], indent=1))
    print(summary(verdicts, time.monotonic() - began))
    return 0 if all(verdict.expected for verdict in verdicts) else 1


def _sharing_run_a(cells: list[Cell]) -> SimpleQueue[list[Cell]]:
    """Cells that share a run A stay together, since a runner makes it once."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.uninterrupted, []).append(cell)
    queue: SimpleQueue[list[Cell]] = SimpleQueue()
    for group in groups.values():
        queue.put(group)
    return queue


def _run_in_turn(groups: SimpleQueue[list[Cell]], directory: Path) -> list[Verdict]:
    """Take groups until none is left."""
    verdicts = []
    runner = Runner(directory)
    with contextlib.suppress(Empty):
        while True:
            for cell in groups.get_nowait():
                verdicts.append(runner.run(cell))
                print(f"{'ok ' if verdicts[-1].expected else 'RED'} {verdicts[-1]}", flush=True)
    runner.close()
    return verdicts


def summary(verdicts: list[Verdict], seconds: float) -> str:
    """One line."""
    counts = Counter(verdict.outcome if verdict.expected else "red" for verdict in verdicts)
    inexact = sum(verdict.outcome == "inexact" for verdict in verdicts)
    return (
        f"{len(verdicts)} cells: {counts['exact']} exact, {counts['red']} red ({inexact} inexact without a word), "
        f"{counts['warned']} warned as expected, {counts['error']} errors as expected, {seconds:.0f} s"
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
