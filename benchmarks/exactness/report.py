"""The tables."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
from collections import Counter
from pathlib import Path
from typing import Any

from .columns import COLUMNS
from .peer_runner import Outcome

_PACKAGES = ("torch", "lightning", "torchdata", "transformers", "accelerate")
_BEGIN, _END = "<!-- table: begin -->", "<!-- table: end -->"


def results(outcomes: dict[str, dict[str, Outcome]], seconds: float) -> dict[str, Any]:
    """Everything that is shown, as plain data."""
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name).split("+")[0] for name in _PACKAGES},
        "seconds": round(seconds),
        "counts": {column: _counts(outcomes, column) for column in COLUMNS},
        "cells": {
            name: {column: {"kind": o.kind, "detail": o.detail, "seconds": o.seconds} for column, o in row.items()}
            for name, row in outcomes.items()
        },
    }


def _counts(outcomes: dict[str, dict[str, Outcome]], column: str) -> dict[str, int]:
    return dict(Counter(row[column].kind for row in outcomes.values() if column in row))


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
    """``results.json``, and the tables in the document."""
    (repository / "benchmarks/exactness/results.json").write_text(json.dumps(found, indent=1) + "\n")
    document = repository / "docs/exactness.md"
    before, rest = document.read_text().split(_BEGIN)
    after = rest.split(_END)[1]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    said = f"Measured on {found['date']}, CPU, Python {found['python']}, {versions}."
    shown = [_BEGIN, said, "", summary_table(found), "", "Every cell:", "", full_table(found), _END]
    document.write_text(before + "\n".join(shown) + after)
