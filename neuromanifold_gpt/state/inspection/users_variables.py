"""Variables of users' Python modules, and attributes of their classes: ``rng = random.Random(1)`` in a script."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

from neuromanifold_gpt.state.inspection.drawing_caches import CACHE
from neuromanifold_gpt.state.inspection.users_modules import users_modules

_CONSTANTS = (bool, int, float, str, bytes, type(None), type)
_NO_STATE = (type, types.ModuleType, types.BuiltinFunctionType, staticmethod, classmethod, property)

_names_in_classes: WeakKeyDictionary[type, tuple[int, list[str]]] = WeakKeyDictionary()  # and how many attributes


def users_variables(things: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Of :func:`users_modules`, by name such as ``train.rng`` or ``data.Augmentation.rng``.

    Without modules and classes; of functions those that keep something. What cannot be looked at is passed over.

    Args:
        things: as for :func:`users_modules`.
    """
    for name, variables in users_modules(things):
        own_name = variables.get("__name__")  # another one, where the module is known under two
        for variable, value in list(variables.items()):
            try:
                found = list(_at_variable(f"{name}.{variable}", variable, value, own_name))
            except Exception:  # noqa: BLE001 - metaclasses and the like that fail when they are asked
                continue
            yield from found


def _at_variable(path: str, name: Any, value: Any, module_name: Any) -> Iterator[tuple[str, Any]]:
    kind = type(value)  # isinstance() would ask proxies, which may have nobody to ask
    if not isinstance(name, str) or _is_magic(name):
        return
    if issubclass(kind, type):
        if value.__module__ == module_name:
            yield from _of_class(path, value)
    elif issubclass(kind, types.FunctionType):
        if _keeps_something(value) and value.__module__ == module_name:
            yield path, value
    elif not issubclass(kind, _NO_STATE) or (kind is types.BuiltinFunctionType and not _is_module(value.__self__)):
        yield path, value


def _keeps_something(function: types.FunctionType) -> bool:
    return bool(function.__closure__ or function.__dict__) or _has_defaults(function)


def _has_defaults(function: types.FunctionType) -> bool:
    """That may change."""
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return any(type(value) not in _CONSTANTS for value in defaults)


def _of_class(path: str, kind: type) -> Iterator[tuple[str, Any]]:
    for name in names_in_class(kind):
        yield from _at_variable(f"{path}.{name}", name, vars(kind).get(name), kind.__module__)


def names_in_class(kind: type) -> list[str]:
    """Without methods and the like, of which most classes have nothing else, unless their defaults may change."""
    number, names = _names_in_classes.get(kind, (-1, []))
    if number != len(vars(kind)):
        names = [name for name, value in list(vars(kind).items()) if not _is_magic(name) and _is_own(kind, name, value)]
        _names_in_classes[kind] = len(vars(kind)), names
    return names


def _is_own(kind: type, name: str, value: Any) -> bool:
    if issubclass(type(value), type):
        return bool(value.__qualname__ == f"{kind.__qualname__}.{name}")
    if type(value) is types.FunctionType:
        return _has_defaults(value)
    return not hasattr(type(value), "__get__") or issubclass(type(value), CACHE)


def _is_magic(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _is_module(thing: Any) -> bool:
    return thing is None or issubclass(type(thing), types.ModuleType)
