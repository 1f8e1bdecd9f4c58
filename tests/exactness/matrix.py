"""Run cells of the matrix, print what came of each: ``python -m tests.exactness.matrix [WORD ...] [--json=PATH]``."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from .cells import CELLS
from .runner import Runner, Verdict


def main(arguments: list[str]) -> int:
    """Run every cell whose name contains all words, and none that is preceded by ``-``; return 1 if one is red.

    ``--json=PATH`` writes the verdicts as well.
    """
    words = [word for word in arguments if not word.startswith("--json=")]
    chosen = [
        cell for cell in CELLS if all((word.removeprefix("-") in cell.name) != (word[0] == "-") for word in words)
    ]
    began = time.monotonic()
    verdicts = []
    with tempfile.TemporaryDirectory(prefix="exactness-") as directory:
        runner = Runner(Path(directory))
        for cell in chosen:
            verdicts.append(runner.run(cell))
            print("ok " if verdicts[-1].expected else "RED", verdicts[-1], flush=True)
        runner.close()
    for path in (word.removeprefix("--json=") for word in arguments if word.startswith("--json=")):
        Path(path).write_text(json.dumps([asdict(verdict) for verdict in verdicts], indent=1))
    print(summary(verdicts, time.monotonic() - began))
    return 0 if all(verdict.expected for verdict in verdicts) else 1


def summary(verdicts: list[Verdict], seconds: float) -> str:
    """One line."""
    counts = Counter(verdict.outcome if verdict.expected else "red" for verdict in verdicts)
    inexact = sum(verdict.outcome == "inexact" for verdict in verdicts)
    return (
        f"{len(verdicts)} cells: {counts['exact']} exact, {counts['red']} red ({inexact} inexact without a word), "
        f"{counts['warned']} warned as expected, {counts['error']} errors as expected, "
        f"{counts['documented']} inexact as documented, {seconds:.0f} s"
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
