"""Lightning as its documentation resumes: ``ModelCheckpoint``, and ``fit(ckpt_path=...)`` in the same script."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from tests.exactness.cell import Cell
from tests.exactness.ingredients.data import make_loader, make_validation_loader
from tests.exactness.lightning_program import ALL_MODULES, final_state, make_trainer
from tests.exactness.phase import Phase
from tests.exactness.trace import Trace, dump

from .peer_trace import PeerTrace
from .progress import newest_checkpoint

SEED = 1


def why_not(cell: Cell) -> str:
    """Why Lightning has no such scenario; empty if it has."""
    if cell.driver != "lightning":
        return "a plain loop's"
    return ""


def run(phase: Phase, cell: Cell, trace: Trace, loader: type[DataLoader[Any]] = DataLoader) -> None:
    """Train from the newest checkpoint of the run, if there is one, to the end of the phase."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    phase.seed()  # other weights in each process
    trace = PeerTrace(trace)
    module = ALL_MODULES[cell.module](cell, trace)
    if cell.compile_backend is None:
        trace.watch(module.network)
    seed_everything(SEED, workers=True, verbose=False)
    trainer = make_trainer(phase, cell, ModelCheckpoint)
    trainer.fit(
        module,
        make_loader(cell, kind=loader),
        make_validation_loader(cell) if cell.validate else None,
        ckpt_path=newest_checkpoint(phase.checkpoints),
        weights_only=False,
    )
    if phase.stop is None:
        dump(Path(phase.directory) / f"dump-{phase.rank}.pt", final_state(trainer, module))
