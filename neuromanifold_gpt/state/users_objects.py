"""Objects of users' own classes, and what they keep in plain attributes."""

from __future__ import annotations

import functools
import io
import re
import sys
import types
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

_CALLED_AFTER_TIMES = re.compile(r"(^|_)(time|times|tic|toc|elapsed|duration|sec|secs|seconds|ms|clock)$|^t\d*$")
_LIBRARIES = ("torch", "lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics", "neuromanifold_gpt")
# They save their state in a way of their own, or their position in the data has it.
_LOOKED_AT_ELSEWHERE = (type, nn.Module, Dataset, DataLoader, Sampler)


def is_called_after_a_time(name: str) -> bool:
    """Whether an attribute is named as times are, which no two runs share."""
    return _CALLED_AFTER_TIMES.search(name) is not None


def is_of_users_class(thing: Any) -> bool:
    """Whether its class is of no library: neither of the standard library nor of an installed package."""
    return _is_users(type(thing).__module__)


def attributes_of(thing: Any) -> dict[str, Any] | None:
    """What an object may keep for later, by name; of a function, the variables of the functions around it.

    ``None`` of objects of libraries' classes, of those that are looked at elsewhere or have a ``state_dict``, by which
    they are saved, and where :func:`plain_attributes` is.
    """
    if isinstance(thing, types.FunctionType):
        cells = zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True)
        return {name: cell.cell_contents for name, cell in cells if cell != types.CellType()}
    if isinstance(thing, _LOOKED_AT_ELSEWHERE) or hasattr(thing, "state_dict"):
        return None
    is_looked_at = isinstance(thing, types.SimpleNamespace) or is_of_users_class(thing)
    return plain_attributes(thing) if is_looked_at else None


def plain_attributes(thing: Any) -> dict[str, Any] | None:
    """Those that are not called after times; ``None`` if one is an open file, as what records a run has."""
    slots = {name for kind in type(thing).__mro__ for name in _slots_of(kind) if hasattr(thing, name)}
    found = {**getattr(thing, "__dict__", {}), **{name: getattr(thing, name) for name in sorted(slots)}}
    if any(isinstance(value, io.IOBase) for value in found.values()):
        return None
    return {name: value for name, value in found.items() if not is_called_after_a_time(name)}


def _slots_of(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


@functools.cache
def _is_users(module_name: str) -> bool:
    top = module_name.partition(".")[0]
    if top in sys.stdlib_module_names or top in _LIBRARIES:
        return False
    file = getattr(sys.modules.get(module_name), "__file__", None)
    return file is None or not {"site-packages", "dist-packages"} & {*Path(file).parts}
