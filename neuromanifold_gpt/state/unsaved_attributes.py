"""Attributes of modules that nobody saves, which may be state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from torch import Tensor, nn

from neuromanifold_gpt.state.metrics import is_metric
from neuromanifold_gpt.state.plain_reading import FUNCTIONS, values_in
from neuromanifold_gpt.state.shown_values import NUMBERS, holds_tensors, plain_attributes
from neuromanifold_gpt.state.users_objects import is_of_users_class

_LOOKED_AT = 100  # of one container


def attributes_of_module(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Of a module and its parts what may be state, but for what :func:`shown_value` shows of it, by path."""
    for path, part in module.named_modules():
        yield from ((f"{path}.{name}".lstrip("."), value) for name, value in _plain(part) if _may_be_state(value))


def own_attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Of a module without its parts what may be state, by name."""
    yield from (*module._parameters.items(), *module._buffers.items())
    yield from ((name, value) for name, value in _plain(module) if type(value) in NUMBERS or _may_be_state(value))


def _plain(module: nn.Module) -> Iterable[tuple[str, Any]]:
    return plain_attributes(module).items() if is_of_users_class(module) and not is_metric(module) else ()


def _may_be_state(value: Any) -> bool:
    """Results with their graph are none, and what functions hold is looked at where it is."""
    few = (value, *islice(values_in(value), _LOOKED_AT))
    is_result = any(issubclass(type(part), Tensor) and part.grad_fn is not None for part in few)
    return not is_result and not issubclass(type(value), FUNCTIONS) and holds_tensors(value)
