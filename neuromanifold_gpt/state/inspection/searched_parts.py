"""What users' objects refer to, as far as it may have state of theirs."""

from __future__ import annotations

import contextvars
import enum
import threading
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _BaseDataLoaderIter

from neuromanifold_gpt.state.generators import Generator
from neuromanifold_gpt.state.inspection.flat_values import SCALARS
from neuromanifold_gpt.state.inspection.plain_reading import (
    CONTAINERS,
    FUNCTIONS,
    bases_of,
    module_name_of,
    parts_of,
    remembered_of_class,
    values_in,
)
from neuromanifold_gpt.state.inspection.users_objects import has_position, variables_of_generator
from neuromanifold_gpt.state.metrics import is_metric

_OPAQUE: tuple[type, ...] = (str, bytes, int, float, complex, type, types.ModuleType, Tensor, np.ndarray, enum.Enum)
_OPAQUE += (type(None), _BaseDataLoaderIter)  # the latter counts what its workers owe it: put back, it waits for ever
# What refers to the whole run, and is reached from it: a data module, of which ``collate_fn`` is a method, say.
_MODULES_OF_TRAINERS = (
    "lightning.pytorch.trainer.",
    "lightning.pytorch.core.module",
    "lightning.fabric.fabric",
    "pytorch_lightning.trainer.",
    "pytorch_lightning.core.module",
    "lightning_fabric.fabric",
)
_PACKAGE = __name__.partition(".")[0]
_HOLD_NO_RUN = (Dataset, Sampler, DataLoader, nn.Module, *FUNCTIONS, *CONTAINERS)
MAXIMUM_ITEMS = 100  # of a list or dict that is searched: longer ones hold data, if not generators


def is_opaque(thing: Any) -> bool:
    """Whether it is not searched: a value, a class, what refers to the whole run, a module that is trained."""
    return issubclass(type(thing), _OPAQUE) or _is_of_trainer(type(thing)) or _is_trained(thing)


def saves_itself(thing: Any) -> bool:
    """Whether it is a loader of this package or a part of one, which has a position of its own, or an optimizer or
    scheduler: nobody else's state.
    """
    kind = type(thing)
    of_loader = has_position(thing) or (_is_of_this_package(kind) and not issubclass(kind, Dataset))
    return of_loader or issubclass(kind, Optimizer | LRScheduler)


def holds_loaders(thing: Any) -> bool:
    """Whether it has a loader of this package in an attribute, or in a list or dict there, as what trains has."""
    if issubclass(type(thing), _HOLD_NO_RUN):
        return False
    held = [part for _, part in parts_of(thing)]
    for part in held[:]:
        if issubclass(type(part), CONTAINERS) and len(part) <= MAXIMUM_ITEMS:
            held += values_in(part)
    return any(has_position(part) for part in held)


def _is_of_this_package(kind: type) -> bool:
    return str(module_name_of(kind)).partition(".")[0] == _PACKAGE


def searched_parts(thing: Any) -> Iterator[tuple[str, Any]]:
    """What is searched of what it refers to, by name."""
    kind = type(thing)
    if kind is types.GeneratorType:
        yield from (variables_of_generator(thing) or {}).items()
    elif issubclass(kind, contextvars.ContextVar):
        yield "value", thing.get(None)
    elif issubclass(kind, threading.local):
        yield from thing.__dict__.items()  # of this thread
    elif not _holds_data(thing):
        is_dict = issubclass(kind, dict | types.MappingProxyType)
        for number, (key, part) in enumerate(parts_of(thing)):  # parameters are keys too: their text costs
            yield (f"{type(key).__name__} {number}" if is_dict and type(key) not in SCALARS else str(key)), part


def _holds_data(thing: Any) -> bool:
    is_long = issubclass(type(thing), CONTAINERS) and len(thing) > MAXIMUM_ITEMS
    return is_long and not issubclass(type(next(iter(parts_of(thing)))[1]), Generator)


def _is_trained(thing: Any) -> bool:
    """Whether it is a module whose state is saved elsewhere, unlike one that transforms samples."""
    return issubclass(type(thing), nn.Module) and (next(thing.parameters(), None) is not None or is_metric(thing))


@remembered_of_class
def _is_of_trainer(kind: type) -> bool:
    """By name: this package trains without Lightning as well."""
    return any(str(module_name_of(base)).startswith(_MODULES_OF_TRAINERS) for base in bases_of(kind))
