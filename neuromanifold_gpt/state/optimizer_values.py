"""What optimizers and schedulers have that is in no state dict: it is not stored, so it is said where it changes."""

from __future__ import annotations

import types
from collections.abc import Collection, Iterable
from typing import Any

import torch

from neuromanifold_gpt.state.shown_values import shown_value
from neuromanifold_gpt.state.users_objects import is_called_after_a_time, is_of_users_class

_OF_EVERY_OPTIMIZER = frozenset({*vars(torch.optim.SGD([torch.zeros(1)], lr=0.1)), "_opt_called"})


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
    """What is shown of attributes of users' own."""
    found = {}
    for number, optimizer in enumerate(optimizers):
        for name, value in vars(optimizer).items() if is_of_users_class(optimizer) else ():
            is_saved_or_no_state = name in _OF_EVERY_OPTIMIZER or is_called_after_a_time(name)
            if not is_saved_or_no_state and (shown := shown_value(value)) is not None:
                found[f"optimizers.{number}.{name}"] = shown
    return found


def values_of_schedulers(schedulers: Iterable[Any], kept: Collection[int]) -> dict[str, str]:
    """What is shown of the functions that some of torch's call; of other callable objects, they save the state."""
    found = {}
    for number, scheduler in enumerate(schedulers):
        functions = [thing for thing in getattr(scheduler, "lr_lambdas", ()) if isinstance(thing, types.FunctionType)]
        if (shown := shown_value(functions, kept)) is not None:
            found[f"schedulers.{number}.lr_lambdas"] = shown
    return found
