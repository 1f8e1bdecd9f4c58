"""The columns of the table: programs that interpret a cell, and the cells as they see them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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
    """

    run: Callable[..., None]
    why_not: Callable[[Cell], str]


PROGRAMS: dict[str, Program] = {
    "stock Lightning": Program(lightning_peer.run, lightning_peer.why_not),
    "Lightning + StatefulDataLoader": Program(stateful_peer.run, stateful_peer.why_not),
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
    "stock Lightning": ("stock Lightning",),
    "Lightning + StatefulDataLoader": ("Lightning + StatefulDataLoader",),
    "HF Trainer": ("HF Trainer",),
    "accelerate": tuple(name for name in PROGRAMS if name.startswith("accelerate")),
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
            return replace(cell, **fields)
    raise ValueError(f"{scenario.name} has no cell.")


def all_cells() -> Iterator[Cell]:
    """Of all programs, this package's included."""
    for scenario in SCENARIOS:
        yield from scenario.cells.values()
        for program in PROGRAMS:
            cell = cell_of(scenario, program)
            if isinstance(cell, Cell):
                yield cell
