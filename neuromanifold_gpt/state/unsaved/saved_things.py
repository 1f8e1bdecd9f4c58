"""What saves of this process have had."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

from neuromanifold_gpt.state.unsaved.shown_values import memory_of

# By identity. A program may save two models apart.
_saved: WeakValueDictionary[int, Any] = WeakValueDictionary()


def note_saved(things: Iterable[Any]) -> None:
    """They are saved, here or in another checkpoint of the program; of modules, with their parts."""
    for thing in things:
        for part in thing.modules() if issubclass(type(thing), nn.Module) else (thing,):
            try:
                _saved[id(part)] = part
            except TypeError:  # it cannot be referred to weakly
                continue


def is_saved(thing: Any) -> bool:
    """This very object."""
    return _saved.get(id(thing)) is thing


def saved_parameters() -> set[int]:
    """Identities of the parameters of all modules that are saved."""
    return {id(parameter) for module in _modules() for parameter in module.parameters(recurse=False)}


def memory_of_saved_modules() -> set[int]:
    """What ``state_dict`` gives of an average is its memory in tensors of their own."""
    modules = _modules()
    return memory_of(
        tensor for module in modules for tensor in (*module._parameters.values(), *module._buffers.values())
    )


def parameters_of_saved_optimizers() -> set[int]:
    """Of those that no module has, it is said by the optimizers' names."""
    groups = [group for part in list(_saved.values()) if is_optimizer(part) for group in part.param_groups]
    return {id(parameter) for group in groups for parameter in group["params"]}


def is_optimizer(thing: Any) -> bool:
    """One of torch's, or derived from them."""
    return issubclass(type(thing), torch.optim.Optimizer)


def _modules() -> list[nn.Module]:
    return [part for part in list(_saved.values()) if issubclass(type(part), nn.Module)]
