"""The hooks of a module, of its parts and of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

_OF_PARTS = tuple(name for name in vars(nn.Module()) if name.endswith("_hooks"))
_OF_PARAMETERS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def hooks_of(module: nn.Module) -> Iterator[tuple[str, list[Callable[..., Any]]]]:
    """By paths such as ``encoder._forward_hooks``; where there are none, nothing."""
    for name, part in module.named_modules():
        for attribute in _OF_PARTS:
            if hooks := vars(part).get(attribute):
                yield f"{name}.{attribute}".lstrip("."), [*hooks.values()]  # the keys count the hooks of the process
    for name, parameter in module.named_parameters():
        for attribute in _OF_PARAMETERS:
            if hooks := getattr(parameter, attribute, None):
                yield f"{name}.{attribute}", [*hooks.values()]
