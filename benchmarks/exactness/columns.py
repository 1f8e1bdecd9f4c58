"""The columns of the table: programs that interpret a cell, and the cells as they see them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from tests.exactness.cell import Cell

from . import accelerate_peer, hf_peer, lightning_peer, stateful_peer
from .scenarios import SCENARIOS, Scenario


@dataclass(frozen=True)
class Program:
    """How one peer is used in one of its documented ways.

    Attributes:
        run: trains as a cell says.
        why_not: why a cell is not for it; empty if it is.
        saves_each_epoch: rather than after each step, which is for cells that are interrupted at an epoch's end.
    """

    run: Callable[..., None]
    why_not: Callable[[Cell], str]
    saves_each_epoch: bool = False


PROGRAMS: dict[str, Program] = {
    "stock Lightning": Program(lightning_peer.run, lightning_peer.why_not),
    "Lightning + StatefulDataLoader": Program(stateful_peer.run, stateful_peer.why_not),
    "stock Lightning, saving each epoch": Program(lightning_peer.run, lightning_peer.why_not, saves_each_epoch=True),
    "Lightning + StatefulDataLoader, saving each epoch": Program(
        stateful_peer.run, stateful_peer.why_not, saves_each_epoch=True
    ),
    "HF Trainer": Program(hf_peer.run, hf_peer.why_not),
    "accelerate": Program(accelerate_peer.run, accelerate_peer.why_not),
    "accelerate, generator": Program(accelerate_peer.run_with_generator, accelerate_peer.why_not),
    "accelerate, use_stateful_dataloader": Program(accelerate_peer.run_stateful, accelerate_peer.why_not),
    "accelerate, use_stateful_dataloader, generator": Program(
        accelerate_peer.run_stateful_with_generator, accelerate_peer.why_not
    ),
}
OURS = {"this package, Lightning": "lightning", "this package, loop": "loop"}
# A column shows the best of the programs in it.
COLUMNS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(OURS, ()),
    **{
        column: tuple(name for name in PROGRAMS if name.startswith(column))
        for column in ("stock Lightning", "Lightning + StatefulDataLoader", "HF Trainer", "accelerate")
    },
}


def cell_of(scenario: Scenario, program: str) -> Cell | str:
    """The cell as a program sees it, or why it sees none."""
    of_lightning = "Lightning" in program
    for driver in ("lightning", "loop") if of_lightning or program == "HF Trainer" else ("loop", "lightning"):
        cell = scenario.cells.get(driver)
        if cell is not None:
            reason = PROGRAMS[program].why_not(cell)
            if reason:
                return reason
            changes = {key: value for key, value in cell.changes.items() if key != "loader"}
            fields: dict[str, Any] = {"driver": program, "loader": "plain", "changes": changes}
            if PROGRAMS[program].saves_each_epoch:
                if "every_n_train_steps" not in cell.save or not _ends_epochs(cell):
                    return "not at an epoch's end"
                fields["save"] = {"every_n_epochs": 1, "save_top_k": -1}
            return replace(cell, **fields)
    raise ValueError(f"{scenario.name} has no cell.")


def _ends_epochs(cell: Cell) -> bool:
    if "accumulation schedule" in cell.callbacks:  # windows of 2 in the first epoch, then of 3
        return set(cell.stops) <= {4, 7}
    batches = ceil(cell.samples / ((cell.batch_size or 1) * cell.ranks))
    return all(stop % ceil(batches / cell.accumulate) == 0 for stop in cell.stops)


def all_cells() -> Iterator[Cell]:
    """Of all programs, this package's included."""
    for scenario in SCENARIOS:
        yield from scenario.cells.values()
        for program in PROGRAMS:
            cell = cell_of(scenario, program)
            if isinstance(cell, Cell):
                yield cell
