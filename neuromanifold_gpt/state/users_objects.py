"""Objects of users' own classes, and what they keep in plain attributes."""

from __future__ import annotations

import functools
import gc
import io
import itertools
import operator
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _BaseDataLoaderIter

_CALLED_AFTER_TIMES = re.compile(r"(^|_)(time|times|tic|toc|elapsed|duration|sec|secs|seconds|ms|clock)$|^t\d*$")
_OF_THE_RUN = ("lightning", "pytorch_lightning", "lightning_fabric", "neuromanifold_gpt")  # they save what they keep
_LIBRARIES = (*_OF_THE_RUN, "torch", "torchmetrics")
# The position in the data has what they change, or the loader says so. Modules are shown by their tensors.
_LOOKED_AT_ELSEWHERE = (type, nn.Module, Dataset, DataLoader, Sampler)


@functools.cache
def is_called_after_a_time(name: str) -> bool:
    """Whether an attribute is named as times are, which no two runs share."""
    return _CALLED_AFTER_TIMES.search(name) is not None


def is_of_users_class(thing: Any) -> bool:
    """Whether its class is of no library: neither of the standard library nor of an installed package."""
    return is_users_module(type(thing).__module__)


def is_stateful(thing: Any) -> bool:
    """Whether it has torchdata's two methods."""
    return hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")


def attributes_of(thing: Any) -> dict[str, Any] | None:
    """What an object may keep for later, by name; of a function, also the variables of the functions around it.

    Of an iterator how far it is, as far as it shows. Without what is called after times. ``None`` of objects of
    libraries' classes without ``state_dict``, of those that are looked at elsewhere, and of those that hold an open
    file, as what records a run does.
    """
    if isinstance(thing, types.GeneratorType):
        return _variables_of_generator(thing)
    if type(thing).__module__ in ("builtins", "itertools") and hasattr(thing, "__next__"):
        return _progress_of_iterator(thing)
    if isinstance(thing, _BaseDataLoaderIter):
        return {"batches": thing._num_yielded}
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
    if not isinstance(thing, types.SimpleNamespace) and not is_of_users_class(thing) and not _is_optimizer_or_so(thing):
        return None
    found = all_attributes(thing)
    if any(_is_file(value.__class__) for value in found.values()):
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
def _is_file(kind: type) -> bool:
    return issubclass(kind, io.IOBase)


def _is_optimizer_or_so(thing: Any) -> bool:
    """Whether it is of a library, and has state that somebody has to save: an optimizer, an average of weights."""
    return type(thing).__module__.partition(".")[0] not in _OF_THE_RUN and is_stateful(thing)


def _variables_of_generator(generator: types.GeneratorType[Any, Any, Any]) -> dict[str, Any] | None:
    frame = generator.gi_frame
    if frame is None:
        return {"has ended": True}
    if generator.gi_running or not is_users_module(frame.f_globals.get("__name__", "")):
        return None
    return {**frame.f_locals, "yields from": generator.gi_yieldfrom, "has begun": frame.f_lasti}


def _progress_of_iterator(iterator: Any) -> dict[str, Any]:
    """Of one of ``itertools`` that goes through others, also of these."""
    if isinstance(iterator, itertools.count):
        return {"next": repr(iterator)}
    referents = [part for found in gc.get_referents(iterator) for part in (found if type(found) is tuple else [found])]
    others = [found for found in referents if isinstance(found, Iterator)]
    return {"left": operator.length_hint(iterator, -1), **{str(number): other for number, other in enumerate(others)}}


@functools.cache
def is_users_module(module_name: str) -> bool:
    """Whether a Python module is of no library."""
    top = module_name.partition(".")[0]
    if top in sys.stdlib_module_names or top in _LIBRARIES:
        return False
    file = getattr(sys.modules.get(module_name), "__file__", None)
    return file is None or not {"site-packages", "dist-packages"} & {*Path(file).parts}
