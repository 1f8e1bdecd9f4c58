"""What optimizers, schedulers, and what sums gradients over the ranks, have that is in no state dict: it is not stored,
so it is said where it changes."""

from __future__ import annotations

import functools
import types
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import nn

from neuromanifold_gpt.state.inspection.plain_reading import all_attributes, name_of_function
from neuromanifold_gpt.state.inspection.users_objects import is_a_time, is_of_users_class, is_users_module
from neuromanifold_gpt.state.modules import distributed_wrapper
from neuromanifold_gpt.state.rng import distributed
from neuromanifold_gpt.state.unsaved.shown_values import shown_tensors, shown_value

_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


def parameters_of_no_module(
    optimizers: Iterable[torch.optim.Optimizer], of_modules: Collection[int]
) -> dict[str, list[torch.Tensor]]:
    """What optimizers train and no module has, such as a temperature that is a tensor by itself.

    Args:
        optimizers: they.
        of_modules: identities of the parameters of those that are saved.
    """
    found = {}
    for number, optimizer in enumerate(optimizers):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if others := [parameter.detach() for parameter in parameters if id(parameter) not in of_modules]:
            found[f"optimizers.{number}.params"] = others
    return found


def values_of_optimizers(optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, str]:
    """What is shown of attributes of users' own, but for those that are in the state dict: what a wrapper wraps.

    Also of what their hooks hold, such as one that clips by a mean of the norms.
    """
    found = {}
    for number, optimizer in enumerate(optimizers):
        for name in _HOOKS:
            hooks = getattr(optimizer, name, None) or {}
            of_users = [hook for hook in hooks.values() if is_users_module(getattr(hook, "__module__", None))]
            if of_users and (shown := shown_value(of_users)) is not None:
                found[f"optimizers.{number}.{name}"] = shown
        for name, value in vars(optimizer).items() if is_of_users_class(optimizer) else ():
            if name in _names_of_every_optimizer() or is_a_time(name, value):
                continue
            shown = shown_value(value)
            if shown is not None and not _is_in_state_of(optimizer, name, value, shown):
                found[f"optimizers.{number}.{name}"] = shown
    return found


@functools.cache  # not at import: torch's compiler is imported with the first optimizer, which takes a second
def _names_of_every_optimizer() -> frozenset[str]:
    return frozenset({*vars(torch.optim.SGD([torch.zeros(1)], lr=0.1)), "_opt_called"})


def _is_in_state_of(optimizer: torch.optim.Optimizer, name: str, value: Any, shown: str) -> bool:
    """Whether the state dict has an attribute under its name, or all tensors that it, or its state dict, has."""
    if distributed():  # its state_dict may wait for that of every rank
        return False
    try:
        state = optimizer.state_dict()
        if any(key in state and shown_value(state[key]) == shown for key in (name, name.lstrip("_"))):
            return True
        is_optimizer = issubclass(type(value), torch.optim.Optimizer)
        tensors = shown_tensors(value.state_dict() if is_optimizer else value)
        return bool(tensors) and {*tensors} <= {*shown_tensors(state)}
    except Exception:  # noqa: BLE001 - of users' optimizers, which may not be ready to be asked
        return False


def values_of_schedulers(schedulers: Iterable[Any], kept: Collection[int]) -> dict[str, str]:
    """What is shown of the functions that some of torch's call; of other callable objects, they save the state."""
    found = {}
    for number, scheduler in enumerate(schedulers):
        functions = [thing for thing in getattr(scheduler, "lr_lambdas", ()) if isinstance(thing, types.FunctionType)]
        if (shown := shown_value(functions, kept)) is not None:
            found[f"schedulers.{number}.lr_lambdas"] = shown
    return found


def values_of_communication_hooks(module: nn.Module) -> dict[str, str]:
    """What shows the states of those of ``DistributedDataParallel``, such as the errors that PowerSGD feeds back."""
    wrapper = distributed_wrapper(module)
    hooks = wrapper._comm_hooks if wrapper is not None else []
    shown = {
        f"the state of {name_of_function(hook)}": shown_value(all_attributes(state), is_carried=True)
        for hook, state in hooks
    }
    return {name: value for name, value in shown.items() if value is not None}
