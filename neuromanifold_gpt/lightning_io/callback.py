"""The callback that is all a user writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO
from lightning.pytorch.utilities.types import STEP_OUTPUT

from neuromanifold_gpt.checkpoint.discovery import latest_checkpoint
from neuromanifold_gpt.checkpoint.errors import CheckpointError
from neuromanifold_gpt.checkpoint.naming import MODEL_SUFFIX
from neuromanifold_gpt.checkpoint.staging import stage as stage_tree
from neuromanifold_gpt.lightning_io.exact_resume import ExactResume
from neuromanifold_gpt.lightning_io.plugin import SeparatedCheckpointIO

_DEFAULT_FILENAME = "checkpoint-step{step:06d}"
_STATE_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


class SeparatedCheckpoint(ModelCheckpoint):
    """Lightning's ``ModelCheckpoint``, writing separated checkpoints from which training resumes exactly.

    One line in ``callbacks=[...]`` is all it takes; the plugin is installed by itself.
    ``trainer.fit(ckpt_path=...)`` takes a model file, ``"last"`` (the newest intact checkpoint of ``dirpath``) or
    ``"best"``.

    What ``ModelCheckpoint`` decides in the middle of a step or of an epoch's end is written as soon as that step
    (its validation and schedulers included) or epoch is over, since only then the state is whole; with gradient
    accumulation, as soon as the window is. Old files are removed when the new one is durable.

    Args:
        dirpath: where the checkpoints go; as in ``ModelCheckpoint`` by default.
        filename: template as in ``ModelCheckpoint``, by default ``checkpoint-step{step:06d}``; ``-model.pt``,
            ``-optimizer.pt`` and ``.json`` are added.
        enable_version_counter: add ``-v1`` rather than replace a checkpoint of the same name; by default only if
            ``filename`` does not contain ``{step``.
        monitor, mode, save_top_k, save_last, save_weights_only, save_on_exception, every_n_train_steps, every_n_epochs,
            train_time_interval, save_on_train_epoch_end, auto_insert_metric_name, verbose: as in ``ModelCheckpoint``.

    Example:
        >>> trainer = Trainer(callbacks=[SeparatedCheckpoint("out", every_n_train_steps=50)])  # doctest: +SKIP
        >>> trainer.fit(module, ckpt_path="last")  # doctest: +SKIP
    """

    FILE_EXTENSION = MODEL_SUFFIX

    def __init__(
        self,
        dirpath: _PATH | None = None,
        filename: str | None = None,
        *,
        monitor: str | None = None,
        mode: str = "min",
        save_top_k: int = 1,
        save_last: bool | Literal["link"] | None = None,
        save_weights_only: bool = False,
        save_on_exception: bool = False,
        every_n_train_steps: int | None = None,
        every_n_epochs: int | None = None,
        train_time_interval: timedelta | None = None,
        save_on_train_epoch_end: bool | None = None,
        auto_insert_metric_name: bool = True,
        enable_version_counter: bool | None = None,
        verbose: bool = False,
    ) -> None:
        filename = filename or _DEFAULT_FILENAME
        super().__init__(
            dirpath=dirpath,
            filename=filename,
            monitor=monitor,
            mode=mode,
            save_top_k=save_top_k,
            save_last=save_last,
            save_weights_only=save_weights_only,
            save_on_exception=save_on_exception,
            every_n_train_steps=every_n_train_steps,
            every_n_epochs=every_n_epochs,
            train_time_interval=train_time_interval,
            save_on_train_epoch_end=save_on_train_epoch_end,
            auto_insert_metric_name=auto_insert_metric_name and filename != _DEFAULT_FILENAME,
            enable_version_counter="{step" not in filename
            if enable_version_counter is None
            else enable_version_counter,
            verbose=verbose,
        )
        # File operations decided inside a step, to be carried out in this order when the state is whole.
        self._pending: list[Callable[[Trainer], None]] = []
        self._pending_paths: set[str] = set()
        self._inside_hook = False
        self._saved_before_pending = (self._last_global_step_saved, self._last_checkpoint_saved)

    # ------------------------------------------------------ when to save: as ModelCheckpoint decides, but later

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Install the plugin and what makes resumes exact."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            # Now, not at the first save hours later: an object that could not be read back.
            stage_tree({"hyper_parameters": dict(pl_module.hparams)})
        _install_plugin(trainer)
        ExactResume.of(trainer).at_each_boundary(self._on_boundary)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Decide as ``ModelCheckpoint``; the files are written at the end of the step."""
        with self._deferring():
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide as ``ModelCheckpoint``; the files are written at the end of the step."""
        with self._deferring():
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide as ``ModelCheckpoint``; the files are written at the end of the epoch."""
        with self._deferring():
            super().on_train_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As ``ModelCheckpoint``, which forgets that ``fast_dev_run`` saves nothing."""
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            super().on_train_end(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Drop what waits for an end of the step that will not come; save now if asked for."""
        if self._pending:
            self._pending.clear()
            self._pending_paths.clear()
            self._last_global_step_saved, self._last_checkpoint_saved = self._saved_before_pending
        super().on_exception(trainer, pl_module, exception)

    def _on_boundary(self, trainer: Trainer) -> None:
        pending, self._pending = self._pending, []
        self._pending_paths.clear()
        for operation in pending:
            operation(trainer)

    @contextmanager
    def _deferring(self) -> Iterator[None]:
        if not self._pending:
            self._saved_before_pending = (self._last_global_step_saved, self._last_checkpoint_saved)
        self._inside_hook = True
        try:
            yield
        finally:
            self._inside_hook = False

    # ------------------------------------------------------------------------------------ what a save consists of

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        if not self._inside_hook:
            super()._save_checkpoint(trainer, filepath)
            return
        self._pending.append(lambda trainer: ModelCheckpoint._save_checkpoint(self, trainer, filepath))
        self._pending_paths.add(filepath)
        self._last_global_step_saved = trainer.global_step
        self._last_checkpoint_saved = filepath

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        if not self._inside_hook:
            super()._remove_checkpoint(trainer, filepath)
            return
        self._pending.append(lambda trainer: ModelCheckpoint._remove_checkpoint(self, trainer, filepath))

    def _link_checkpoint(self, trainer: Trainer, filepath: str, linkpath: str) -> None:  # type: ignore[override]
        if not self._inside_hook:
            ModelCheckpoint._link_checkpoint(trainer, filepath, linkpath)
            return
        self._pending.append(lambda trainer: ModelCheckpoint._link_checkpoint(trainer, filepath, linkpath))

    def file_exists(self, filepath: _PATH, trainer: Trainer) -> bool:
        """Whether there is, or is about to be, a checkpoint of this name."""
        return str(filepath) in self._pending_paths or super().file_exists(filepath, trainer)

    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        directory = str(self._ModelCheckpoint__resolve_ckpt_dir(trainer))  # type: ignore[attr-defined]
        newest = latest_checkpoint(directory, resumable=True)
        return set() if newest is None else {str(newest.model_path)}

    # ------------------------------------------------------------------ its own state: the same in every directory

    def state_dict(self) -> dict[str, Any]:
        """As ``ModelCheckpoint``, with file names in place of paths, and with what it has decided but not done."""
        state = super().state_dict()
        del state["dirpath"]
        for key in _STATE_PATHS:
            state[key] = self._relative(state[key])
        state["best_k_models"] = {self._relative(path): score for path, score in state["best_k_models"].items()}
        state["last_checkpoint_saved"] = self._relative(self._last_checkpoint_saved)
        state["defer_save_until_validation"] = self._defer_save_until_validation
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up :meth:`state_dict`; checkpoints that are no longer there are forgotten."""
        state = dict(state_dict)
        if "dirpath" not in state:
            state["dirpath"] = self.dirpath
            for key in _STATE_PATHS:
                state[key] = self._absolute(state[key])
            best = {self._absolute(path): score for path, score in state["best_k_models"].items()}
            state["best_k_models"] = {path: score for path, score in best.items() if Path(path).exists()}
        self._last_checkpoint_saved = self._absolute(state.pop("last_checkpoint_saved", ""))
        self._defer_save_until_validation = state.pop("defer_save_until_validation", False)
        super().load_state_dict(state)
        self.current_score = state["current_score"]  # which ModelCheckpoint saves but does not load

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """The step that was resumed from is saved: the rest of its hooks must not save it again."""
        self._last_global_step_saved = checkpoint["global_step"]

    def _relative(self, path: str) -> str:
        return os.path.relpath(path, str(self.dirpath)) if path else ""

    def _absolute(self, path: str) -> str:
        return os.path.normpath(Path(str(self.dirpath)) / path) if path else ""


def _install_plugin(trainer: Trainer) -> None:
    innermost: CheckpointIO | None = trainer.strategy._checkpoint_io
    wrapper: _WrappingCheckpointIO | None = None
    while isinstance(innermost, _WrappingCheckpointIO):  # AsyncCheckpointIO and the like
        wrapper = innermost
        innermost = wrapper.checkpoint_io
    if innermost is None or type(innermost) is TorchCheckpointIO:
        innermost = SeparatedCheckpointIO()
        if wrapper is not None:
            wrapper.checkpoint_io = innermost
        else:
            trainer.strategy.checkpoint_io = innermost
    if not isinstance(innermost, SeparatedCheckpointIO):
        raise CheckpointError(
            "SeparatedCheckpoint needs SeparatedCheckpointIO, but the trainer has the plugin "
            f"{type(innermost).__name__}. Remove that plugin, or use ModelCheckpoint with it."
        )
    innermost.clean_names = True
