"""What users' objects refer to, as far as it may have state of theirs."""

from __future__ import annotations

import contextvars
import enum
import functools
import threading
import types
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np
from torch import Tensor, nn

from neuromanifold_gpt.state.flat_values import SCALARS
from neuromanifold_gpt.state.generators import Generator
from neuromanifold_gpt.state.metrics import is_metric
from neuromanifold_gpt.state.plain_reading import all_attributes
from neuromanifold_gpt.state.users_objects import variables_of_function, variables_of_generator

_OPAQUE = (str, bytes, int, float, complex, type, types.ModuleType, Tensor, np.ndarray, enum.Enum, type(None))
# What refers to the whole run, and is reached from it: a data module, of which ``collate_fn`` is a method, say.
_MODULES_OF_TRAINERS = (
    "lightning.pytorch.trainer.",
    "lightning.pytorch.core.module",
    "lightning.fabric.fabric",
    "pytorch_lightning.trainer.",
    "pytorch_lightning.core.module",
    "lightning_fabric.fabric",
)
MAXIMUM_ITEMS = 100  # of a list or dict that is searched: longer ones hold data, if not generators


def is_opaque(thing: Any) -> bool:
    """Whether it is not searched: a value, a class, what refers to the whole run, a module that is trained."""
    return issubclass(type(thing), _OPAQUE) or _is_trainer(thing) or _is_trained(thing)


def parts_of(thing: Any) -> Iterator[tuple[str, Any]]:
    """What an object, container or function refers to, by name."""
    kind = type(thing)
    if issubclass(kind, dict | types.MappingProxyType):
        if _is_searched(thing, thing.values()):
            for number, (key, value) in enumerate(thing.items()):  # parameters are keys too: their text costs
                yield (str(key) if type(key) in SCALARS else f"{type(key).__name__} {number}"), value
    elif issubclass(kind, list | tuple | deque):
        if _is_searched(thing, thing):
            yield from ((str(number), value) for number, value in enumerate(thing))
    elif kind is types.FunctionType:
        yield from variables_of_function(thing).items()
    elif kind is types.GeneratorType:
        yield from (variables_of_generator(thing) or {}).items()
    elif kind in (types.MethodType, types.BuiltinMethodType):
        yield "self", thing.__self__
    elif issubclass(kind, contextvars.ContextVar):
        yield "value", thing.get(None)
    elif issubclass(kind, threading.local):
        yield from thing.__dict__.items()  # of this thread
    elif issubclass(kind, functools.partial):
        yield from (("func", thing.func), ("args", thing.args), ("keywords", thing.keywords))
    else:
        yield from all_attributes(thing).items()


def _is_searched(container: Collection[Any], values: Iterable[Any]) -> bool:
    return len(container) <= MAXIMUM_ITEMS or issubclass(type(next(iter(values))), Generator)


def _is_trained(thing: Any) -> bool:
    """Whether it is a module whose state is saved elsewhere, unlike one that transforms samples."""
    return issubclass(type(thing), nn.Module) and (next(thing.parameters(), None) is not None or is_metric(thing))


def _is_trainer(thing: Any) -> bool:
    """By name: this package trains without Lightning as well."""
    return any(kind.__module__.startswith(_MODULES_OF_TRAINERS) for kind in type(thing).__mro__)
