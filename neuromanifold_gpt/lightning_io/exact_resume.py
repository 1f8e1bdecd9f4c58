"""What Lightning's own checkpoint lacks for an exact resume: gathered at each save, put back before the next step."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.fabric.utilities.types import _Stateful
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.trainer.states import TrainerFn

from neuromanifold_gpt.checkpoint.environment import current_environment, warn_if_changed
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning, MissingOptimizerError, StateMismatchError
from neuromanifold_gpt.data.loader import ResumableDataLoader
from neuromanifold_gpt.lightning_io.boundaries import BETWEEN_EPOCHS, EPOCH_END, LoopBoundaries
from neuromanifold_gpt.lightning_io.content import RESUME_KEY
from neuromanifold_gpt.lightning_io.epoch_setup import set_up_epoch_again, warn_of_epoch_hooks
from neuromanifold_gpt.lightning_io.resume_point import ResumePointTracker
from neuromanifold_gpt.state.modules import listed, module_modes, parameter_names, restore_modes, under_own_names
from neuromanifold_gpt.state.optimizers import (
    add_names,
    check_group_order,
    group_names,
    keep_saved_dtypes,
    match_optimizer_state,
    without_names,
)
from neuromanifold_gpt.state.rng import gather_across_ranks, restore_own_rng_state


class ExactResume(Callback):
    """Adds to each checkpoint, and restores:

    - the random number generators of every rank;
    - the names of the optimizers' parameters, by which their state is matched;
    - metrics that callbacks and schedulers monitor;
    - which parameters are frozen and which modules are in evaluation mode;
    - the point of the loop, so that validation, schedulers and batches are neither skipped nor repeated.

    :class:`SeparatedCheckpoint` puts it in front of the trainer's callbacks.
    """

    def __init__(self) -> None:
        self._boundaries: LoopBoundaries | None = None
        self._tracker = ResumePointTracker()
        self._loaded: dict[str, Any] | None = None
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
            load = trainer.strategy.load_optimizer_state_dict

            def load_by_name(checkpoint: Mapping[str, Any]) -> None:
                self._load_optimizer_states(trainer, load, checkpoint)

            trainer.strategy.load_optimizer_state_dict = load_by_name  # type: ignore[method-assign]
        if self._name_hook is None:
            self._name_hook = pl_module.register_load_state_dict_pre_hook(_own_names_hook(pl_module))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module as it was."""
        self._remove_name_hook()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The weights are loaded; what users load later is theirs. A save inside the validation goes back to here."""
        self._remove_name_hook()
        self._tracker.validation_begins(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on the validation is done, whatever hooks follow."""
        self._tracker.validation_is_done()

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
        loop = self._tracker.current(trainer)
        checkpoint["loops"]["fit_loop"] = loop.fit_loop
        checkpoint["epoch"] = loop.epoch
        # Those that decide about checkpoints name this very one; the others are as they were at the point.
        savers = {callback.state_key for callback in trainer.checkpoint_callbacks}
        earlier = {key: state for key, state in (loop.callbacks or {}).items() if key not in savers}
        checkpoint["callbacks"] = {key: earlier.get(key, state) for key, state in checkpoint["callbacks"].items()}
        names = parameter_names(pl_module)
        checkpoint["optimizer_states"] = [
            add_names(state, group_names(optimizer, names))
            for state, optimizer in zip(checkpoint["optimizer_states"], trainer.optimizers, strict=True)
        ]
        checkpoint[RESUME_KEY] = {
            "point": loop.point,
            "rng_states": gather_across_ranks(loop.rng),
            # Before the first step after a resume, the loaded ones are not in place yet.
            "callback_metrics": dict(
                sorted({**(self._loaded or {}).get("callback_metrics", {}), **trainer.callback_metrics}.items())
            ),
            "modes": module_modes(pl_module),
        }

    def _on_boundary(self, trainer: Trainer, point: str) -> None:
        self._tracker.reached(trainer, point)
        self._notify(trainer)

    def _notify(self, trainer: Trainer) -> None:
        for listener in self._listeners:
            listener(trainer)

    # --------------------------------------------------------------- restore

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take what :meth:`on_save_checkpoint` added, and hand Lightning the optimizer states in the order of now."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._loaded = checkpoint.get(RESUME_KEY)
        self._tracker.whole = None
        if self._loaded is None:
            warnings.warn(
                "the checkpoint was written without SeparatedCheckpoint: it has no random number generators, so the "
                "resume cannot be exact.",
                InexactResumeWarning,
                stacklevel=2,
            )
        elif self._loaded["point"] is not None and self._boundaries is not None:
            self._tracker.loaded(checkpoint, self._loaded)
            self._boundaries.resume_at(self._loaded["point"], checkpoint["loops"]["fit_loop"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a checkpoint without optimizer state, before Lightning does so in other words."""
        self._remove_name_hook()
        checkpoint = trainer._checkpoint_connector._loaded_checkpoint
        if checkpoint and "optimizer_states" not in checkpoint:
            raise MissingOptimizerError(
                f"{trainer.ckpt_path}: this checkpoint is model-only, so training cannot resume from it. Give another "
                "one, or start anew from its weights: load_checkpoint(path, load_optimizer=False)."
            )

        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        stoppers = [callback for callback in callbacks if isinstance(callback, EarlyStopping)]
        if checkpoint and any(stopper.stopping_reason != EarlyStoppingReason.NOT_STOPPED for stopper in stoppers):
            trainer.should_stop = True  # it had decided to stop, and Lightning forgets that

    def _load_optimizer_states(
        self, trainer: Trainer, load: Callable[[Any], None], checkpoint: Mapping[str, Any]
    ) -> None:
        """In place of the strategy's own loading, which goes by position and casts."""
        names = parameter_names(trainer.lightning_module)
        saved = checkpoint["optimizer_states"]
        if len(saved) != len(trainer.optimizers):
            raise StateMismatchError(
                f"the checkpoint has the state of {len(saved)} optimizers, the module configures "
                f"{len(trainer.optimizers)}. Configure them as at the save."
            )
        if trainer.lr_scheduler_configs:  # their state counts groups
            for optimizer, state in zip(trainer.optimizers, saved, strict=True):
                check_group_order(optimizer, state, names)
        matched = [match_optimizer_state(*pair, names) for pair in zip(trainer.optimizers, saved, strict=True)]
        load({**checkpoint, "optimizer_states": [without_names(state) for state in matched]})
        for optimizer, state in zip(trainer.optimizers, matched, strict=True):
            keep_saved_dtypes(optimizer, state)

    def _restore(self, trainer: Trainer) -> None:
        """Called at the very point: nothing runs between this and the next step."""
        loaded, self._loaded = self._loaded, None
        assert loaded is not None, "the loop resumes only from a checkpoint that was loaded"
        changed = restore_modes(trainer.lightning_module, loaded["modes"])
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if changed and not any(isinstance(callback, BaseFinetuning) for callback in callbacks):
            warnings.warn(
                "frozen and trained parameters are those of the checkpoint; this run had set otherwise: "
                f"{listed(changed)}.",
                InexactResumeWarning,
                stacklevel=2,
            )
        middle_of_epoch = loaded["point"] not in (BETWEEN_EPOCHS, EPOCH_END)
        if middle_of_epoch:
            self._restore_loaders(trainer)
        trainer._logger_connector._callback_metrics.update(loaded["callback_metrics"])
        if "environment" in loaded:  # a unified file has none
            here = current_environment(trainer.strategy.root_device.type, trainer.world_size)
            warn_if_changed(loaded["environment"], here)
        if middle_of_epoch:
            set_up_epoch_again(trainer)
            warn_of_epoch_hooks(trainer)
        restore_own_rng_state(loaded["rng_states"])

    def _restore_loaders(self, trainer: Trainer) -> None:
        """Put loaders where they were: Lightning has loaded them, and then told them the number of the epoch.

        A loader that is cycled beside a longer one is in an epoch of its own.
        """
        combined, whole = trainer.fit_loop._combined_loader, self._tracker.whole
        assert combined is not None
        assert whole is not None
        loaders = [loader for loader in combined.flattened if isinstance(loader, _Stateful)]
        for loader, state in zip(loaders, whole.fit_loop["state_dict"].get("combined_loader", []), strict=False):
            if isinstance(loader, ResumableDataLoader):
                loader.load_state_dict(state)


def _own_names_hook(pl_module: LightningModule) -> Callable[..., None]:
    """A ``load_state_dict`` pre-hook: translate clean names, and say what does not fit before anything is changed."""
    expected = weakref.ref(pl_module)

    def use_own_names(module: torch.nn.Module, state: dict[str, Any], *arguments: Any) -> None:
        _prefix, _metadata, strict, *_ = arguments
        if module is not expected():
            return  # a copy of the module, such as an average of its weights: not what Lightning loads into
        renamed = under_own_names(module, state, strict=strict)
        state.clear()
        state.update(renamed)

    return use_own_names
