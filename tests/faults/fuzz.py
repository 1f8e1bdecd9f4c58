"""Coverage-guided fuzzing of what reads files that anybody may have written; ``make fuzz`` runs it.

    python -m tests.faults.fuzz manifest|archive CORPUS [-max_total_time=SEC ...]

Findings are kept in ``findings/`` and tried by ``test_findings.py``.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["neuromanifold_gpt.checkpoint", "neuromanifold_gpt.state.load", "torch._weights_only_unpickler"]
):
    from .fuzz_targets import TARGETS, seeds


def main() -> None:
    """Fuzz one target until libFuzzer's options say stop."""
    name, corpus = sys.argv[1], Path(sys.argv[2])
    corpus.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(seeds()[name]):
        (corpus / f"seed-{number}").write_bytes(content)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as directory:
        atheris.Setup(
            [sys.argv[0], *sys.argv[3:], str(corpus)], lambda content: TARGETS[name](content, Path(directory))
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
