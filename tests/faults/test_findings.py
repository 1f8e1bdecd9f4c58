"""What fuzzing has found, and the files that it began with, raise nothing but typed errors any more."""

from __future__ import annotations

from pathlib import Path

import pytest

from .fuzz_targets import TARGETS, seeds
from .tally import Tally

FINDINGS = Path(__file__).with_name("findings")


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_but_typed_errors(target: str, tally: Tally, tmp_path: Path):
    kept = {path.name: path.read_bytes() for path in sorted((FINDINGS / target).glob("*")) if path.is_file()}
    for name, content in {**kept, **{f"seed {i}": seed for i, seed in enumerate(seeds()[target])}}.items():
        with tally.trial("findings of fuzzing tried again", f"{target}: {name}"):
            TARGETS[target](content, tmp_path)
