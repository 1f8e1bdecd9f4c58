"""Objects of users' own classes, and what they keep in plain attributes."""

from __future__ import annotations

import argparse
import datetime
import functools
import gc
import io
import itertools
import operator
import re
import sys
import sysconfig
import types
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _BaseDataLoaderIter

from neuromanifold_gpt.state.inspection.instructions import instructions_of
from neuromanifold_gpt.state.inspection.loop_carried import read_for_more
from neuromanifold_gpt.state.inspection.plain_reading import (
    FUNCTIONS,
    all_attributes,
    bases_of,
    held_by,
    module_name_of,
    parts_of,
    remembered_of_class,
    values_in,
    variables_of_class,
    variables_of_module,
)

_CALLED_AFTER_TIMES = re.compile(r"(^|_)(time|times|tic|toc|elapsed|duration|sec|secs|seconds|ms|clock)$|^t\d+$")
_TIMES = (int, float, np.number, str, datetime.date, datetime.time, datetime.timedelta)
_DEPTH_OF_TIMES = 3  # a dict of meters that keep the last ones in a list
_LOOKED_AT_OF_TIMES = 100
NAMESPACES = (types.SimpleNamespace, argparse.Namespace)  # of the standard library, and for users' variables
_OF_THE_RUN = ("lightning", "pytorch_lightning", "lightning_fabric", "neuromanifold_gpt")  # they save what they keep
_MAXIMUM_DEPTH = 4  # enumerate(tqdm(zip(loader, other)))
_REFERENCES_OF_FRAME = 3  # to its dict of variables: its own, a variable and an argument
_STANDARD_LIBRARY = sysconfig.get_path("stdlib")
_WITHOUT_STATE_DICT = ("torch.quasirandom",)  # and yet with a state
_LOOKS = itertools.count()
_LIBRARIES = (*_OF_THE_RUN, "torch", "torchmetrics")
# The position in the data has what they change, or the loader says so. Modules are shown by their tensors.
_LOOKED_AT_ELSEWHERE = (type, nn.Module, Dataset, DataLoader, Sampler)
_OF_ITERATORS = ("builtins", "itertools", "_collections", "collections")  # the last from Python 3.12 on


def is_a_time(name: str, value: Any) -> bool:
    """Whether it is named as times are, which no two runs share, and may be one: a number, or what measures some.

    A teacher in a list that is called ``t1`` is none.
    """
    try:
        return _is_called_after_a_time(name) and _may_be_a_time(value, 0)
    except Exception:  # noqa: BLE001 - what a thread changes meanwhile
        return True


@functools.cache
def _is_called_after_a_time(name: str) -> bool:
    return _CALLED_AFTER_TIMES.search(name) is not None


def _may_be_a_time(value: Any, depth: int) -> bool:
    kind = type(value)  # isinstance() would ask proxies
    if value is None or issubclass(kind, _TIMES):
        return kind is not bool or depth > 0
    if depth >= _DEPTH_OF_TIMES:
        return False
    if issubclass(kind, dict | list | tuple | deque):
        parts: Iterator[Any] = itertools.islice(values_in(value), _LOOKED_AT_OF_TIMES)
    elif is_of_users_class(value) and not issubclass(kind, _LOOKED_AT_ELSEWHERE):  # a meter
        parts = iter(all_attributes(value).values())
    else:
        return False
    return all(_may_be_a_time(part, depth + 1) for part in parts)


def is_of_users_class(thing: Any) -> bool:
    """Whether its class is of no library: neither of the standard library nor of an installed package."""
    return is_users_module(module_name_of(type(thing)))


def is_stateful(thing: Any) -> bool:
    """Whether it, or what is of a class, has torchdata's two methods."""
    return hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")


def has_position(thing: Any) -> bool:
    """Whether it is a loader of this package, by what it has: the package's parts import this one."""
    return _has_position(type(thing))


@remembered_of_class
def _has_position(kind: type) -> bool:
    return any("objects_of_position" in variables_of_class(base) for base in bases_of(kind))


