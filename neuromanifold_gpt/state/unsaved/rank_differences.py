"""What is not the same on every rank, of that which rank 0 alone saves: a resume gives them all what rank 0 had."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.state.modules import distributed_wrapper, lasting_part, listed, parameter_names, unwrap
from neuromanifold_gpt.state.rng import rank_and_world_size
from neuromanifold_gpt.state.unsaved.shown_values import shown_value

_shown_before: WeakKeyDictionary[Any, str | None] = WeakKeyDictionary()
_said: WeakSet[nn.Module] = WeakSet()


def shown_on_this_rank(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], stateful: Mapping[str, Any]
) -> dict[str, str | None]:
    """What is shown of that which has to be the same on every rank, by name; ``None`` of what does not show.

    Buffers need not be where ``DistributedDataParallel`` gives all ranks those of rank 0, as it does unless it is told
    otherwise; nor objects that this rank leaves as they are, such as an average that rank 0 alone keeps.
    """
    names = parameter_names(model)
    found = {"the model's parameters": _shown_tensors(unwrap(model).parameters())}
    wrapper = distributed_wrapper(model)
    if wrapper is not None and not wrapper.broadcast_buffers:
        found["the model's buffers"] = _shown_tensors(unwrap(model).buffers())
    for number, optimizer in enumerate(optimizers):
        if type(optimizer).__module__.startswith("torch.optim."):  # others may have a part of the state on each rank
            state = {names.get(id(key), "?"): value for key, value in optimizer.state.items()}
            found[f"the state of optimizer {number}"] = shown_value(dict(sorted(state.items())))
    for key, value in stateful.items():
        if isinstance(value, nn.Module):
            found[key] = _if_changed(value, _shown_tensors(value.parameters()))
        elif not isinstance(value, torch.optim.Optimizer):
            found[key] = _if_changed(value, shown_value(value.state_dict()))
    return found


def warn_of_other_ranks(model: nn.Module, shown: Sequence[Mapping[str, str | None]]) -> None:
    """On rank 0, once for a model.

    Args:
        model: that is saved.
        shown: what :func:`shown_on_this_rank` gave on each.

    Warns:
        InexactResumeWarning: names what is not the same.
    """
    of_each = {name: {of_rank.get(name) for of_rank in shown} - {None} for name in shown[0]}
    others = [name for name, values in of_each.items() if shown[0][name] is not None and len(values) > 1]
    if others and rank_and_world_size()[0] == 0 and lasting_part(model) not in _said:
        _said.add(lasting_part(model))
        warn_user(
            f"ranks have not the same, and only that of rank 0 is saved: {listed(others)}. A resume gives all ranks "
            "what rank 0 had. Save when they are alike (behind an average over the ranks, say), or gather what each "
            "rank has in the state_dict of an object in stateful=, in Lightning in on_save_checkpoint.",
            InexactResumeWarning,
        )


def _shown_tensors(tensors: Iterable[Tensor]) -> str | None:
    return shown_value([tensor.detach() for tensor in tensors])


def _if_changed(thing: Any, shown: str | None) -> str | None:
    """``None`` unless it has changed since the save before."""
    try:
        before = _shown_before.get(thing, shown)
        _shown_before[thing] = shown
    except TypeError:  # it cannot be referred to weakly
        return None
    return None if shown == before else shown
