"""Workers of stock validation loaders that stay from one validation to the next.

Starting them draws their seed from torch's global generator, once in a run: a resumed run must not draw another one
behind the random numbers that it restores. What samples draw in them goes on from one validation to the next, and no
checkpoint has it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from lightning.fabric.utilities.types import _Stateful
from lightning.pytorch.utilities.combined_loader import _shutdown_workers_and_reset_iterator
from torch.utils.data import DataLoader, get_worker_info

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.state.inspection.flat_values import equal
from neuromanifold_gpt.state.owned_state import OwnedState
from neuromanifold_gpt.state.rng import cpu_generator_states

_WATCHED_BATCHES = 5  # of each worker


class PersistentWorkers:
    """Those of a list of validation loaders."""

    def __init__(self, loaders: list[Any]) -> None:
        self._loaders: list[DataLoader[Any]] = [
            loader
            for loader in loaders
            if isinstance(loader, DataLoader) and not isinstance(loader, _Stateful) and loader.persistent_workers
        ]
        self._samples_have_drawn = torch.zeros(1, dtype=torch.uint8).share_memory_() if self._loaders else None
        for loader in self._loaders:
            with contextlib.suppress(AttributeError):  # a users' loader may have it as a property
                loader.collate_fn = _CollateThatSeesDraws(loader.collate_fn, self._samples_have_drawn)

    def are_running(self) -> list[bool]:
        """For each loader."""
        return [loader._iterator is not None for loader in self._loaders]

    def start(self, were_running: list[bool]) -> None:
        """Start those that were running at the save.

        Random number generators and samplers are used; the caller restores them afterwards.
        """
        for loader, was_running in zip(self._loaders, were_running, strict=False):
            if was_running and loader._iterator is None:
                iter(loader)

    def leave(self) -> None:
        """The loaders are as they were, and no longer watched."""
        for loader in self._loaders:
            if isinstance(loader.collate_fn, _CollateThatSeesDraws):  # else somebody has set another
                loader.collate_fn = loader.collate_fn.collate_fn

    def stop(self) -> None:
        """Leave, and end workers: Lightning does so only if there has been a validation since their start."""
        self.leave()
        for loader in self._loaders:
            _shutdown_workers_and_reset_iterator(loader)

    def warn_if_samples_draw(self) -> None:
        """A validation is over.

        Warns:
            InexactResumeWarning: samples have drawn random numbers in it; said once.
        """
        if self._samples_have_drawn is None or not self._samples_have_drawn:
            return
        self._samples_have_drawn = None
        warn_user(
            "a resume of this training cannot be exact: with persistent_workers, what the samples of a validation "
            "loader draw from random number generators depends on all validations before. Use resumable(loader), or "
            "persistent_workers=False.",
            InexactResumeWarning,
        )


class _CollateThatSeesDraws:
    """``collate_fn``, which notices whether random numbers are drawn from one batch of its worker to the next."""

    def __init__(self, collate_fn: Callable[[Any], Any], samples_have_drawn: torch.Tensor | None) -> None:
        self.collate_fn = collate_fn
        self._samples_have_drawn = samples_have_drawn  # in memory that is shared with the main process
        self._batches = 0
        self._states: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        if name == "collate_fn":  # a copy that is being made has none yet
            raise AttributeError(name)
        return getattr(self.collate_fn, name)

    def __call__(self, samples: Any) -> Any:
        batch = self.collate_fn(samples)
        if (worker := get_worker_info()) is None or self._batches == _WATCHED_BATCHES:
            return batch
        before, self._states = self._states, self._states_of_generators(worker.dataset)
        if self._batches and self._samples_have_drawn is not None and not equal(before, self._states):
            self._samples_have_drawn.fill_(1)
        self._batches += 1
        return batch

    def _states_of_generators(self, dataset: Any) -> list[Any]:
        owned = OwnedState({"dataset": dataset, "collate_fn": self.collate_fn}, only_generators=True)
        return [*cpu_generator_states(), owned.generator_states()]
