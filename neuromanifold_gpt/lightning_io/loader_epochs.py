"""How Lightning asked for loaders, so that a resumed run asks as the uninterrupted one did.

With ``reload_dataloaders_every_n_epochs`` the count begins where loaders were asked for last, and a user's
``train_dataloader`` may depend on ``trainer.current_epoch`` and ``global_step``, on random numbers and on what the
module counts. Lightning saves nothing of it: a resumed run would ask as it is at the checkpoint, and again ``n``
epochs after that.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop

from neuromanifold_gpt.data.positioned_loader import PositionedLoader
from neuromanifold_gpt.data.shown_data import ShownData
from neuromanifold_gpt.lightning_io.loader_parts import DATA_PREFIX, data_of
from neuromanifold_gpt.lightning_io.users_parts import that_save_state
from neuromanifold_gpt.state.inspection.flat_values import equal
from neuromanifold_gpt.state.inspection.stored_values import stored
from neuromanifold_gpt.state.module_values import ModuleValues
from neuromanifold_gpt.state.own_generators import generators_around
from neuromanifold_gpt.state.owned_state import OwnedState
from neuromanifold_gpt.state.rng import capture_rng_state, restore_rng_state

_FIELDS = {"training": "_last_train_dl_reload_epoch", "validation": "_last_val_dl_reload_epoch"}
_IS_DUE = {"training": "_should_reload_train_dl", "validation": "_should_reload_val_dl"}


class LoaderEpochs:
    """Follows where the fit loop and its validation set up their data."""

    def __init__(self, fit_loop: _FitLoop) -> None:
        self._fit_loop = fit_loop
        self._loops: dict[str, Any] = {"training": fit_loop, "validation": fit_loop.epoch_loop.val_loop}
        self._asked: dict[str, dict[str, Any]] = {}  # in which state of things, and what was given
        self._data: dict[str, ShownData] = {}
        self._known: dict[str, list[weakref.ref[Any]]] = {}  # what has held data that was given
        self._loaded: Mapping[str, dict[str, Any]] = {}
        self._module_values: dict[str, Any] = {}
        for name in self._loops:
            self._follow(name)

    def current(self) -> dict[str, dict[str, Any]]:
        """The epoch of each, infinite before the first time; where loaders are asked for anew, also how."""
        return {
            name: {"epoch": getattr(loop, _FIELDS[name]), **self._asked.get(name, {})}
            for name, loop in self._loops.items()
        }

    def shown_data(self) -> dict[str, str]:
        """What shows the training data, for the manifest; nothing where it is made anew by epochs, nor of what has
        changed where users save state: they may put it back.
        """
        data = self._data.get("training")
        if data is None or "training" in self._asked:
            return {}
        combined, collate_fns = self._fit_loop._combined_loader, self._collate_fns()
        found = data.under(DATA_PREFIX, collate_fns)
        if combined is None or not that_save_state(self._trainer):
            return found
        now = ShownData(data_of(combined.flattened, [])).under(DATA_PREFIX, collate_fns)
        return {path: text for path, text in found.items() if now.get(path) == text}

    def compare_data(self, constants: Mapping[str, str]) -> None:
        """Compare with :meth:`shown_data` of the save, which is among other values there.

        Warns:
            DataOrderWarning: it is other data.
        """
        if (data := self._data.get("training")) is not None and "training" not in self._asked:
            data.warn_of_others(constants, DATA_PREFIX, self._collate_fns())

    def _collate_fns(self) -> dict[str, Any]:
        """Of the loaders of this package; others are followed elsewhere."""
        combined = self._fit_loop._combined_loader
        named = enumerate(combined.flattened if combined is not None else [])
        return {f"{n}.collate_fn": loader.collate_fn for n, loader in named if isinstance(loader, PositionedLoader)}

    def loaded(self, saved: Mapping[str, dict[str, Any]], module_values: dict[str, Any]) -> None:
        """A checkpoint has these :meth:`current`: until it is resumed from, loaders are asked for as they were then.

        Args:
            saved: it.
            module_values: what the module had counted at the save, which it has as soon as they were asked for.
        """
        self._loaded, self._module_values = saved, module_values

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
            self._asked[name] = {key: value for key, value in saved.items() if key != "epoch"}
        self._loaded = {}

    def _follow(self, name: str) -> None:
        set_up = self._loops[name].setup_data

        def as_it_was() -> None:
            saved = self._loaded.get(name, {})
            with self._at_epoch(saved.get("epoch", math.inf)), self._in_state(saved):
                self._set_up(name, set_up)
            if self._loaded:
                ModuleValues(self._trainer.lightning_module).restore(self._module_values)

        self._loops[name].setup_data = as_it_was

    def _set_up(self, name: str, set_up: Any) -> None:
        loop = self._loops[name]
        reloads = self._trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
        is_about_to_ask = loop._combined_loader is None or getattr(loop, _IS_DUE[name])
        state = self._state() if reloads and is_about_to_ask else {}
        before = loop._combined_loader
        set_up()
        if loop._combined_loader is not before:
            if reloads or name == "training":
                self._look_at_data(name)
            if reloads:
                self._asked[name] = {**state, "data": self._data[name].texts}

    def _state(self) -> dict[str, Any]:
        """What users' methods that give loaders may go by."""
        return {
            "rng": capture_rng_state(),
            "step": self._trainer.global_step,
            "numbers": ModuleValues(self._trainer.lightning_module).numbers(),
            "generators": self._generators().generator_states(),
        }

    @contextmanager
    def _in_state(self, saved: Mapping[str, Any]) -> Iterator[None]:
        """For what is called, a :meth:`_state`: generators of users that it has drawn from go on from there."""
        if "step" not in saved:
            with _random_numbers_of(saved.get("rng")):
                yield
            return
        ModuleValues(self._trainer.lightning_module).restore({"numbers": saved["numbers"], "buffers": {}})
        generators, then = self._generators(), saved["generators"]
        now = generators.generator_states()
        generators.restore_generators(then)
        try:
            with self._at_step(saved["step"]), _random_numbers_of(saved["rng"]):
                yield
        finally:
            behind = generators.generator_states()
            unused = {path for path in now if path in then and equal(behind.get(path), then[path])}
            generators.restore_generators({path: now[path] for path in unused})

    def _generators(self) -> OwnedState:
        trainer = self._trainer
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        things = [*trainer.lightning_module.modules(), data]
        return generators_around(trainer.lightning_module, {"datamodule": data}, (trainer,), things=things)

    def _look_at_data(self, name: str) -> None:
        """But for what a process has kept from the time before, such as tables that are made when they are needed."""
        known = [thing for reference in self._known.get(name, []) if (thing := reference()) is not None]
        data = data_of(self._loops[name]._combined_loader.flattened, known)
        holding = [owner for _, owner in data.owners()]
        self._known[name] = [weakref.ref(thing) for thing in (*known, *holding) if type(thing).__weakrefoffset__]
        self._data[name] = ShownData(data)

    @property
    def _trainer(self) -> Trainer:
        return self._fit_loop.trainer

    @contextmanager
    def _at_step(self, step: int) -> Iterator[None]:
        loop = self._fit_loop.epoch_loop
        if self._trainer.lightning_module.automatic_optimization:
            progress = loop.automatic_optimization.optim_progress.optimizer.step.total
        else:
            progress = loop.manual_optimization.optim_step_progress.total
        now, progress.completed = progress.completed, step
        try:
            yield
        finally:
            progress.completed = now

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


def with_numbers_that_change(
    asked: Mapping[str, dict[str, Any]], module_values: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """:meth:`LoaderEpochs.current`, of the module's numbers those that training changes: others are settings."""
    changing = module_values["numbers"].keys()
    return {
        name: {**state, "numbers": {path: stored(n) for path, n in state["numbers"].items() if path in changing}}
        if "numbers" in state
        else state
        for name, state in asked.items()
    }