def attributes_of(thing: Any) -> dict[str, Any] | None:
    """What an object may keep for later, by name; of a function, also the variables of the functions around it.

    Of an iterator how far it is, as far as it shows. Without what is called after times. ``None`` of objects of
    libraries' classes without ``state_dict``, of those that are looked at elsewhere, and of those that hold an open
    file, as what records a run does.
    """
    kind = type(thing)  # isinstance() would ask proxies, which may have nobody to ask
    if kind is types.GeneratorType:
        return progress_of_generator(thing)
    if kind.__module__ in _WITHOUT_STATE_DICT:
        return all_attributes(thing)
    if is_iterator(thing):
        return progress_of_iterator(thing)
    if issubclass(kind, _BaseDataLoaderIter):
        return {"batches": thing._num_yielded}
    if issubclass(kind, FUNCTIONS):
        return dict(parts_of(thing))
    if issubclass(kind, _LOOKED_AT_ELSEWHERE):
        return None
    if not is_of_users_class(thing) and (held := held_by(thing)) is not None:
        return held
    if not issubclass(kind, NAMESPACES) and not is_of_users_class(thing) and not _is_optimizer_or_so(kind):
        return None
    found = all_attributes(thing)
    if any(_is_file(cast(Any, type(value))) for value in found.values()):
        return None
    return {name: value for name, value in found.items() if not is_a_time(name, value)}


def variables_of_generator(generator: types.GeneratorType[Any, Any, Any]) -> dict[str, Any] | None:
    """How far a users' generator function is, and with which local variables; ``None`` while it runs."""
    frame = generator.gi_frame
    if frame is None:
        return {"has ended": True}
    if generator.gi_running or not is_users_module(frame.f_globals.get("__name__", "")):
        return None
    return {**variables_of_frame(frame), "yields from": generator.gi_yieldfrom, "has begun": frame.f_lasti}


def progress_of_generator(generator: types.GeneratorType[Any, Any, Any]) -> dict[str, Any] | None:
    """What decides how a users' generator function goes on: a batch that it has given on, does not.

    Without the object whose method it is, and variables of the functions around it, which are looked at where they are.
    """
    variables, frame = variables_of_generator(generator), generator.gi_frame
    if frame is None or variables is None:
        return variables
    code = frame.f_code
    of_others = {*code.co_freevars, *(code.co_varnames[:1] if code.co_varnames[:1] == ("self",) else ())}
    read = read_for_more(code, frame.f_lasti) - of_others
    iterators = [thing for thing in gc.get_referents(generator) if is_iterator(thing)]
    return {
        **{name: value for name, value in variables.items() if name in read},
        **{f"iterator {number}": iterator for number, iterator in enumerate(iterators)},
        "has begun": frame.f_lasti,
    }


def is_iterator(thing: Any) -> bool:
    """Whether it is an iterator of Python itself, such as a generator, or of ``itertools``."""
    kind = type(thing)
    return module_name_of(kind) in _OF_ITERATORS and hasattr(kind, "__next__")


def is_over_stock_loader(iterator: Any, depth: int = 0) -> bool:
    """Whether it goes through batches of torch's loaders, by itself or in others."""
    if issubclass(type(iterator), _BaseDataLoaderIter):
        return True
    parts = [part for found in gc.get_referents(iterator) for part in (found if type(found) is tuple else [found])]
    within = [part for part in parts if any("__next__" in variables_of_class(kind) for kind in bases_of(type(part)))]
    return depth < _MAXIMUM_DEPTH and any(is_over_stock_loader(part, depth + 1) for part in within)


def loader_of_pass(thing: Any) -> Any:
    """The loader of this package whose batches a generator gives, while it is under way; ``None`` of other things."""
    frame = thing.gi_frame if type(thing) is types.GeneratorType else None
    loader = frame.f_locals.get("self") if frame is not None and frame.f_code.co_name == "_pass" else None
    return loader if has_position(loader) else None


