"""In which epochs Lightning asked for loaders, so that a resumed run asks as the uninterrupted one did.

With ``reload_dataloaders_every_n_epochs`` the count begins where loaders were asked for last, and a user's
``train_dataloader`` may depend on ``trainer.current_epoch``. Lightning saves neither: a resumed run would ask in the
epoch of the checkpoint, and again ``n`` epochs after that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.loops.fit_loop import _FitLoop

_FIELDS = {"training": "_last_train_dl_reload_epoch", "validation": "_last_val_dl_reload_epoch"}


class LoaderEpochs:
    """Follows where the fit loop and its validation set up their data."""

    def __init__(self, fit_loop: _FitLoop) -> None:
        self._fit_loop = fit_loop
        self._loops: dict[str, Any] = {"training": fit_loop, "validation": fit_loop.epoch_loop.val_loop}
        self._loaded: Mapping[str, float] = {}
        for name in self._loops:
            self._follow(name)

    def current(self) -> dict[str, float]:
        """The epoch of each; infinite before the first time."""
        return {name: getattr(loop, _FIELDS[name]) for name, loop in self._loops.items()}

    def loaded(self, epochs: Mapping[str, float]) -> None:
        """A checkpoint has these :meth:`current`: until it is resumed from, loaders are asked for as in that epoch."""
        self._loaded = epochs

    def resumed(self) -> None:
        """From here on, loaders are asked for anew where the uninterrupted run does so."""
        for name, epoch in self._loaded.items():
            setattr(self._loops[name], _FIELDS[name], epoch)
        self._loaded = {}

    def _follow(self, name: str) -> None:
        loop = self._loops[name]
        set_up = loop.setup_data

        def as_in_that_epoch() -> None:
            epoch = self._loaded.get(name, math.inf)
            if math.isinf(epoch):
                set_up()
            else:
                with self._at_epoch(int(epoch)):
                    set_up()

        loop.setup_data = as_in_that_epoch

    @contextmanager
    def _at_epoch(self, epoch: int) -> Iterator[None]:
        progress = self._fit_loop.epoch_progress.current  # ``trainer.current_epoch`` is the number completed
        now, progress.completed = progress.completed, epoch
        try:
            yield
        finally:
            progress.completed = now
