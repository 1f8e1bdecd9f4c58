"""The Python modules of the program that trains: not all that happen to be loaded, of which no two processes agree."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor

from neuromanifold_gpt.state.inspection.plain_reading import (
    bases_of,
    module_name_of,
    parts_of,
    variables_of_class,
    variables_of_module,
)
from neuromanifold_gpt.state.inspection.users_objects import is_users_file

Variables = dict[str, Any]
_NOT_FOLLOWED = (str, bytes, int, float, complex, type(None), Tensor, np.ndarray)
_FOLLOWED_DEPTH = 4
_FOLLOWED_ITEMS = 100  # of one container or object
_FOLLOWED_OBJECTS = 10_000  # of one module
_positions: dict[str, int] = {}
# By identity of a module's variables: them, how many there were and how many modules; the modules they refer to, by
# name, since another may take the place of one, or where they are not registered.
_references: dict[int, tuple[Variables, tuple[int, int], list[str | Variables]]] = {}


def users_modules(things: Iterable[Any]) -> list[tuple[str, Variables]]:
    """The variables of users' Python modules, by the modules' names, in the order in which they were loaded.

    These are the script, those of the functions that run, and of the classes and functions of some objects; and those
    that these refer to, or import in their functions.

    Args:
        things: what trains, such as the parts of a model and a dataset.
    """
    found: dict[int, Variables] = {}
    left = [*_of_name("__main__"), *_on_stack(), *(of_it for thing in things for of_it in _of_thing(thing))]
    while left:
        variables = left.pop()
        if id(variables) not in found and is_users_code(variables):
            found[id(variables)] = variables
            left.extend(_referred_to(variables))
    for identity in _references.keys() - found.keys():  # what is not the program's any more, is not kept alive
        del _references[identity]
    named = [(_name_of(variables), variables) for variables in found.values()]
    return sorted(named, key=lambda pair: _position(pair[0]))


def is_users_code(variables: Variables) -> bool:
    """Whether global variables are those of a users' Python module."""
    name, file = variables.get("__name__"), variables.get("__file__")
    return isinstance(name, str) and (name == "__main__" or isinstance(file, str)) and is_users_file(name, file)


def _name_of(variables: Variables) -> str:
    """That it is registered under; where it is not, its own."""
    name: str = variables["__name__"]
    if _is_registered(variables):
        return name
    others = (other for other, module in list(sys.modules.items()) if variables_of_module(module) is variables)
    return next(others, name)


def _position(name: str) -> tuple[int, str]:
    """Among all that are loaded. There are thousands, and mostly the same as before."""
    if len(_positions) != len(sys.modules):
        _positions.clear()
        _positions.update((name, number) for number, name in enumerate(list(sys.modules)))
    return _positions.get(name, len(_positions)), name


def _of_name(name: Any) -> Iterator[Variables]:
    variables = variables_of_module(sys.modules.get(name)) if isinstance(name, str) else {}
    if variables:
        yield variables


def _on_stack() -> Iterator[Variables]:
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        if is_users_code(frame.f_globals):
            yield frame.f_globals
            yield from _imported_by(frame.f_code, frame.f_globals)
        frame = frame.f_back


def _of_thing(thing: Any) -> Iterator[Variables]:
    """Of its class and those above it; or of a function."""
    if issubclass(type(thing), types.MethodType):
        yield from _of_thing(thing.__func__)
        thing = thing.__self__
    kind = type(thing)  # isinstance() would ask proxies
    if issubclass(kind, types.ModuleType):
        yield variables_of_module(thing)
    elif issubclass(kind, types.FunctionType):
        yield thing.__globals__
    else:
        for parent in bases_of(thing if issubclass(kind, type) else kind):
            yield from _of_class(parent)


def _of_class(kind: type) -> Iterator[Variables]:
    module = module_name_of(kind)
    yield from _of_name(module)
    if not isinstance(module, str) or module not in sys.modules or module == "__main__":
        methods = variables_of_class(kind).copy().values()
        yield from (method.__globals__ for method in methods if issubclass(type(method), types.FunctionType))


def _referred_to(variables: Variables) -> Iterator[Variables]:
    state = len(variables), len(sys.modules)
    known = _references.get(id(variables))
    if known is None or known[0] is not variables or known[1] != state:
        found: dict[int, Variables] = {}
        seen: set[int] = set()
        for value in list(variables.values()):
            for of_it in _of_value(value, variables, seen, 0):
                if is_users_code(of_it):
                    found[id(of_it)] = of_it
        known = _references[id(variables)] = (
            variables,
            state,
            [of_it["__name__"] if _is_registered(of_it) else of_it for of_it in found.values()],
        )
    for reference in known[2]:
        yield from _of_name(reference) if isinstance(reference, str) else (reference,)


def _is_registered(variables: Variables) -> bool:
    """Under its own name."""
    return variables_of_module(sys.modules.get(variables["__name__"])) is variables


def _of_value(value: Any, variables: Variables, seen: set[int], depth: int) -> Iterator[Variables]:
    """Of it, and of all that it holds."""
    kind = type(value)
    if issubclass(kind, _NOT_FOLLOWED) or id(value) in seen or len(seen) > _FOLLOWED_OBJECTS:
        return
    seen.add(id(value))
    yield from _of_thing(value)
    if depth < _FOLLOWED_DEPTH and not issubclass(kind, types.ModuleType):
        if issubclass(kind, types.FunctionType) and value.__globals__ is variables:
            yield from _imported_by(value.__code__, variables)
        try:
            parts = list(islice(_parts(value, variables), _FOLLOWED_ITEMS))
        except Exception:  # noqa: BLE001 - proxies of what is gone, what another thread changes
            return
        for part in parts:
            yield from _of_value(part, variables, seen, depth + 1)


def _parts(value: Any, variables: Variables) -> Iterator[Any]:
    kind = type(value)
    if issubclass(kind, type):
        if module_name_of(value) == variables.get("__name__"):
            yield from variables_of_class(value).values()
    elif issubclass(kind, set | frozenset):
        yield from value
    elif issubclass(kind, types.MethodType):
        yield from (value.__self__, value.__func__)
    elif issubclass(kind, staticmethod | classmethod):
        yield value.__func__
    elif issubclass(kind, property):
        yield from (value.fget, value.fset)
    else:
        yield from (part for _, part in parts_of(value))


def _imported_by(code: types.CodeType, variables: Variables) -> Iterator[Variables]:
    """What a function imports when it is called, as far as it is loaded by now."""
    package = variables.get("__package__")
    parts = package.split(".") if isinstance(package, str) and package else []
    parents = ["", *(".".join(parts[:number]) + "." for number in range(1, len(parts) + 1))]
    for name in code.co_names:
        for parent in parents:
            if parent + name in sys.modules:
                yield from _of_name(parent + name)
    for constant in code.co_consts:
        if type(constant) is types.CodeType:
            yield from _imported_by(constant, variables)
