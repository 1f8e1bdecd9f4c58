"""The tables."""

from __future__ import annotations

import datetime
import fcntl
import importlib.metadata
import json
import platform
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .columns import COLUMNS
from .peer_runner import Outcome
from .scenarios import SCENARIOS

_PACKAGES = ("torch", "lightning", "torchdata", "transformers", "accelerate")
_RESULTS = "benchmarks/exactness/results.json"
_BEGIN, _END = "<!-- table: begin -->", "<!-- table: end -->"


def results(outcomes: dict[str, dict[str, Outcome]], seconds: float) -> dict[str, Any]:
    """Everything that is shown, as plain data."""
    rows = {name: {column: asdict(outcome) for column, outcome in row.items()} for name, row in outcomes.items()}
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name).split("+")[0] for name in _PACKAGES},
        "seconds": round(seconds),
        "counts": _counts(rows),
        "cells": rows,
    }


def update(found: dict[str, Any], repository: Path) -> None:
    """Replace rows of what is stored, and drop those of scenarios that are gone; others may do so at the same time."""
    path = repository / _RESULTS
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        stored = path.read_text()
        write(_merged(json.loads(stored), found) if stored else found, repository)


def _merged(stored: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    if (stored["versions"], stored["python"]) != (found["versions"], found["python"]):
        raise ValueError(f"{_RESULTS} was measured with {stored['versions']}: measure everything again.")
    rows = {**stored["cells"]}
    for name, row in found["cells"].items():
        rows[name] = {**rows.get(name, {}), **row}
    rows = {scenario.name: rows[scenario.name] for scenario in SCENARIOS if scenario.name in rows}
    seconds = sum(outcome["seconds"] for row in rows.values() for outcome in row.values())
    return {**found, "seconds": round(seconds), "counts": _counts(rows), "cells": rows}


def _counts(rows: dict[str, Any]) -> dict[str, dict[str, int]]:
    return {column: dict(Counter(row[column]["kind"] for row in rows.values() if column in row)) for column in COLUMNS}


def summary_table(found: dict[str, Any]) -> str:
    """Groups against columns: exact cells of those that apply."""
    groups: dict[str, dict[str, list[str]]] = {}
    for name, row in found["cells"].items():
        group = groups.setdefault(name.split(": ")[0], {column: [] for column in COLUMNS})
        for column, outcome in row.items():
            group[column].append(outcome["kind"])
    total = {column: [kind for group in groups.values() for kind in group[column]] for column in COLUMNS}
    rows = [[name, *(_share(kinds) for kinds in group.values())] for name, group in groups.items()]
    rows.append(["**all**", *(f"**{_share(kinds)}**" for kinds in total.values())])
    return _table(["exact / applicable", *COLUMNS], rows)


def _share(kinds: list[str]) -> str:
    applicable = [kind for kind in kinds if kind != "n/a"]
    return f"{applicable.count('exact')}/{len(applicable)}" if applicable else "–"


def full_table(found: dict[str, Any]) -> str:
    """Every cell."""
    rows = [
        [name, *(_short(row[column]) if column in row else "" for column in COLUMNS)]
        for name, row in found["cells"].items()
    ]
    return _table(["scenario", *COLUMNS], rows)


def _short(outcome: dict[str, Any]) -> str:
    if outcome["kind"] == "inexact":
        return str(outcome["detail"])
    if outcome["kind"] == "error":
        return f"error: {outcome['detail'].split(':')[0]}"
    return str(outcome["kind"])


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(found: dict[str, Any], repository: Path) -> None:
    """``results.json``, and the tables in the documents."""
    (repository / _RESULTS).write_text(json.dumps(found, indent=1) + "\n")
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    said = f"Measured on {found['date']}, CPU, Python {found['python']}, {versions}."
    for name, table in (("exactness", summary_table(found)), ("peers", full_table(found))):
        document = repository / "docs" / f"{name}.md"
        before, rest = document.read_text().split(_BEGIN)
        document.write_text("\n".join([before + _BEGIN, said, "", table, _END + rest.split(_END)[1]]))
