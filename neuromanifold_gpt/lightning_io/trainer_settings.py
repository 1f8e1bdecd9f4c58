"""The trainer's settings that change what it computes: those of a resume are compared with those of the save."""

from __future__ import annotations

import math
from typing import Any

from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.checkpoint.user_warnings import warn_user

_TRAINING_LIMIT = "limit_train_batches"
_VALIDATION_INTERVAL = "val_check_interval"


class TrainerSettings:
    """Made when the trainer has its training data, and before callbacks change settings."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._limit_at_start = trainer.limit_train_batches
        self._saved: dict[str, Any] = {}

    def current(self) -> dict[str, Any]:
        """Plain values; those that decide about validation only where there is one."""
        trainer = self._trainer
        accumulation = trainer.accumulate_grad_batches
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks):
            accumulation = 0  # it sets another number for each epoch
        algorithm = trainer.gradient_clip_algorithm
        # Lightning looks at the limit when it asks for loaders, so without reloading, a later change has no effect.
        reloads = trainer.reload_dataloaders_every_n_epochs > 0  # type: ignore[attr-defined]
        settings = {
            "accumulate_grad_batches": accumulation,
            "gradient_clip_algorithm": None if algorithm is None else str(algorithm),
            "gradient_clip_val": trainer.gradient_clip_val,
            "precision": str(trainer.precision),
            _TRAINING_LIMIT: trainer.limit_train_batches if reloads else self._limit_at_start,
        }
        if trainer.enable_validation:
            settings["check_val_every_n_epoch"] = trainer.check_val_every_n_epoch
            settings[_VALIDATION_INTERVAL] = self._validation_interval()
        return settings

    def restored(self, saved: dict[str, Any]) -> None:
        """Take :meth:`current` of the save, for :meth:`compare`: between epochs, callbacks may still set theirs."""
        self._saved = saved

    def compare(self) -> None:
        """Say which are not those of the save; once.

        Warns:
            InexactResumeWarning: lists them.
        """
        if not self._saved:
            return
        saved, now, self._saved = self._saved, self.current(), {}
        changed = [
            f"{key} was {saved[key]!r} and is {now[key]!r}"
            for key in now
            if key in saved and saved[key] != now[key] and self._effect(key, saved[key]) != self._effect(key, now[key])
        ]
        if changed:
            warn_user(
                f"settings of the trainer have changed since the save: {'; '.join(changed)}. The new ones are used. "
                "A callback that changes them must set them in on_train_start as well.",
                InexactResumeWarning,
            )

    def _validation_interval(self) -> int | float | None:
        """Of ``val_check_interval`` and ``val_check_batch``, which callbacks may set, the one that decides."""
        trainer = self._trainer
        if trainer._val_check_time_interval is not None:  # type: ignore[attr-defined]
            return None
        interval, batches = trainer.val_check_interval, trainer.val_check_batch
        if trainer.fit_loop._combined_loader is None or self._effect(_VALIDATION_INTERVAL, interval) == batches:
            return interval
        return batches

    def _effect(self, key: str, value: Any) -> Any:
        """Numbers of batches, of limits and intervals that may also be fractions of an epoch."""
        fit_loop = self._trainer.fit_loop
        if value is None or fit_loop._combined_loader is None:
            return value
        if key == _TRAINING_LIMIT:
            lengths = [sized_len(loader) for loader in fit_loop._combined_loader.flattened]
            return [_part_of(math.inf if length is None else length, value) for length in lengths]
        if key == _VALIDATION_INTERVAL:
            return value if isinstance(value, int) else max(1, _part_of(fit_loop.max_batches, value))
        return value


def _part_of(batches: float, limit: int | float) -> int | float:
    """As Lightning reads a limit, where an integer is a number of batches and a float a part of them."""
    if isinstance(limit, int):
        return min(batches, limit)
    return batches if math.isinf(batches) else int(batches * limit)
