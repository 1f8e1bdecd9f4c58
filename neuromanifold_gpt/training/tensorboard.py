"""TensorBoard logs that are no reason to end a run: what cannot be written is left out, with one warning."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

from neuromanifold_gpt.checkpoint.errors import SaveFailedWarning
from neuromanifold_gpt.checkpoint.user_warnings import warn_user


class SpareableTensorBoard(TensorBoardLogger):
    """Lightning's logger, for a disk that may be full."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write numbers, if they can be written."""
        with self._spared():
            super().log_metrics(metrics, step)

    def save(self) -> None:
        """Flush, if that can be done."""
        with self._spared():
            super().save()

    def finalize(self, status: str) -> None:
        """Close, if that can be done."""
        with self._spared():
            super().finalize(status)

    @contextlib.contextmanager
    def _spared(self) -> Iterator[Any]:
        try:
            yield
        except (OSError, ValueError) as error:
            reason = error.__cause__ if isinstance(error, ValueError) else error  # Lightning wraps whatever it is
            if not isinstance(reason, OSError):
                raise
            warn_user(
                f"{self.log_dir}: TensorBoard logs cannot be written ({reason.strerror or reason}) and are incomplete "
                "from here on. Training goes on.",
                SaveFailedWarning,
            )
