"""Every cell of the matrix ends as it must: exact, said, or refused."""

from __future__ import annotations

import pytest

from .cell import Cell
from .cells import CELLS, SAMPLE
from .runner import Runner

_PARAMETERS = [
    pytest.param(cell, id=cell.name, marks=() if cell.name in SAMPLE else pytest.mark.slow) for cell in CELLS
]


@pytest.mark.parametrize("cell", _PARAMETERS)
def test_cell(cell: Cell, runner: Runner):
    verdict = runner.run(cell)
    assert verdict.expected, str(verdict)
