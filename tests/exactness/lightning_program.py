"""A training program with Lightning, as a user writes it; everything in it is told by the cell."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from neuromanifold_gpt import SeparatedCheckpoint

from .cell import Cell
from .ingredients.callbacks import CALLBACKS
from .ingredients.data import make_loader, make_validation_loader
from .ingredients.manual_modules import MANUAL_MODULES
from .ingredients.modules import MODULES, Plain
from .ingredients.odd_modules import ODD_MODULES, Data
from .ingredients.own_state import DATA_MODULES, OWN_STATE_MODULES
from .phase import Phase
from .trace import Trace, by_name, dump

ALL_MODULES: dict[str, type[Plain]] = {**MODULES, **MANUAL_MODULES, **ODD_MODULES, **OWN_STATE_MODULES}


def run(phase: Phase, cell: Cell, trace: Trace) -> None:
    """Train from the newest checkpoint of the run, if there is one, to the end of the phase."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    phase.seed()
    module = ALL_MODULES[cell.module](cell, trace)
    trainer = make_trainer(phase, cell)
    fit(trainer, module, phase, cell)
    if phase.stop is None:
        dump(Path(phase.directory) / f"dump-{phase.rank}.pt", final_state(trainer, module))


def run_again(phases: list[tuple[Phase, Trace]], cell: Cell) -> None:
    """The same objects, fitted again from the newest checkpoint with a larger ``max_steps``."""
    phase, trace = phases[0]
    phase.seed()
    module = ALL_MODULES[cell.module](cell, trace)
    trainer = make_trainer(phase, cell)
    for phase, trace in phases:
        module.trace = trace
        trainer.fit_loop.epoch_loop.max_steps = phase.stop or cell.steps
        fit(trainer, module, phase, cell)
    dump(Path(phase.directory) / f"dump-{phase.rank}.pt", final_state(trainer, module))


def fit(trainer: Trainer, module: Plain, phase: Phase, cell: Cell) -> None:
    """Fit with new loaders."""
    path: str | None = None
    if phase.saves:
        path = str(phase.by_hand) if phase.by_hand.exists() else "last"
    if "seeds workers" in cell.loop:
        seed_everything(torch.initial_seed() % 2**32, workers=True, verbose=False)
    if cell.module == "own loaders":
        trainer.fit(module, ckpt_path=path)
    elif cell.data_module is not None:
        trainer.fit(module, datamodule=DATA_MODULES[cell.data_module](cell), ckpt_path=path)
    elif "data module" in cell.loop:
        trainer.fit(module, datamodule=Data(cell), ckpt_path=path)
    else:
        validation = make_validation_loader(cell) if cell.validate else None
        trainer.fit(module, make_loader(cell), validation, ckpt_path=path)


def make_trainer(phase: Phase, cell: Cell, checkpoint: type[ModelCheckpoint] = SeparatedCheckpoint) -> Trainer:
    """The trainer of a process, which saves by ``checkpoint``."""
    options: dict[str, Any] = {"max_epochs": -1, "max_steps": cell.steps, "logger": False, **cell.trainer}
    if phase.stop is not None and cell.ending in ("finish", "same process", "same trainer"):
        options["max_steps"] = phase.stop
    if options["logger"] == "csv":
        options["logger"] = CSVLogger(phase.directory, name="logs", flush_logs_every_n_steps=1)
    callbacks = [callback for name in cell.callbacks for callback in CALLBACKS[name](Path(phase.directory))]
    if phase.saves:
        callbacks.append(checkpoint(phase.checkpoints, **_save_options(cell)))
    if phase.stop is not None and cell.ending not in ("finish", "same process", "same trainer", "kill while saving"):
        callbacks.insert(0, _ending(phase, cell))
    if options.pop("async", False):
        options["plugins"] = [AsyncCheckpointIO()]
    if cell.ranks > 1:
        options.update({"strategy": "ddp", "devices": cell.ranks})
    if cell.accumulate > 1:
        options["accumulate_grad_batches"] = cell.accumulate
    return Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar="progress bar" in cell.callbacks,
        enable_model_summary=False,
        precision=cell.precision,
        gradient_clip_val=cell.clip,
        use_distributed_sampler=cell.loader != "own",
        **options,
    )