def variables_of_frame(frame: types.FrameType) -> dict[str, Any]:
    """The local variables of a function that has not ended; none where it may have seen a dict of them.

    Up to Python 3.12 a look fills that dict, and what is in it would stay alive, tensors too: it is taken out again.
    """
    code, has_one_dict = frame.f_code, sys.version_info < (3, 13)
    if has_one_dict and _asks_for_its_variables(code):
        return {}
    variables = frame.f_locals
    names = (*code.co_varnames, *code.co_cellvars, *code.co_freevars)
    found = {name: variables[name] for name in names if name in variables}
    if has_one_dict and sys.gettrace() is None and sys.getrefcount(variables) <= _REFERENCES_OF_FRAME:
        for name in found:  # others were made by exec
            del variables[name]
    return found


def _asks_for_its_variables(code: types.CodeType) -> bool:
    """Whether a function calls ``locals()`` or the like, the dict of which it may keep."""
    names = {*code.co_names}
    return not names.isdisjoint(("f_locals", "getargvalues")) or (
        not names.isdisjoint(("locals", "vars")) and _calls_without_arguments(code)
    )


@functools.lru_cache(maxsize=1000)
def _calls_without_arguments(code: types.CodeType) -> bool:
    """``locals()`` or ``vars()``; ``vars(arguments)`` is another matter."""
    return any(
        load.opname == "LOAD_GLOBAL" and load.argval in ("locals", "vars") and "CALL" in call.opname and call.arg == 0
        for load, call in itertools.pairwise(instructions_of(code))
    )


def _is_file(kind: type) -> bool:
    return issubclass(kind, io.IOBase) and not issubclass(kind, io.BytesIO | io.StringIO)


def _is_optimizer_or_so(kind: type) -> bool:
    """Whether it is of a library, and has state that somebody has to save: an optimizer, an average of weights."""
    return not is_of_the_run(kind) and is_stateful(kind)


def is_of_the_run(kind: type) -> bool:
    """Whether a class is one of Lightning or of this package."""
    return str(module_name_of(kind)).partition(".")[0] in _OF_THE_RUN


def progress_of_iterator(iterator: Any) -> dict[str, Any]:
    """Of one of ``itertools`` that goes through others, also of these."""
    if isinstance(iterator, itertools.count):
        return {"next": repr(iterator)}
    if isinstance(iterator, itertools.cycle) and (place := _place_in_cycle(iterator)) is not None:
        return {"place": place}
    referents = [part for found in gc.get_referents(iterator) for part in (found if type(found) is tuple else [found])]
    others = [found for found in referents if isinstance(found, Iterator)]
    return {"left": operator.length_hint(iterator, -1), **{str(number): other for number, other in enumerate(others)}}


def _place_in_cycle(cycle: itertools.cycle[Any]) -> int | None:
    """How many it has given of its present pass; ``None`` in the first, where the iterator it goes through shows that.

    From Python 3.14 on nothing shows it: then the place is another one at each look.
    """
    try:
        with warnings.catch_warnings():  # deprecated from Python 3.12 on
            warnings.simplefilter("ignore", DeprecationWarning)
            _, (iterator,), (kept, gives_again) = cast(Any, cycle.__reduce__())
    except TypeError:
        is_over = all(operator.length_hint(part, 1) == 0 for part in gc.get_referents(cycle) if is_iterator(part))
        return next(_LOOKS) if is_over else None
    left = operator.length_hint(iterator, -1)
    return len(kept) - left if gives_again else 0 if left == 0 else None


def is_users_module(name: Any) -> bool:
    """Whether a Python module is of no library."""
    if not isinstance(name, str):  # classes may have anything there
        return False
    return is_users_file(name, variables_of_module(sys.modules.get(name)).get("__file__"))


def is_users_file(name: str, file: Any) -> bool:
    """:func:`is_users_module`, of one that was loaded from ``file``, if that is a path."""
    return _is_of_no_library(name.partition(".")[0], file if isinstance(file, str) else "")


@functools.cache
def _is_of_no_library(package: str, file: str) -> bool:
    if package in _LIBRARIES or (not file and package in sys.stdlib_module_names):
        return False
    return not file.startswith(_STANDARD_LIBRARY) and not {"site-packages", "dist-packages"} & {*Path(file).parts}
