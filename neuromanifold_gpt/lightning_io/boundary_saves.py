"""``ModelCheckpoint``'s decisions, carried out where the training state is whole, and undone where they fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import proxy

from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from neuromanifold_gpt.checkpoint.errors import CheckpointError, CheckpointWriteError, SaveFailedWarning
from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.lightning_io.bookkeeping import noted, put_back
from neuromanifold_gpt.lightning_io.ranks import together


class SavesAtBoundaries(ModelCheckpoint):
    """Decides in Lightning's hooks, as ``ModelCheckpoint``; touches files in :meth:`on_boundary` only.

    A decision whose files cannot be written is taken back: no path that is believed in is one of a file that is not
    there.

    Args:
        on_save_error: ``"raise"``, or ``"warn"`` and go on.
        options: of ``ModelCheckpoint``.
    """

    def __init__(self, *, on_save_error: str, **options: Any) -> None:
        super().__init__(**options)
        self._on_save_error = on_save_error
        # File operations decided inside a step, to be carried out in this order when the state is whole; with each that
        # makes a file, what was believed before the decision, should it fail.
        self._pending: list[tuple[Callable[[Trainer], None], dict[str, Any] | None]] = []
        self._pending_paths: set[str] = set()
        self._inside_hook = False
        self._before_decision: dict[str, Any] = {}

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

    def drop_pending(self) -> None:
        """Take back what was decided since the last boundary."""
        if self._pending:
            put_back(self, next(before for _, before in self._pending if before is not None))  # a save comes first
            self._pending.clear()
            self._pending_paths.clear()

    def save_now(self, trainer: Trainer) -> None:
        """Save this step beside the schedule, unless it is saved; what ``ModelCheckpoint`` believes stays as it is.

        Call it where the state is whole: when training has ended, or at a boundary (see ``boundaries.py``).

        Raises:
            CheckpointWriteError: whatever ``on_save_error`` says, which is about saves that will be tried again.
        """
        if self._last_global_step_saved == trainer.global_step:
            return
        before = noted(self)
        path = self._get_metric_interpolated_filepath_name(self._monitor_candidates(trainer), trainer)
        self._save_checkpoint(trainer, path)
        put_back(self, {**before, "_last_global_step_saved": trainer.global_step})
        self._after_save(trainer, path)

    def on_boundary(self, trainer: Trainer) -> None:
        """Carry out what was decided since the last one."""
        pending, self._pending = self._pending, []
        self._pending_paths.clear()
        not_removed: CheckpointWriteError | None = None
        for operation, before in pending:
            try:
                operation(trainer)
            except CheckpointError as error:
                if before is None and isinstance(error, CheckpointWriteError):
                    not_removed = error  # an old file that stays, whole or in part: nothing that follows needs it
                    continue
                put_back(self, before or self._before_decision)  # what follows builds on the file that is not there
                if not isinstance(error, CheckpointWriteError):
                    raise
                self._say(error)
                return
        if not_removed is not None:
            self._say(not_removed)
        if pending and self._last_global_step_saved == trainer.global_step:
            try:
                self._after_save(trainer, self._last_checkpoint_saved)
            except CheckpointWriteError as error:
                self._say(error)

    def _after_save(self, trainer: Trainer, saved: str) -> None:
        """Called when a decision has been carried out, with the path of its model file."""

    @contextmanager
    def _deferring(self) -> Iterator[None]:
        self._inside_hook = True
        try:
            yield
        finally:
            self._inside_hook = False

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        with self._deciding():
            super()._save_topk_checkpoint(trainer, monitor_candidates)

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        with self._deciding():
            super()._save_last_checkpoint(trainer, monitor_candidates)

    @contextmanager
    def _deciding(self) -> Iterator[None]:
        self._before_decision = noted(self)
        try:
            yield
        except CheckpointWriteError as error:  # of what was not put off
            put_back(self, self._before_decision)
            self._say(error)

    def _say(self, error: CheckpointWriteError) -> None:
        if self._on_save_error == "raise":
            raise error
        warn_of_failed_save(error, "Training goes on, the next save is tried as usual")

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        if self._inside_hook:
            self._pending.append((lambda trainer: self._write(trainer, filepath), self._before_decision))
            self._pending_paths.add(filepath)
            self._last_global_step_saved = trainer.global_step
            self._last_checkpoint_saved = filepath
        else:
            self._write(trainer, filepath)

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        def remove(trainer: Trainer) -> None:
            together(trainer, lambda: ModelCheckpoint._remove_checkpoint(self, trainer, filepath))

        if self._inside_hook:
            self._pending.append((remove, None))
        else:
            remove(trainer)

    def _link_checkpoint(self, trainer: Trainer, filepath: str, linkpath: str) -> None:  # type: ignore[override]
        def link(trainer: Trainer) -> None:
            stock = ModelCheckpoint._link_checkpoint
            together(trainer, lambda: stock(trainer, filepath, linkpath), ends_with_barrier=True)

        if self._inside_hook:
            self._pending.append((link, self._before_decision))
        else:
            link(trainer)

    def _write(self, trainer: Trainer, filepath: str) -> None:
        together(trainer, lambda: trainer.save_checkpoint(filepath, self.save_weights_only), ends_with_barrier=True)
        self._last_global_step_saved = trainer.global_step
        self._last_checkpoint_saved = filepath
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(proxy(self))

    def file_exists(self, filepath: _PATH, trainer: Trainer) -> bool:
        """Whether there is, or is about to be, a checkpoint of this name."""
        return str(filepath) in self._pending_paths or super().file_exists(filepath, trainer)


def warn_of_failed_save(error: CheckpointWriteError, then: str) -> None:
    """Warn of a save that failed, and say what happens ``then``."""
    warn_user(f"{error} {then}.", SaveFailedWarning)
