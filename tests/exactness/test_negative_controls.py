"""A cell that cannot go red proves nothing: each part of the state is dropped on restore, and its cell must say so."""

from __future__ import annotations

import pytest

from .cells import CELLS_BY_NAME
from .runner import Runner

# What is dropped, the cell that guards it, and the part that must be named as the first to differ.
_CONTROLS = [
    ("RNG", "lightning: model: dropout", "random number generators"),
    ("RNG", "loop: model: dropout", "random number generators"),
    ("data position", "lightning: interruption: in the middle of an epoch", "data position"),
    ("data position", "loop: interruption: in the middle of an epoch", "data position"),
    ("scheduler", "lightning: scheduler: warm-up, in the middle", "learning-rate schedule"),
    ("scheduler", "loop: scheduler: warm-up, in the middle", "learning-rate schedule"),
    ("momentum", "lightning: optimizer: SGD", "optimizer state"),
    ("momentum", "loop: optimizer: SGD", "optimizer state"),
    ("buffers", "lightning: model: batch norm", "buffers"),
    ("buffers", "loop: model: batch norm", "buffers"),
    ("average", "lightning: averages: EMA, stopped at 10", "averages"),
    ("average", "loop: averages: EMA, stopped at 10", "averages"),
    ("callback state", "lightning: callbacks: EarlyStopping, stopped at 6", "callbacks"),
    ("callback state", "lightning: callbacks: counts hooks, in the middle", "callbacks"),
]


_IN_SUITE = {control[0]: control[1] for control in _CONTROLS}  # one of each part
_PARAMETERS = [
    pytest.param(*control, marks=[] if control[1] in _IN_SUITE.values() else [pytest.mark.slow])
    for control in _CONTROLS
]


@pytest.mark.parametrize(("dropped", "cell", "component"), _PARAMETERS)
def test_what_is_dropped_on_restore_is_named(dropped: str, cell: str, component: str, runner: Runner):
    kept = runner.run(CELLS_BY_NAME[cell])
    assert kept.outcome == "exact", str(kept)
    verdict = runner.run(CELLS_BY_NAME[cell], sabotage=dropped)
    assert verdict.outcome == "inexact", str(verdict)
    assert not verdict.expected
    assert verdict.first is not None
    assert verdict.first.component == component, str(verdict)
