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
# The position in the data has what they change, or the loader says so. Modules are shown by their tensors.
_LOOKED_AT_ELSEWHERE = (type, nn.Module, Dataset, DataLoader, Sampler)


def is_called_after_a_time(name: str) -> bool:
    """Whether an attribute is named as times are, which no two runs share."""
    return _CALLED_AFTER_TIMES.search(name) is not None


def is_of_users_class(thing: Any) -> bool:
    """Whether its class is of no library: neither of the standard library nor of an installed package."""
    return _is_users(type(thing).__module__)


def attributes_of(thing: Any) -> dict[str, Any] | None:
    """What an object may keep for later, by name; of a function, also the variables of the functions around it.

    Without what is called after times. ``None`` of objects of libraries' classes, of those that are looked at
    elsewhere, and of those that hold an open file, as what records a run does.
    """
    if isinstance(thing, functools.partial):
        return {"func": thing.func, "args": thing.args, "keywords": thing.keywords}
    if isinstance(thing, types.MethodType):
        return {"self": thing.__self__}
    if isinstance(thing, types.FunctionType):
        cells = zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True)
        around = {name: cell.cell_contents for name, cell in cells if cell != types.CellType()}
        return {**around, **vars(thing)}
    if isinstance(thing, _LOOKED_AT_ELSEWHERE):
        return None
    if not isinstance(thing, types.SimpleNamespace) and not is_of_users_class(thing):
        return None
    found = all_attributes(thing)
    if any(isinstance(value, io.IOBase) for value in found.values()):
        return None
    return {name: value for name, value in found.items() if not is_called_after_a_time(name)}


def all_attributes(thing: Any) -> dict[str, Any]:
    """Those in ``__dict__`` and in ``__slots__``; nothing is called but ``__getattribute__``."""
    found = dict(getattr(thing, "__dict__", {}))
    for kind in type(thing).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            private = name.startswith("__") and not name.endswith("__")
            mangled = f"_{kind.__name__.lstrip('_')}{name}" if private else name
            member = vars(kind).get(mangled)
            if isinstance(member, types.MemberDescriptorType):
                try:
                    found[name] = member.__get__(thing)
                except AttributeError:  # not set yet
                    continue
    return found


@functools.cache
def _is_users(module_name: str) -> bool:
    top = module_name.partition(".")[0]
    if top in sys.stdlib_module_names or top in _LIBRARIES:
        return False
    file = getattr(sys.modules.get(module_name), "__file__", None)
    return file is None or not {"site-packages", "dist-packages"} & {*Path(file).parts}
