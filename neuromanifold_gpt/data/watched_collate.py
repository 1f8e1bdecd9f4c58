"""Notice what dataset and ``collate_fn`` change inside workers, in themselves and around: it goes with no position."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import nn
from torch.utils.data import get_worker_info

from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.data.changes import shown_containers
from neuromanifold_gpt.data.errors import DataOrderWarning
from neuromanifold_gpt.state.inspection.users_objects import is_a_time
from neuromanifold_gpt.state.inspection.users_variables import users_variables
from neuromanifold_gpt.state.module_values import ModuleValues
from neuromanifold_gpt.state.owned_state import OwnedState

WATCHED_BATCHES = 5  # of each process: what counts samples or batches has changed by then


class WatchedBatch(NamedTuple):
    """A batch, and what was noticed where it was made; ``DataLoader`` pins the memory of both.

    Attributes:
        changed: the names of what has changed there.
        draws: samples or their collation draw random numbers, as far as it was seen.
    """

    batch: Any
    changed: list[str]
    draws: bool


class WatchedCollate:
    """``collate``, which tells the loader what changes in its worker, in the first batches.

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
        if self._batches == 1 and get_worker_info() is not None:
            self._changes = self._begin()  # behind the first batch, at which files are opened and the like
        elif self._batches == WATCHED_BATCHES:
            self._changes = []  # which hold what the dataset held
        return WatchedBatch(batch, changed, samples.draws or getattr(self._collate, "draws", False))

    def _begin(self) -> list[Callable[[], Iterable[str]]]:
        owned = OwnedState(self._roots, with_trainers=True)
        before = shown_containers(owned)
        changes: list[Callable[[], Iterable[str]]] = [
            lambda: [path for path, shown in shown_containers(owned).items() if before.get(path, shown) != shown],
            lambda: owned.changed_values().keys() - owned.shared_numbers().keys(),  # see ChangesBesidePosition
        ]
        around = _numbers_around(owned)
        changes.append(lambda: [path for path, now in _numbers_around(owned).items() if around.get(path, now) != now])
        if self._module is not None:
            values = ModuleValues(self._module)
            changes.append(lambda: [f"module.{name.lstrip('.')}" for name in values.changed()["numbers"]])
        return changes


def _numbers_around(owned: OwnedState) -> dict[str, Any]:
    """In variables of users' Python modules, such as a mean that samples are normalized by; lists may be memos."""
    return {
        path: value
        for path, value in users_variables(owned.objects())
        if type(value) in (bool, int, float) and not is_a_time(path.rpartition(".")[2], value)
    }


def warn_of_changes(names: list[str], workers: int) -> None:
    """Say what :class:`WatchedCollate` has found.

    Warns:
        DataOrderWarning: names the values.
    """
    where, remedy = "as batches are made, and no position has it", "save it yourself"
    if workers:
        where = "in the workers, whose copies of it no checkpoint knows"
        remedy = "set it in the main process, or use num_workers=0"
    warn_user(
        f"{', '.join(names[:6])} changes {where}: where samples depend on it, a resume in the middle of an epoch "
        f"cannot be exact. Derive it from the sample, or {remedy}.",
        DataOrderWarning,
    )
