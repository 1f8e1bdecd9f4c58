"""How exactly training resumes, here and elsewhere: ``python -m benchmarks.exactness.bench_exactness [WORD ...]``.

A scenario is run when its name contains one of the words; ``--column=NAME`` chooses columns. A whole run is written to
``results.json``, ``docs/exactness.md`` and ``docs/peers.md``; with ``--update``, each row of a part replaces its own
there at once.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tests.exactness.runner import Verdict

from . import report
from .columns import COLUMNS, OURS, PROGRAMS, cell_of
from .peer_runner import Outcome, PeerRunner
from .scenarios import SCENARIOS, Scenario

_REPOSITORY = Path(__file__).parents[2]
_BEST_FIRST = ("exact", "inexact", "error", "n/a")


def main(arguments: list[str]) -> int:
    """Run and print the table."""
    columns = [word.removeprefix("--column=") for word in arguments if word.startswith("--column=")]
    words = [word for word in arguments if not word.startswith("--")]
    chosen = [scenario for scenario in SCENARIOS if not words or any(word in scenario.name for word in words)]
    began = time.monotonic()
    outcomes: dict[str, dict[str, Outcome]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-exactness-") as directory:
        runner = PeerRunner(Path(directory))
        for scenario in chosen:
            outcomes[scenario.name] = {}
            for column in columns or COLUMNS:
                outcome = _run(runner, scenario, column)
                outcomes[scenario.name][column] = outcome
                print(f"{scenario.name} | {column} | {outcome} ({outcome.seconds:.1f} s)", flush=True)
            if "--update" in arguments:
                report.update(report.results({scenario.name: outcomes[scenario.name]}, 0), _REPOSITORY)
        runner.close()
    results = report.results(outcomes, time.monotonic() - began)
    print(report.summary_table(results))
    print(report.full_table(results))
    if not arguments:
        report.write(results, _REPOSITORY)
    print(json.dumps({key: value for key, value in results.items() if key != "cells"}))
    return 0


def _run(runner: PeerRunner, scenario: Scenario, column: str) -> Outcome:
    began = time.monotonic()
    outcome = _run_ours(runner, scenario, OURS[column]) if column in OURS else _run_best(runner, scenario, column)
    return replace(outcome, seconds=round(time.monotonic() - began, 1))


def _run_ours(runner: PeerRunner, scenario: Scenario, driver: str) -> Outcome:
    """With the tests' own comparison: of every file and generator as well."""
    cell = scenario.cells.get(driver)
    if cell is None:
        return Outcome("n/a", "Lightning's" if driver == "loop" else "a plain loop's")
    return _outcome(runner.run(cell))


def _outcome(verdict: Verdict) -> Outcome:
    if verdict.first is not None:
        step = "at the end" if verdict.first.step is None else f"step {verdict.first.step}"
        said = ", and said so" if verdict.outcome == "warned" else ""
        return Outcome("inexact", f"{step}, {verdict.first.component}{said}")
    if verdict.outcome in ("exact", "warned"):
        return Outcome("exact", verdict.said[0] if verdict.said else "")
    return Outcome("error", verdict.said[0] if verdict.said else verdict.outcome)


def _run_best(runner: PeerRunner, scenario: Scenario, column: str) -> Outcome:
    """Of the ways in which the peer can be used."""
    found = []
    for program in COLUMNS[column]:
        cell = cell_of(scenario, program)
        found.append(Outcome("n/a", cell) if isinstance(cell, str) else runner.outcome(cell))
        if found[-1].kind in ("exact", "n/a"):
            break
    return min(found, key=lambda outcome: _BEST_FIRST.index(outcome.kind))


assert set(PROGRAMS) == {program for programs in COLUMNS.values() for program in programs}

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
