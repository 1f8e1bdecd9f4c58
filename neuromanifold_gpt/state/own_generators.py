"""Random number generators that are not the global ones: of the model, of others, and of users' Python modules."""

from __future__ import annotations

import warnings
from collections import deque
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.state.module_values import OF_EVERY_MODULE
from neuromanifold_gpt.state.modules import listed
from neuromanifold_gpt.state.owned_state import Generator, OwnedState
from neuromanifold_gpt.state.users_objects import is_of_users_class
from neuromanifold_gpt.state.users_variables import users_variables

_CONTAINERS = (dict, list, tuple, deque)
# Of the model, what it owns is searched with it; of the others, what decides batches is in the position in the data.
_SEARCHED_ELSEWHERE = (nn.Module, Dataset, DataLoader, Sampler)


def what_is_drawn_from(roots: dict[str, Any], ignored: tuple[Any, ...] = ()) -> OwnedState:
    """The generators of some objects by name, and those of users' Python modules.

    Args:
        roots, ignored: as for :class:`OwnedState`.
    """
    variables = {path: value for path, value in users_variables() if _may_have_some(value)}
    return OwnedState({**roots, **variables}, ignored, only_generators=True)


def _may_have_some(value: Any) -> bool:
    kind = type(value)
    if issubclass(kind, Generator):
        return True
    return not issubclass(kind, _SEARCHED_ELSEWHERE) and (kind in _CONTAINERS or is_of_users_class(value))


def generators_around(
    module: nn.Module, others: dict[str, Any] | None = None, ignored: tuple[Any, ...] = ()
) -> OwnedState:
    """The generators that a model and its parts own, and those of :func:`what_is_drawn_from`.

    Args:
        module: the model.
        others, ignored: further objects by name, and those not to search.
    """
    roots = {
        f"{name}.{attribute}".lstrip("."): value
        for name, part in module.named_modules()
        for attribute, value in vars(part).items()
        if attribute not in OF_EVERY_MODULE
    }
    return what_is_drawn_from({**roots, **(others or {})}, ignored)


def warn_of_missing_generators(paths: list[str]) -> None:
    """Say what :meth:`OwnedState.restore_generators` gave.

    Warns:
        InexactResumeWarning: there is something to say.
    """
    if paths:
        warnings.warn(
            f"the checkpoint has random number generators that nobody has here: {listed(paths)}. Make them before "
            "training begins: with Lightning in __init__ or on_train_start, in a plain loop before restore().",
            InexactResumeWarning,
            stacklevel=3,
        )
