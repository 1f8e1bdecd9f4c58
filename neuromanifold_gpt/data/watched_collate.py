"""Notice what dataset and ``collate_fn`` change in themselves that goes with no position.

That is whatever changes inside worker processes, and, wherever it changes, what is kept in lists, dicts and arrays: a
dataset keeps its data in such.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn
from torch.utils.data import get_worker_info

from neuromanifold_gpt.data.errors import DataOrderWarning
from neuromanifold_gpt.state.module_values import ModuleValues
from neuromanifold_gpt.state.owned_state import OwnedState
from neuromanifold_gpt.state.shown_values import shown_value

WATCHED_BATCHES = 5  # of each process: what counts samples or batches has changed by then
_WATCHED_ELEMENTS = 1 << 16


class WatchedBatch(NamedTuple):
    """A batch, and the names of what has changed where it was made; ``DataLoader`` pins the memory of both."""

    batch: Any
    changed: list[str]


class WatchedCollate:
    """``collate``, which tells the loader what changes in this process, in the first batches.

    Args:
        collate: what to do.
        dataset: the object that samples are read from.
        collate_fn: the object that is looked at, where ``collate`` wraps it.
    """

    def __init__(self, collate: Callable[[Any], Any], dataset: Any, collate_fn: Any) -> None:
        self._collate = collate
        self._roots = {"dataset": dataset, "collate_fn": collate_fn}
        # A module that is trained is no part of its loaders' state; in a worker, it is a copy.
        module = getattr(collate_fn, "__self__", None)
        self._module = module if isinstance(module, nn.Module) else None
        self._changes: list[Callable[[], Iterable[str]]] = []
        self._batches = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_changes": [], "_batches": 0}  # each worker looks for those of its own copy

    def __call__(self, samples: Any) -> WatchedBatch:
        """Collate, and look."""
        batch = self._collate(samples)
        self._batches += 1
        changed = sorted({name for changes in self._changes for name in changes()})
        if self._batches == 1:  # behind the first batch, at which files are opened and the like
            self._changes = self._begin()
        elif self._batches == WATCHED_BATCHES:
            self._changes = []  # which hold what the dataset held
        return WatchedBatch(batch, changed)

    def _begin(self) -> list[Callable[[], Iterable[str]]]:
        owned = OwnedState(self._roots)
        before = shown_containers(owned)
        changes: list[Callable[[], Iterable[str]]] = [
            lambda: [path for path, shown in shown_containers(owned).items() if before.get(path, shown) != shown]
        ]
        if get_worker_info() is not None:
            changes.append(owned.changed_values)
            if self._module is not None:
                values = ModuleValues(self._module)
                changes.append(lambda: [f"module.{name.lstrip('.')}" for name in values.changed()["integers"]])
        return changes


def shown_containers(owned: OwnedState, also: tuple[type, ...] = ()) -> dict[str, str]:
    """What shows whether lists, dicts and small arrays have changed, by path; not those of objects, such as files.

    Args:
        owned: what is looked at.
        also: further types of attributes.
    """
    values = {path: value for path, value in owned.attributes() if isinstance(value, also) or _is_watched(value)}
    return {path: shown for path, value in values.items() if (shown := shown_value(value)) is not None}


def _is_watched(value: Any) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        return math.prod(value.shape) <= _WATCHED_ELEMENTS  # larger ones are data, perhaps in a mapped file
    return isinstance(value, list | tuple | deque | dict)


def warn_of_changes(names: list[str], workers: int) -> None:
    """Say what :class:`WatchedCollate` has found.

    Warns:
        DataOrderWarning: names the values.
    """
    where, remedy = "as batches are made, and no position has it", "save it yourself"
    if workers:
        where = "in the workers, whose copies of it no checkpoint knows"
        remedy = "set it in the main process, or use num_workers=0"
    warnings.warn(
        f"{', '.join(names[:6])} changes {where}: where samples depend on it, a resume in the middle of an epoch "
        f"cannot be exact. Derive it from the sample, or {remedy}.",
        DataOrderWarning,
        stacklevel=4,  # who iterates
    )
