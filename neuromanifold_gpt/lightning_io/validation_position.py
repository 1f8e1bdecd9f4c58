"""What decides the batches of the next validation.

A loader of this package begins each validation anew, in an order of (seed, epoch): its seed has to be that of the
run's beginning. Of a stock ``DataLoader``, the sampler or the dataset may own a generator that goes on from one
validation to the next, and what the dataset counts in itself does so too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.utilities.combined_loader import CombinedLoader

from neuromanifold_gpt.data.errors import DatasetError
from neuromanifold_gpt.data.positioned_loader import PositionedLoader
from neuromanifold_gpt.lightning_io.loader_parts import DATA, ORDER, OwnedByLoaders, generators_in
from neuromanifold_gpt.lightning_io.validation_workers import PersistentWorkers
from neuromanifold_gpt.state.own_generators import warn_of_missing_generators


class ValidationPosition:
    """Follows the loaders of the validation in the fit loop. Samplers move in validations only: it looks after each.

    Args:
        loop: the validation loop of the fit loop.
        on_begin: called when a validation has its loaders and has not touched them.
    """

    def __init__(self, loop: _EvaluationLoop, on_begin: Callable[[], None]) -> None:
        self._loop = loop
        self._followed: CombinedLoader | None = None
        self._samplers = OwnedByLoaders([])
        self._data = OwnedByLoaders([])  # training may share it, and move it at any time
        self._workers = PersistentWorkers([])
        self._moved: dict[str, Any] | None = None
        set_up, tear_down = loop.setup_data, loop.teardown

        def followed() -> None:
            set_up()
            self._look_at_loaders()
            on_begin()

        def torn_down() -> None:
            tear_down()
            self._workers.stop()

        loop.setup_data = followed  # type: ignore[method-assign]
        loop.teardown = torn_down  # type: ignore[method-assign]

    def current(self) -> dict[str, Any]:
        """As plain values and tensors; empty before there are loaders."""
        if self._followed is None:
            return {}
        if self._moved is None:
            self._moved = {
                "positions": [
                    loader.position() if isinstance(loader, PositionedLoader) else None
                    for loader in self._followed.flattened
                ],
                "samplers": self._samplers.state(),
            }
        return {**self._moved, "workers_are_running": self._workers.are_running(), "data": self._data.state()}

    def has_moved(self) -> None:
        """A validation is over.

        Warns:
            InexactResumeWarning: something in it goes with no checkpoint.
        """
        self._moved = None
        for owned in (self._samplers, self._data):
            owned.look_for_generators()
        self._workers.warn_if_samples_draw()

    def go_to(self, saved: dict[str, Any]) -> None:
        """Put the loaders where they were; they are asked for now if Lightning has not done so yet.

        Random number generators may be used; the caller restores them afterwards.

        Warns:
            InexactResumeWarning: generators that a dataset or sampler had are not there, even behind a batch.
        """
        if not saved:
            return
        if self._loop._combined_loader is None:
            self._loop.setup_data()
        if self._followed is None or len(self._followed.flattened) != len(saved["positions"]):
            return  # validated otherwise now, or not at all
        for loader, position in zip(self._followed.flattened, saved["positions"], strict=True):
            if isinstance(loader, PositionedLoader) and position is not None:
                with contextlib.suppress(DatasetError):  # another kind of loader now: it validates in its own order
                    loader.load_state_dict(position)
                    loader.leave_pass()
        self._samplers.make_generators(generators_in(saved["samplers"]))
        self._data.make_generators(generators_in(saved["data"]))
        self._workers.start(saved["workers_are_running"])
        missing = self._samplers.restore(saved["samplers"])
        self._moved = None
        self.current()  # before others draw from what a sampler draws from
        warn_of_missing_generators([*missing, *self._data.restore(saved["data"])])

    def _look_at_loaders(self) -> None:
        self._moved = None
        combined = self._loop._combined_loader
        if combined is self._followed:
            return
        self._workers.leave()
        self._followed = combined
        loaders = combined.flattened if combined is not None else []
        self._samplers = OwnedByLoaders(loaders, ORDER)
        self._data = OwnedByLoaders(loaders, DATA)
        self._workers = PersistentWorkers(loaders)
