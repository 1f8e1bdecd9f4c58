"""Attributes of the objects that a plain loop has in its variables, and in lists, dicts and functions there."""

from __future__ import annotations

import types
from collections.abc import Iterator
from itertools import islice
from typing import Any

from neuromanifold_gpt.state.inspection.flat_values import SCALARS
from neuromanifold_gpt.state.inspection.kept_variables import kept_variables
from neuromanifold_gpt.state.inspection.plain_reading import bases_of, module_name_of, parts_of, variables_of_class
from neuromanifold_gpt.state.inspection.script_functions import names_only_added_to
from neuromanifold_gpt.state.inspection.users_locals import users_frames, users_locals, variables_of_script
from neuromanifold_gpt.state.inspection.users_objects import (
    NAMESPACES,
    attributes_of,
    is_of_users_class,
    is_stateful,
    is_users_module,
)
from neuromanifold_gpt.state.inspection.users_variables import names_in_class

_CONTAINERS = (list, tuple, dict)
_MAXIMUM_DEPTH = 5
_LOOKED_AT_ITEMS = 100  # of one container
_LOOKED_AT = 1000


def attributes_of_variables() -> Iterator[tuple[str, Any, bool]]:
    """Of users' objects, such as a trainer, but for those that say themselves what their state is; of classes of the
    script; and what functions there set around themselves, or have there and change. The flag says which is that.
    """
    seen: set[int] = set()
    # What those set around themselves are variables of functions that run.
    of_running = {part for frame in users_frames() for part in frame.f_code.co_consts if type(part) is types.CodeType}
    things = [
        (path, value)
        for path, value in (*variables_of_script(), *users_locals())
        if not (type(value) is types.FunctionType and value.__code__ in of_running)
    ]
    # Classes are the last: which member of an enumeration a variable holds, is shown by what that has.
    for path, value in sorted(things, key=lambda pair: issubclass(type(pair[1]), type)):
        yield from _attributes_of(path, value, seen, 0)


def kinds_of_variables() -> set[type]:
    """Users' classes of the objects there."""
    values = [value for _, value in (*variables_of_script(), *users_locals())]
    kinds = {type(value) for value in values if is_of_users_class(value)}
    return {base for kind in kinds for base in bases_of(kind) if is_users_module(module_name_of(base))}


def _attributes_of(path: str, thing: Any, seen: set[int], depth: int) -> Iterator[tuple[str, Any, bool]]:
    kind = type(thing)
    if kind in SCALARS or id(thing) in seen or depth >= _MAXIMUM_DEPTH or len(seen) >= _LOOKED_AT:
        return
    if issubclass(kind, _CONTAINERS):
        seen.add(id(thing))
        for name, part in islice(parts_of(thing), _LOOKED_AT_ITEMS):
            if type(name) in SCALARS:
                yield from _attributes_of(f"{path}[{name!r}]", part, seen, depth + 1)
        return
    try:
        found = _found_in(thing)
    except Exception:  # noqa: BLE001 - metaclasses and the like that fail when they are asked
        return
    if found:
        seen.add(id(thing))
    for name, value in found.items():
        yield f"{path}.{name}", value, issubclass(kind, types.FunctionType)
        if issubclass(kind, type) or not issubclass(type(value), type):
            yield from _attributes_of(f"{path}.{name}", value, seen, depth + 1)


def _found_in(thing: Any) -> dict[str, Any]:
    kind = type(thing)
    if issubclass(kind, type):
        return _attributes_of_class(thing) if module_name_of(thing) == "__main__" else {}
    if issubclass(kind, types.FunctionType):
        return _kept_by_function(thing) if is_users_module(thing.__module__) else {}
    if is_stateful(kind) or not (issubclass(kind, NAMESPACES) or is_of_users_class(thing)):
        return {}
    return {**_defaults_of_class(kind), **(attributes_of(thing) or {})}


def _kept_by_function(function: types.FunctionType) -> dict[str, Any]:
    """What it sets around itself; and what it can change there, and in its defaults, but for records."""
    records = names_only_added_to([function.__code__], running=set())
    around = {name: value for name, value in parts_of(function) if not (type(value) in SCALARS or name in records)}
    return {**around, **kept_variables(function)}


def _defaults_of_class(kind: Any) -> dict[str, Any]:
    """What an object has until it is given a value of its own."""
    of_users = [base for base in reversed(bases_of(kind)) if is_users_module(module_name_of(base))]
    found = {name: value for base in of_users for name, value in _attributes_of_class(base).items()}
    return {name: value for name, value in found.items() if type(value) in SCALARS}


def _attributes_of_class(kind: type) -> dict[str, Any]:
    """Of one that is used as a namespace (``class Config: temperature = 1.0``)."""
    variables = variables_of_class(kind)
    return {name: variables.get(name) for name in names_in_class(kind)}
