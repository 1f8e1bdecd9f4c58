"""How Lightning asked for loaders, so that a resumed run asks as the uninterrupted one did.

With ``reload_dataloaders_every_n_epochs`` the count begins where loaders were asked for last, and a user's
``train_dataloader`` may depend on ``trainer.current_epoch`` and on random numbers. Lightning saves neither: a resumed
run would ask in the epoch of the checkpoint, and again ``n`` epochs after that.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.loops.fit_loop import _FitLoop

from neuromanifold_gpt.data.shown_data import ShownData
from neuromanifold_gpt.lightning_io.loader_parts import data_of
from neuromanifold_gpt.state.rng import capture_rng_state, restore_rng_state

_FIELDS = {"training": "_last_train_dl_reload_epoch", "validation": "_last_val_dl_reload_epoch"}
DATA_PREFIX = "data."  # of paths in the manifest
_IS_DUE = {"training": "_should_reload_train_dl", "validation": "_should_reload_val_dl"}


class LoaderEpochs:
    """Follows where the fit loop and its validation set up their data."""

    def __init__(self, fit_loop: _FitLoop) -> None:
        self._fit_loop = fit_loop
        self._loops: dict[str, Any] = {"training": fit_loop, "validation": fit_loop.epoch_loop.val_loop}
        self._asked: dict[str, dict[str, Any]] = {}  # with which random numbers, and what was given
        self._data: dict[str, ShownData] = {}
        self._known: dict[str, list[weakref.ref[Any]]] = {}  # what has held data that was given
        self._loaded: Mapping[str, dict[str, Any]] = {}
        for name in self._loops:
            self._follow(name)

    def current(self) -> dict[str, dict[str, Any]]:
        """The epoch of each, infinite before the first time; where loaders are asked for anew, also how."""
        return {
            name: {"epoch": getattr(loop, _FIELDS[name]), **self._asked.get(name, {})}
            for name, loop in self._loops.items()
        }

    def shown_data(self) -> dict[str, str]:
        """What shows the training data, for the manifest; nothing where it is made anew by epochs."""
        data = self._data.get("training")
        return {} if data is None or "training" in self._asked else data.under(DATA_PREFIX)

    def compare_data(self, constants: Mapping[str, str]) -> None:
        """Compare with :meth:`shown_data` of the save, which is among other values there.

        Warns:
            DataOrderWarning: it is other data.
        """
        if (data := self._data.get("training")) is not None and "training" not in self._asked:
            data.warn_of_others(constants, DATA_PREFIX)

    def loaded(self, saved: Mapping[str, dict[str, Any]]) -> None:
        """A checkpoint has these :meth:`current`: until it is resumed from, loaders are asked for as they were then."""
        self._loaded = saved

    def resumed(self) -> None:
        """From here on, loaders are asked for anew where the uninterrupted run does so.

        Warns:
            DataOrderWarning: those that are trained or validated on until then have other data than at the save.
        """
        for name, saved in self._loaded.items():
            loop = self._loops[name]
            setattr(loop, _FIELDS[name], saved["epoch"])
            if name not in self._asked or "data" not in saved or getattr(loop, _IS_DUE[name]):
                continue
            self._data[name].warn_of_others(saved["data"])
            self._asked[name] = {"rng": saved["rng"], "data": saved["data"]}
        self._loaded = {}

    def _follow(self, name: str) -> None:
        set_up = self._loops[name].setup_data

        def as_it_was() -> None:
            saved = self._loaded.get(name, {})
            with self._at_epoch(saved.get("epoch", math.inf)), _random_numbers_of(saved.get("rng")):
                self._set_up(name, set_up)

        self._loops[name].setup_data = as_it_was

    def _set_up(self, name: str, set_up: Any) -> None:
        loop, rng = self._loops[name], capture_rng_state()
        before = loop._combined_loader
        set_up()
        if loop._combined_loader is not before:
            reloads = self._fit_loop.trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
            if reloads or name == "training":
                self._look_at_data(name)
            if reloads:
                self._asked[name] = {"rng": rng, "data": self._data[name].texts}

    def _look_at_data(self, name: str) -> None:
        """But for what a process has kept from the time before, such as tables that are made when they are needed."""
        known = [thing for reference in self._known.get(name, []) if (thing := reference()) is not None]
        data = data_of(self._loops[name]._combined_loader.flattened, known)
        holding = [owner for _, owner in data.owners()]
        self._known[name] = [weakref.ref(thing) for thing in (*known, *holding) if type(thing).__weakrefoffset__]
        self._data[name] = ShownData(data)

    @contextmanager
    def _at_epoch(self, epoch: float) -> Iterator[None]:
        if math.isinf(epoch):
            yield
            return
        progress = self._fit_loop.epoch_progress.current  # ``trainer.current_epoch`` is the number completed
        now, progress.completed = progress.completed, int(epoch)
        try:
            yield
        finally:
            progress.completed = now


@contextmanager
def _random_numbers_of(rng: dict[str, Any] | None) -> Iterator[None]:
    if rng is None:
        yield
        return
    now = capture_rng_state()
    restore_rng_state(rng)
    try:
        yield
    finally:
        restore_rng_state(now)
