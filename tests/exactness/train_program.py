"""``train.py`` itself, with the flags of the cell; its training step is watched, and ended where the cell says so."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

from neuromanifold_gpt.training.config import TrainConfig
from neuromanifold_gpt.training.module import GPTModule
from neuromanifold_gpt.training.run import train

from .cell import Cell
from .lightning_program import final_state
from .phase import Phase
from .trace import Trace, dump

_SMALL = {
    "n_layer": 1,
    "n_embd": 32,
    "n_head": 2,
    "block_size": 32,
    "batch_size": 4,
    "eval_interval": 6,
    "eval_iters": 2,
    "save_interval": 5,
    "log_interval": 1,
    "sample_tokens": 0,
}


def run(phase: Phase, cell: Cell, trace: Trace) -> None:
    """Train as ``python train.py`` does; what it says about changed settings is recorded as warnings are."""
    _watch(phase, cell, trace)
    finishes = phase.stop is not None and cell.ending == "finish"
    settings = {**_SMALL, "max_iters": phase.stop if finishes else cell.steps, **cell.flags}
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            code = train(TrainConfig(out_dir=str(phase.checkpoints), **settings))
    finally:
        print(said.getvalue())
        _record(said.getvalue(), phase)
    if code:
        raise SystemExit(code)


def _watch(phase: Phase, cell: Cell, trace: Trace) -> None:
    training_step = GPTModule.training_step

    def watched_step(self: GPTModule, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == phase.stop and cell.ending != "finish":
            phase.end(cell)
        loss = training_step(self, batch, batch_idx)
        rates = [group["lr"] for group in self.trainer.optimizers[0].param_groups]
        trace.train(self.trainer.global_step, loss.detach(), rates, {"id": batch[0].sum(1)})
        return loss

    def leave_dump(self: GPTModule) -> None:
        if phase.stop is None:
            dump(Path(phase.directory) / "dump-0.pt", final_state(self.trainer, self))

    GPTModule.training_step = watched_step  # type: ignore[method-assign]
    GPTModule.on_train_end = leave_dump  # type: ignore[method-assign]


def _record(said: str, phase: Phase) -> None:
    with (Path(phase.directory) / f"warnings-{phase.process}-{phase.rank}.jsonl").open("a") as file:
        for line in said.splitlines():
            if line.startswith("  changed: "):
                entry = {"classes": ["changed setting"], "message": line, "at_start": True, "ours": True}
                print(json.dumps(entry), file=file)
