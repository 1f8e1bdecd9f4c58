"""Lightning with torchdata's ``StatefulDataLoader``, whose state Lightning saves and loads by itself."""

from __future__ import annotations

from torchdata.stateful_dataloader import StatefulDataLoader

from tests.exactness.cell import Cell
from tests.exactness.phase import Phase
from tests.exactness.trace import Trace

from . import lightning_peer


def why_not(cell: Cell) -> str:
    """Why it has no such scenario; empty if it has."""
    return lightning_peer.why_not(cell)


def run(phase: Phase, cell: Cell, trace: Trace) -> None:
    """Train from the newest checkpoint of the run, if there is one, to the end of the phase."""
    lightning_peer.run(phase, cell, trace, StatefulDataLoader)
