"""What the interpreter itself knows of objects, classes and Python modules.

Nothing of theirs is called: metaclasses, ``__getattr__`` of proxies and modules that load when they are looked at may
give other answers, or fail.
"""

from __future__ import annotations

import array
import contextlib
import contextvars
import functools
import queue
import threading
import types
import weakref
from collections import ChainMap, UserDict, UserList, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, TypeVar

CONTAINERS = (dict, types.MappingProxyType, list, tuple, deque)
FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinMethodType, functools.partial)
# Of the standard library, and for what is users'; and the attribute that holds it.
_HOLDERS: dict[type, str] = {
    ChainMap: "maps",
    UserDict: "data",
    UserList: "data",
    queue.Queue: "queue",
    weakref.WeakKeyDictionary: "data",
}
_QUALIFIED_NAME: Any = vars(type)["__qualname__"]
_REMEMBERED_CLASSES = 1000
_Answer = TypeVar("_Answer")


def remembered_of_class(ask: Callable[[type], _Answer]) -> Callable[[type], _Answer]:
    """Ask about each class once. By identity: metaclasses may have taken hashes away."""
    known: dict[int, tuple[weakref.ref[type], _Answer]] = {}

    @functools.wraps(ask)
    def answer(kind: type) -> _Answer:
        found = known.get(id(kind))
        if found is None or found[0]() is not kind:  # another was there before
            if len(known) >= _REMEMBERED_CLASSES:
                known.clear()
            found = known[id(kind)] = weakref.ref(kind), ask(kind)
        return found[1]

    return answer


def bases_of(kind: type) -> tuple[type, ...]:
    """The class and those above it."""
    bases: tuple[type, ...] = type.__getattribute__(kind, "__mro__")
    return bases


def variables_of_class(kind: type) -> types.MappingProxyType[str, Any]:
    """What is defined in the class itself."""
    variables: types.MappingProxyType[str, Any] = type.__getattribute__(kind, "__dict__")
    return variables


def module_name_of(kind: type) -> Any:
    """The name of the Python module a class is from; classes may have anything there, or nothing."""
    try:
        return type.__getattribute__(kind, "__module__")
    except AttributeError:
        return None


def qualified_name_of(kind: type) -> str:
    """``Outer.Inner``."""
    name: str = _QUALIFIED_NAME.__get__(kind)
    return name


def variables_of_module(module: Any) -> dict[str, Any]:
    """Without a look at the module itself, by which some are loaded; of what is no module, none."""
    if not issubclass(type(module), types.ModuleType):
        return {}
    variables: dict[str, Any] = types.ModuleType.__getattribute__(module, "__dict__")
    return variables


def attribute_dict(thing: Any) -> dict[str, Any] | None:
    """``__dict__``, past ``__getattr__``, by which proxies ask for it."""
    try:
        found: dict[str, Any] = object.__getattribute__(thing, "__dict__")
    except AttributeError:
        return None
    return found


def all_attributes(thing: Any) -> dict[str, Any]:
    """Those in ``__dict__`` and in ``__slots__``."""
    return {**(attribute_dict(thing) or {}), **values_of_slots(thing, slots_of(type(thing)))}


def values_of_slots(thing: Any, slots: Iterable[tuple[str, types.MemberDescriptorType]]) -> dict[str, Any]:
    """Of some of :func:`slots_of` its class, those that are set."""
    found = {}
    for name, member in slots:
        with contextlib.suppress(AttributeError):  # not set yet
            found[name] = member.__get__(thing)
    return found


@remembered_of_class
def slots_of(kind: type) -> tuple[tuple[str, types.MemberDescriptorType], ...]:
    """The ``__slots__`` of a class and of those above it, by name."""
    found = {}
    for base in bases_of(kind):
        of_class = variables_of_class(base)
        slots = of_class.get("__slots__", ())
        names = (slots,) if isinstance(slots, str) else slots if isinstance(slots, Collection) else ()
        for name in (name for name in names if isinstance(name, str)):
            private = name.startswith("__") and not name.endswith("__")
            mangled = f"_{qualified_name_of(base).rpartition('.')[2].lstrip('_')}{name}" if private else name
            member = of_class.get(mangled)
            if isinstance(member, types.MemberDescriptorType):
                found[name] = member
    return tuple(found.items())


def _variables_of_function(function: types.FunctionType) -> dict[str, Any]:
    """What it keeps: variables of the functions around it, defaults of its arguments, and its attributes."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    around = {name: cell.cell_contents for name, cell in cells if cell != types.CellType()}  # not filled yet
    defaults = {f"default {number}": value for number, value in enumerate(function.__defaults__ or ())}
    return {**around, **defaults, **(function.__kwdefaults__ or {}), **vars(function)}


def parts_of(thing: Any) -> Iterable[tuple[Any, Any]]:
    """What an object, container or function refers to, by name; of a dict by key, of a list by number.

    Of other things, such as a set, no more than their attributes.
    """
    kind = type(thing)
    if issubclass(kind, dict):
        return dict.items(thing)
    if issubclass(kind, types.MappingProxyType):
        return thing.items()
    if issubclass(kind, list | tuple | deque):
        return enumerate(values_in(thing))
    if issubclass(kind, types.FunctionType):
        return _variables_of_function(thing).items()
    if issubclass(kind, types.MethodType | types.BuiltinMethodType):
        return [("self", thing.__self__)]
    if issubclass(kind, functools.partial):
        return [("func", thing.func), ("args", thing.args), ("keywords", thing.keywords)]
    return all_attributes(thing).items()


def held_by(thing: Any) -> dict[str, Any] | None:
    """What one of the standard library's classes that hold what is users' holds, by name; ``None`` of other things."""
    kind = type(thing)
    if issubclass(kind, contextvars.ContextVar):
        try:
            return {"value": thing.get()}
        except LookupError:  # not set yet
            return {}
    if issubclass(kind, threading.local):
        return dict(vars(thing))  # of this thread
    name = next((_HOLDERS[base] for base in bases_of(kind) if base in _HOLDERS), None)
    return None if name is None else {name: (attribute_dict(thing) or {}).get(name)}


def name_of_function(function: Any) -> str:
    """Its qualified name, or that of a class; of a partial also with what is plain among its arguments."""
    kind = type(function)
    if issubclass(kind, functools.partial):
        some = [("", part) for part in function.args] + [(f"{name}=", part) for name, part in function.keywords.items()]
        plain = [f"{name}{part!r}" for name, part in some if type(part) in (bool, int, float)]
        return f"partial({','.join([name_of_function(function.func), *plain])})"
    if issubclass(kind, types.MethodType):
        return name_of_function(function.__func__)
    is_any = issubclass(kind, FUNCTIONS)
    return str(function.__qualname__) if is_any else qualified_name_of(function if issubclass(kind, type) else kind)


def values_in(container: Any) -> Iterator[Any]:
    """Of a dict, list, tuple, deque or array, whatever methods its class has; of other things none."""
    for kind in (dict, list, tuple, deque, array.array):
        if issubclass(type(container), kind):
            return iter(dict.values(container)) if kind is dict else kind.__iter__(container)
    return iter(())
