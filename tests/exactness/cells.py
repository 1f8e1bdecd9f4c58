"""The matrix: every cell, by name, and the sample of them that runs with the suite."""

from __future__ import annotations

from .cell import Cell
from .table import (
    changes,
    data,
    hostile,
    interruptions,
    loops,
    lost_steps,
    models,
    optimization,
    own_state,
    ranks,
    stock_loaders,
    streams,
    train_flags,
    variables,
)

_CELLS = [
    *interruptions.CELLS,
    *data.CELLS,
    *streams.CELLS,
    *stock_loaders.CELLS,
    *models.CELLS,
    *optimization.CELLS,
    *loops.CELLS,
    *own_state.CELLS,
    *variables.CELLS,
    *ranks.CELLS,
    *changes.CELLS,
    *train_flags.CELLS,
    *hostile.CELLS,
]
CELLS: list[Cell] = [*_CELLS, *lost_steps.losing_steps(_CELLS)]
CELLS_BY_NAME: dict[str, Cell] = {cell.name: cell for cell in CELLS}
assert len(CELLS_BY_NAME) == len(CELLS), "two cells have the same name"

_SAMPLED_OF_GROUP = 1


def _takes_long(cell: Cell) -> bool:
    """Imports torch again, or compiles kernels."""
    return (
        cell.fresh_interpreter or cell.compile_backend == "inductor" or "multiprocessing_context" in cell.loader_options
    )


def _sample() -> set[str]:
    """Of each group and driver, as many, spread over the group."""
    groups: dict[tuple[str, str], list[str]] = {}
    for cell in CELLS:
        if not _takes_long(cell):
            groups.setdefault((cell.group, cell.driver), []).append(cell.name)
    return {name for names in groups.values() for name in names[:: -(-len(names) // _SAMPLED_OF_GROUP)]}


SAMPLE = _sample()
