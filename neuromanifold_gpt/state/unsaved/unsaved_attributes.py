"""Attributes of modules that nobody saves, and of data that the loop itself draws from, which may be state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from torch import Tensor, nn

from neuromanifold_gpt.state.inspection.plain_reading import FUNCTIONS, all_attributes, values_in
from neuromanifold_gpt.state.inspection.users_objects import has_position, is_of_users_class
from neuromanifold_gpt.state.metrics import is_metric
from neuromanifold_gpt.state.owned_state import OwnedState
from neuromanifold_gpt.state.unsaved.shown_values import NUMBERS, holds_tensors, plain_attributes
from neuromanifold_gpt.state.unsaved.stock_loaders import parts_of_stock_loader

_LOOKED_AT = 100  # of one container


def attributes_of_module(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Of a module and its parts what may be state, but for what :func:`shown_value` shows of it, by path."""
    for path, part in module.named_modules():
        yield from ((f"{path}.{name}".lstrip("."), value) for name, value in _plain(part) if _may_be_state(value))


def own_attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Of a module without its parts what may be state, by name."""
    yield from (*module._parameters.items(), *module._buffers.items())
    yield from ((name, value) for name, value in _plain(module) if type(value) in NUMBERS or _may_be_state(value))


def attributes_of_data(datasets: Mapping[str, Any], things: Mapping[str, Any]) -> dict[str, Any]:
    """Of datasets that no loader has what may be state, but for numbers: of a replay buffer that the loop draws from.

    Args:
        datasets: they, by name.
        things: loaders, and others, by name.
    """
    if not datasets:
        return {}
    parts: dict[str, Any] = {}
    for name, thing in things.items():
        of_loader = thing.data_parts() if has_position(thing) else parts_of_stock_loader(thing)
        parts.update((f"{name}.{key}", part) for key, part in of_loader.items())
    of_loaders = {id(part) for part in OwnedState(parts).objects()}
    return {
        f"{path}.{name}": value
        for path, data in datasets.items()
        if id(data) not in of_loaders
        for name, value in all_attributes(data).items()
        if _may_be_state(value)
    }


def _plain(module: nn.Module) -> Iterable[tuple[str, Any]]:
    return plain_attributes(module).items() if is_of_users_class(module) and not is_metric(module) else ()


def _may_be_state(value: Any) -> bool:
    """Results with their graph are none, and what functions hold is looked at where it is."""
    few = (value, *islice(values_in(value), _LOOKED_AT))
    is_result = any(issubclass(type(part), Tensor) and part.grad_fn is not None for part in few)
    return not is_result and not issubclass(type(value), FUNCTIONS) and holds_tensors(value)