def _save_options(cell: Cell) -> dict[str, Any]:
    options = dict(cell.save)
    if "interval_sec" in options:
        options["train_time_interval"] = timedelta(seconds=options.pop("interval_sec"))
    return options


def _ending(phase: Phase, cell: Cell) -> Callback:
    if cell.ending == "should_stop":
        return _Stops(phase)
    return _saving_by_hand(phase, cell) if cell.save_in_hook else _Ends(phase, cell)


class _Stops(Callback):
    """A user who has training stopped."""

    def __init__(self, phase: Phase) -> None:
        self._phase = phase

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step == self._phase.stop


class _Ends(Callback):
    """Ends the process when the batch after the last step is there."""

    def __init__(self, phase: Phase, cell: Cell) -> None:
        assert phase.stop is not None
        self._phase, self._cell, self._stop, self._ended = phase, cell, phase.stop, False

    def on_train_batch_start(self, trainer: Trainer, *arguments: Any) -> None:
        if self._cell.ending != "kill in validation":
            self._end(trainer)

    def on_validation_batch_start(self, trainer: Trainer, *arguments: Any) -> None:
        if self._cell.ending == "kill in validation" and not trainer.sanity_checking:
            self._end(trainer)

    def _end(self, trainer: Trainer) -> None:
        if trainer.global_step >= self._stop and not self._ended:
            self._ended = True
            self._phase.end(self._cell)


class _SavesByHand(Callback):
    """A user's ``trainer.save_checkpoint`` in a hook of his own; the process ends behind it."""

    def __init__(self, phase: Phase, cell: Cell) -> None:
        self._phase, self._cell = phase, cell

    def save(self, trainer: Trainer, *arguments: Any, **options: Any) -> None:
        if trainer.sanity_checking or trainer.global_step != self._phase.stop:
            return
        trainer.save_checkpoint(self._phase.by_hand)
        self._phase.end(self._cell)


class _SavesInWindow(_SavesByHand):
    """As above, but in the middle of an accumulation window: after its second batch."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % 4 == 1:
            self.save(trainer)


def _saving_by_hand(phase: Phase, cell: Cell) -> Callback:
    assert cell.save_in_hook is not None
    if cell.save_in_hook == "inside a window":
        return _SavesInWindow(phase, cell)
    callback = _SavesByHand(phase, cell)
    hook: Callable[..., None] = callback.save
    setattr(callback, cell.save_in_hook, hook)
    return callback


def _is_of_the_package(callback: Callback) -> bool:
    return type(callback).__module__.startswith("neuromanifold_gpt.")


def final_state(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Everything that a run can end in, by the objects' own methods."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    averages = [c._average_model for c in callbacks if isinstance(c, WeightAveraging) and c._average_model]
    others = [c for c in callbacks if not isinstance(c, Checkpoint) and not _is_of_the_package(c)]
    states = {type(c).__name__: c.state_dict() for c in others}
    loop = trainer.fit_loop
    return {
        "counters": {"global_step": trainer.global_step, "epoch": trainer.current_epoch},
        "progress": {"batch": vars(loop.epoch_loop.batch_progress.total), "epoch": vars(loop.epoch_progress.total)},
        "lr_schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "optimizers": [by_name(optimizer, module) for optimizer in trainer.optimizers],
        "weights and buffers": module.state_dict(),
        "trained": {name: parameter.requires_grad for name, parameter in module.named_parameters()},
        "averages": [average.state_dict() for average in averages],
        "callbacks": copy.deepcopy({name: state for name, state in states.items() if name != "Timer"}),
        "metrics": dict(sorted(trainer.callback_metrics.items())),
    }
