"""Steps that were lost are taken again, and compared with what they had given: in Lightning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from neuromanifold_gpt.state.steps_taken_again import STEPS_NAME

from .. import warm_process

OTHER_WEIGHTS = "has given other weights"  # Lightning prints no category for files with its name in their paths
PROGRAM = Path(__file__).with_name("losing_fit.py")


def train(directory: Path, **options: Any) -> str:
    """What the program says."""
    ended = warm_process.run(PROGRAM, directory, json.dumps(options))
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


@pytest.mark.parametrize("asynchronous", [False, True])
def test_same_result(tmp_path: Path, asynchronous: bool) -> None:
    train(tmp_path, stop_at=9, asynchronous=asynchronous)
    assert len((tmp_path / "out" / STEPS_NAME).read_text().splitlines()) == 1 + 4
    said = train(tmp_path, stop_at=12, asynchronous=asynchronous)
    assert OTHER_WEIGHTS not in said
    assert "4 optimizer steps behind " in said


def test_another_result(tmp_path: Path) -> None:
    train(tmp_path, stop_at=9, forgets=True)
    said = train(tmp_path, stop_at=12, forgets=True)
    assert said.count(OTHER_WEIGHTS) == said.count("optimizer step 1 behind ") == 1
