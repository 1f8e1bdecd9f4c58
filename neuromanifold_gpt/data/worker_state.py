"""Notice what dataset and ``collate_fn`` change in themselves inside worker processes: no checkpoint knows it there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import nn
from torch.utils.data import get_worker_info

from neuromanifold_gpt.data.errors import DataOrderWarning
from neuromanifold_gpt.state.module_values import ModuleValues
from neuromanifold_gpt.state.owned_state import OwnedState

_WATCHED_BATCHES = 4  # of each worker: what counts samples or batches has changed by then


class WatchedBatch(NamedTuple):
    """A batch, and the names of values that its worker has changed; ``DataLoader`` pins the memory of both."""

    batch: Any
    changed: list[str]


class WatchedCollate:
    """``collate``, which tells the main process what changes in this worker.

    Args:
        collate: what to do.
        dataset: the object that the worker reads from.
        collate_fn: the object that is looked at, where ``collate`` wraps it.
    """

    def __init__(self, collate: Callable[[Any], Any], dataset: Any, collate_fn: Any) -> None:
        self._collate = collate
        self._roots = {"dataset": dataset, "collate_fn": collate_fn}
        # A module that is trained is no part of its loaders' state; here, it is a copy.
        module = getattr(collate_fn, "__self__", None)
        self._module = module if isinstance(module, nn.Module) else None
        self._changes: list[Callable[[], Iterable[str]]] = []
        self._batches = 0

    def __call__(self, samples: Any) -> WatchedBatch:
        """Collate, and look in a worker's first batches."""
        if get_worker_info() is None:
            return WatchedBatch(self._collate(samples), [])
        if self._batches == 0:  # behind the first reading, at which files are opened and the like
            self._changes = [OwnedState(self._roots).changed_values]
            if self._module is not None:
                values = ModuleValues(self._module)
                self._changes.append(lambda: [f"module.{name.lstrip('.')}" for name in values.changed()["integers"]])
        batch = self._collate(samples)
        self._batches += 1
        if self._batches > _WATCHED_BATCHES:
            return WatchedBatch(batch, [])
        return WatchedBatch(batch, sorted(name for changes in self._changes for name in changes()))


def warn_of_values_in_workers(names: list[str]) -> None:
    """Say what :class:`WatchedCollate` has found.

    Warns:
        DataOrderWarning: names the values.
    """
    warnings.warn(
        f"{', '.join(names[:6])} changes in the workers, whose copies of it no checkpoint knows: where samples depend "
        "on it, a resume in the middle of an epoch cannot be exact. Derive it from the sample, set it in the main "
        "process, or use num_workers=0.",
        DataOrderWarning,
        stacklevel=4,  # who iterates
    )
