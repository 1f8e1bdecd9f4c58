"""Tensors that an optimizer and a state that is kept beside it have in common, which two files cannot say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.state.inspection.plain_reading import CONTAINERS, attribute_dict, values_in
from neuromanifold_gpt.state.unsaved.shown_values import memory_of

_DEPTH = 5  # of containers: the best of several optimizers' states
_LOOKED_AT = 1000  # of one container
_said: WeakSet[torch.optim.Optimizer] = WeakSet()


def warn_of_shared_tensors(optimizers: Sequence[torch.optim.Optimizer], stateful: Mapping[str, Any]) -> None:
    """Say, once, which objects keep tensors that are also in the state of an optimizer.

    ``optimizer.load_state_dict(kept)`` takes tensors without a copy: the next step changes what is kept too. Behind a
    restore each has its own.

    Args:
        optimizers: that are saved.
        stateful: further objects that are saved, by name.

    Warns:
        InexactResumeWarning: names them.
    """
    if not optimizers or not stateful or optimizers[0] in _said:
        return
    states = [state for optimizer in optimizers for state in getattr(optimizer, "state", {}).values()]
    used = memory_of(value for state in states if isinstance(state, dict) for value in state.values())
    of_optimizers = {*map(id, states)}
    sharing = [
        name
        for name, thing in stateful.items()
        if not isinstance(thing, nn.Module | torch.optim.Optimizer)
        and not used.isdisjoint(memory_of(_kept_by(thing, of_optimizers)))
    ]
    if sharing:
        _said.add(optimizers[0])
        warn_user(
            f"{', '.join(sharing)} in stateful= keeps tensors that are also in the state of an optimizer, so a step "
            "changes both; behind a restore, only one. load_state_dict takes tensors without a copy: give it a "
            "copy.deepcopy of what is kept.",
            InexactResumeWarning,
        )


def _kept_by(thing: Any, of_optimizers: set[int]) -> Iterator[Tensor]:
    """Tensors in lists and dicts of an object, but for an optimizer's own."""
    left = [(value, 0) for value in (attribute_dict(thing) or {}).values()]
    while left:
        value, depth = left.pop()
        if isinstance(value, Tensor):
            yield value
        elif issubclass(type(value), CONTAINERS) and id(value) not in of_optimizers and depth < _DEPTH:
            left += [(part, depth + 1) for part in islice(values_in(value), _LOOKED_AT)]
