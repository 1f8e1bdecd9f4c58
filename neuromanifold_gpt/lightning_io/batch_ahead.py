"""The batch that is fetched ahead of a step, where the length of the data is not known.

It is made before that step and trained on behind it, so a position from which it is fetched again is one from before
the step. What the step, and hooks, have changed in the data since is put back when it has been fetched. Where it
depends on what else training changes, such as the number of the step, a resume makes another one, which is said.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.data.positioned_loader import PositionedLoader
from neuromanifold_gpt.lightning_io.streams_read_again import shown_batch
from neuromanifold_gpt.state.inspection.flat_values import equal
from neuromanifold_gpt.state.inspection.stored_values import stored
from neuromanifold_gpt.state.owned_state import OwnedState

_AHEAD, _CHANGED = "ahead", "changed_since_fetch"


class BatchAhead:
    """Follows the data of a fit loop."""

    def __init__(self) -> None:
        self._loaders: list[Any] = []
        self._owned: dict[int, OwnedState] = {}  # by number of the loader; of others, what is read again is put back
        self._values: dict[int, dict[str, Any]] = {}  # when the last batch had been fetched

    def was_fetched(self, trainer: Trainer) -> None:
        """Training goes on with the batch before it."""
        if _batches_ahead(trainer):
            self._look(trainer)
            self._values = {number: owned.values(at_a_glance=True) for number, owned in self._owned.items()}

    def added_to(self, position: dict[str, Any], trainer: Trainer) -> dict[str, Any]:
        """A position of now, with the number of the batch: most are never saved, and to show it costs some 0.1 ms."""
        if not _batches_ahead(trainer):
            return position
        return {**position, _AHEAD: _fetched(trainer), _CHANGED: self._changed()}

    def restore(self, position: dict[str, Any], trainer: Trainer) -> None:
        """It has been fetched again, from a position that was saved.

        Warns:
            InexactResumeWarning: the batch is another one.
        """
        saved, batches = position.get(_AHEAD), _batches_ahead(trainer)
        if saved is not None and batches and shown_batch(batches[0]) != saved:
            warn_user(
                "this resume is not exact: the next batch, which had been fetched before the step that was saved last, "
                "is another one now. What the data gives seems to depend on what training changes (the number of the "
                "step, an attribute that a hook sets): let the module apply that to the batch.",
                InexactResumeWarning,
            )
        self._look(trainer)
        for number, values in position.get(_CHANGED, {}).items():
            if number in self._owned:
                self._owned[number].set_values(values)

    def _look(self, trainer: Trainer) -> None:
        combined = trainer.fit_loop._combined_loader
        loaders = combined.flattened if combined is not None else []
        if len(loaders) != len(self._loaders) or any(map(_is_other, loaders, self._loaders)):
            self._loaders, self._values = [*loaders], {}
            ours = {number: loader for number, loader in enumerate(loaders) if isinstance(loader, PositionedLoader)}
            self._owned = {
                number: OwnedState({"dataset": loader.dataset, "collate_fn": loader.collate_fn})
                for number, loader in ours.items()
            }

    def _changed(self) -> dict[int, dict[str, Any]]:
        found = {}
        for number, before in self._values.items():
            now = self._owned[number].values(at_a_glance=True)
            changed = [path for path, value in now.items() if not equal(value, before.get(path, ...))]
            found[number] = {path: stored(now[path]) for path in changed}
        return {number: values for number, values in found.items() if values}


def with_shown_batch(position: dict[str, Any], trainer: Trainer) -> dict[str, Any]:
    """A position to be saved: with what shows the batch, unless it is being trained on, which may have changed it."""
    if not isinstance(position.get(_AHEAD), int):  # it is as it was loaded
        return position
    batches = _batches_ahead(trainer)
    is_ahead = batches and position[_AHEAD] == _fetched(trainer)
    return {**position, _AHEAD: shown_batch(batches[0]) if is_ahead else None}


def _fetched(trainer: Trainer) -> int:
    fetcher = trainer.fit_loop._data_fetcher
    return 0 if fetcher is None else fetcher.fetched


def _batches_ahead(trainer: Trainer) -> list[Any]:
    fetched = getattr(trainer.fit_loop._data_fetcher, "batches", [])
    return [batch for batch, *_ in fetched]  # the rest are numbers, which begin anew


def _is_other(one: Any, another: Any) -> bool:
    return one is not another
