"""Cells whose processes end some steps behind their last save. Taken again, these come out, and are found, the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from ..cell import EXACT, Cell

_DEFAULT_SAVE = Cell("", "", "loop").save
_ONE_IN = 4
_EXACT_BETWEEN_EPOCHS = {"curriculum", "freezes by epoch"}  # their hooks are not called again in the middle


def losing_steps(cells: Iterable[Cell]) -> list[Cell]:
    """Some of those that are killed, and exact without a word: the same with fewer saves."""
    return [*_losing_steps(cells)][::_ONE_IN]


def _losing_steps(cells: Iterable[Cell]) -> Iterator[Cell]:
    for cell in cells:
        is_killed = cell.ending == "kill" and not cell.save_in_hook and cell.save == _DEFAULT_SAVE
        has_one_place = not any("best" in name for name in cell.callbacks)  # in which the newest checkpoint is
        is_exact = cell.expected == EXACT and cell.module not in _EXACT_BETWEEN_EPOCHS
        is_plain = cell.driver != "train.py" and not cell.changes and "saves after epochs" not in cell.loop
        every = next((every for every in (4, 3, 5) if all(stop > every and stop % every for stop in cell.stops)), None)
        if is_killed and is_plain and is_exact and has_one_place and every is not None:
            save = {**cell.save, "every_n_train_steps": every}
            yield replace(cell, group="lost steps", varies=f"{cell.group}: {cell.varies}", save=save)
