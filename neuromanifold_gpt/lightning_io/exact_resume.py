"""What Lightning's own checkpoint lacks for an exact resume: gathered at each save, put back before the next step."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from neuromanifold_gpt.checkpoint.environment import current_environment, warn_if_changed
from neuromanifold_gpt.checkpoint.errors import CheckpointWarning, MissingOptimizerError
from neuromanifold_gpt.lightning_io.boundaries import (
    BETWEEN_EPOCHS,
    EPOCH_END,
    STEP_END,
    STEP_END_VALIDATED,
    LoopBoundaries,
)
from neuromanifold_gpt.lightning_io.content import RESUME_KEY
from neuromanifold_gpt.state.modules import parameter_names, under_own_names
from neuromanifold_gpt.state.optimizers import add_names, group_names, keep_saved_dtypes, match_by_name
from neuromanifold_gpt.state.rng import capture_rng_state, gather_across_ranks, restore_own_rng_state


class InexactResumeWarning(CheckpointWarning):
    """A resume cannot continue in the same bits, for the reason given."""


@dataclass(frozen=True)
class _WholeState:
    """The loop at the last point at which it was whole, cheap enough to take after every step."""

    point: str
    global_step: int
    epoch: int
    fit_loop: dict[str, Any]
    rng: dict[str, Any]


class ExactResume(Callback):
    """Adds to each checkpoint, and restores:

    - the random number generators of every rank;
    - the names of the optimizers' parameters, by which their state is matched;
    - metrics that callbacks and schedulers monitor;
    - the point of the loop, so that validation, schedulers and batches are neither skipped nor repeated.

    :class:`SeparatedCheckpoint` puts it in front of the trainer's callbacks.
    """

    def __init__(self) -> None:
        self._boundaries: LoopBoundaries | None = None
        self._whole: _WholeState | None = None
        self._loaded: dict[str, Any] | None = None
        self._optimizer_states: list[dict[str, Any]] = []
        self._name_hook: Any = None
        self._listeners: list[Callable[[Trainer], None]] = []

    @classmethod
    def of(cls, trainer: Trainer) -> ExactResume:
        """The trainer's instance, made where there is none yet."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            if isinstance(callback, cls):
                return callback
        own = cls()
        # A new list: Lightning may be iterating over the old one.
        trainer.callbacks = [own, *callbacks]  # type: ignore[attr-defined]
        own.setup(trainer, trainer.lightning_module, "")
        return own

    def at_each_boundary(self, listener: Callable[[Trainer], None]) -> None:
        """Call ``listener`` whenever the state is whole, and when the fit loop is left."""
        if listener not in self._listeners:
            self._listeners.append(listener)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Follow the fit loop, and let checkpoints be loaded whose names are clean of ``torch.compile``."""
        if self._boundaries is None:
            self._boundaries = LoopBoundaries(
                trainer,
                on_boundary=lambda point: self._on_boundary(trainer, point),
                on_fit_left=lambda: self._notify(trainer),
                on_resume=lambda: self._restore(trainer),
            )
        if self._name_hook is None:
            self._name_hook = pl_module.register_load_state_dict_pre_hook(_use_own_names)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module as it was."""
        self._remove_name_hook()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The weights are loaded; what users load later is theirs."""
        self._remove_name_hook()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As :meth:`on_validation_start`."""
        self._remove_name_hook()

    def _remove_name_hook(self) -> None:
        if self._name_hook is not None:
            self._name_hook.remove()
            self._name_hook = None

    # ------------------------------------------------------------------ save

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Complete Lightning's checkpoint."""
        point, fit_loop, rng = self._point_to_resume(trainer)
        checkpoint["loops"]["fit_loop"] = fit_loop
        if self._whole is not None:
            checkpoint["epoch"] = self._whole.epoch
        names = parameter_names(pl_module)
        checkpoint["optimizer_states"] = [
            add_names(state, group_names(optimizer, names))
            for state, optimizer in zip(checkpoint["optimizer_states"], trainer.optimizers, strict=True)
        ]
        checkpoint[RESUME_KEY] = {
            "point": point,
            "rng_states": gather_across_ranks(rng),
            "callback_metrics": dict(sorted(trainer.callback_metrics.items())),
        }

    def _point_to_resume(self, trainer: Trainer) -> tuple[str | None, dict[str, Any], dict[str, Any]]:
        whole = self._whole
        if whole is not None and trainer.global_step == whole.global_step:
            return whole.point, whole.fit_loop, whole.rng
        fit_loop, rng = trainer.fit_loop.state_dict(), capture_rng_state()
        if not trainer.fit_loop.epoch_progress.current.ready:
            return BETWEEN_EPOCHS, fit_loop, rng  # before the first epoch
        if (epoch := fit_loop["epoch_progress"])["current"]["processed"] > epoch["current"]["completed"]:
            _complete(epoch)  # a hook of the epoch's end saves
            return EPOCH_END, fit_loop, rng
        batch = fit_loop["epoch_loop.batch_progress"]
        if batch["current"]["ready"] == batch["current"]["processed"]:
            _complete(batch)  # a hook of the step's end saves
            return STEP_END_VALIDATED if trainer.validating else STEP_END, fit_loop, rng
        warnings.warn(
            f"step {trainer.global_step} is saved before it is finished: a resume from it cannot be exact. Save "
            "between steps, or let SeparatedCheckpoint do it.",
            InexactResumeWarning,
            stacklevel=2,
        )
        return None, fit_loop, rng

    def _on_boundary(self, trainer: Trainer, point: str) -> None:
        self._whole = _WholeState(
            point=point,
            global_step=trainer.global_step,
            epoch=trainer.current_epoch - (point == BETWEEN_EPOCHS),
            fit_loop=trainer.fit_loop.state_dict(),
            rng=capture_rng_state(),
        )
        self._notify(trainer)

    def _notify(self, trainer: Trainer) -> None:
        for listener in self._listeners:
            listener(trainer)

    # --------------------------------------------------------------- restore

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take what :meth:`on_save_checkpoint` added, and hand Lightning the optimizer states in the order of now."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._whole = None
        self._loaded = checkpoint.get(RESUME_KEY)
        if self._loaded is None:
            warnings.warn(
                "the checkpoint was written without SeparatedCheckpoint: it has no random number generators, so the "
                "resume cannot be exact.",
                InexactResumeWarning,
                stacklevel=2,
            )
        elif self._loaded["point"] is not None and self._boundaries is not None:
            self._boundaries.resume_at(self._loaded["point"], checkpoint["loops"]["fit_loop"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Match optimizer state by name: now the optimizers exist, and Lightning has not loaded them yet."""
        self._remove_name_hook()
        checkpoint = trainer._checkpoint_connector._loaded_checkpoint
        if checkpoint and "optimizer_states" not in checkpoint:
            raise MissingOptimizerError(
                f"{trainer.ckpt_path}: this checkpoint is model-only, so training cannot resume from it. Give "
                "another one, or start anew from its weights: load_checkpoint(path, "
                "load_optimizer=False).restore(model=module)."
            )
        if self._loaded is None:
            return
        names = parameter_names(pl_module)
        saved = checkpoint["optimizer_states"]
        self._optimizer_states = [
            match_by_name(state, group_names(optimizer, names))
            for state, optimizer in zip(saved, trainer.optimizers, strict=False)
        ] + saved[len(trainer.optimizers) :]
        checkpoint["optimizer_states"] = self._optimizer_states

    def _restore(self, trainer: Trainer) -> None:
        """Called at the very point: nothing runs between this and the next step."""
        loaded, self._loaded = self._loaded, None
        assert loaded is not None, "the loop resumes only from a checkpoint that was loaded"
        for optimizer, state in zip(trainer.optimizers, self._optimizer_states, strict=True):
            keep_saved_dtypes(optimizer, state)
        self._optimizer_states = []
        trainer._logger_connector._callback_metrics.update(loaded["callback_metrics"])
        if "environment" in loaded:  # a unified file has none
            here = current_environment(trainer.strategy.root_device.type, trainer.world_size)
            warn_if_changed(loaded["environment"], here)
        restore_own_rng_state(loaded["rng_states"])


def _use_own_names(module: torch.nn.Module, state: dict[str, Any], *arguments: Any) -> None:
    """A ``load_state_dict`` pre-hook: translate clean names, and say what does not fit before anything is changed."""
    _prefix, _metadata, strict, *_ = arguments
    renamed = under_own_names(module, state, strict=strict)
    state.clear()
    state.update(renamed)


def _complete(progress: dict[str, Any]) -> None:
    for counts in (progress["total"], progress["current"]):
        counts["completed"] = counts["processed"]
