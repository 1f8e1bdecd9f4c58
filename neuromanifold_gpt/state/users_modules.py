"""The Python modules of the program that trains: not all that happen to be loaded, of which no two processes agree."""

from __future__ import annotations

import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator
from typing import Any

from neuromanifold_gpt.state.users_objects import is_users_module, variables_of_module

_STANDARD_LIBRARY = sysconfig.get_path("stdlib")
# By name: which module that was, how many variables it had and how many modules there were; what it refers to.
_references: dict[str, tuple[tuple[int, int, int], frozenset[str]]] = {}


def users_modules(things: Iterable[Any]) -> list[tuple[str, types.ModuleType]]:
    """Users' Python modules, by name: the script's, those of the functions that run, and of the classes and functions
    of some objects; and those that these refer to, or import in their functions.

    Args:
        things: what trains, such as the parts of a model and a dataset.
    """
    found: dict[int, tuple[str, types.ModuleType]] = {}  # of several names of one module, the first
    names = {"__main__", *_names_on_stack(), *(name for thing in things for name in modules_of(thing))}
    looked_at: set[str] = set()
    while names:
        name = names.pop()
        looked_at.add(name)
        module = sys.modules.get(name)
        if module is not None and _is_users(name, module):
            known = found.get(id(module))
            found[id(module)] = (min(name, known[0]) if known else name, module)
            names |= _references_of(name, module) - looked_at
    return sorted(found.values(), key=lambda named: named[0])


def modules_of(thing: Any) -> Iterator[str]:
    """The names of those in which its class and the classes above it are, or a function is."""
    kind = type(thing)  # isinstance() would ask proxies
    if issubclass(kind, types.MethodType):
        thing = thing.__func__
    if issubclass(type(thing), types.FunctionType):
        yield thing.__globals__.get("__name__", "")
    for parent in type.__getattribute__(kind, "__mro__"):
        yield _module_of_class(parent)


def _names_on_stack() -> set[str]:
    names: set[str] = set()
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if is_users_module(name):
            names.update((name, *_in_sys_modules(frame.f_code, frame.f_globals)))
        frame = frame.f_back
    return names


def _references_of(name: str, module: types.ModuleType) -> frozenset[str]:
    variables = variables_of_module(module)
    state = id(module), len(variables), len(sys.modules)
    if name not in _references or _references[name][0] != state:
        found: set[str] = set()
        for value in list(variables.values()):
            found.update(_of_variable(value, variables))
        _references[name] = state, frozenset(found)
    return _references[name][1]


def _of_variable(value: Any, variables: dict[str, Any]) -> Iterator[str]:
    kind = type(value)
    if issubclass(kind, types.ModuleType):
        yield variables_of_module(value).get("__name__", "")
    elif issubclass(kind, type):
        yield _module_of_class(value)
        if _module_of_class(value) == variables.get("__name__"):
            for attribute in type.__getattribute__(value, "__dict__").values():
                if not issubclass(type(attribute), type):
                    yield from _of_function(attribute, variables)
    else:
        yield _module_of_class(kind)
        yield from _of_function(value, variables)


def _of_function(value: Any, variables: dict[str, Any]) -> Iterator[str]:
    """Of what it is made of by decorators too."""
    if issubclass(type(value), staticmethod | classmethod):
        value = value.__func__
    if issubclass(type(value), property):
        value = value.fget
    for _ in range(10):
        if not issubclass(type(value), types.FunctionType):
            return
        yield value.__globals__.get("__name__", "")
        if value.__globals__ is variables:
            yield from _in_sys_modules(value.__code__, variables)
        value = value.__dict__.get("__wrapped__")


def _in_sys_modules(code: types.CodeType, variables: dict[str, Any]) -> Iterator[str]:
    """Modules that a function imports when it is called, as far as they are loaded by now."""
    package = variables.get("__package__")
    parts = package.split(".") if isinstance(package, str) and package else []
    parents = [".".join(parts[:number]) + "." for number in range(1, len(parts) + 1)]
    for name in code.co_names:
        for parent in ("", *parents):
            if parent + name in sys.modules:
                yield parent + name
    for constant in code.co_consts:
        if type(constant) is types.CodeType:
            yield from _in_sys_modules(constant, variables)


def _module_of_class(kind: type) -> str:
    name = type.__getattribute__(kind, "__module__")  # past metaclasses; anything may be there
    return name if type(name) is str else ""


def _is_users(name: str, module: Any) -> bool:
    if not issubclass(type(module), types.ModuleType) or not is_users_module(name):
        return False
    file = variables_of_module(module).get("__file__")
    return name == "__main__" or (isinstance(file, str) and not file.startswith(_STANDARD_LIBRARY))
