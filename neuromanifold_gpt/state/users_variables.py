"""Variables of users' Python modules, and attributes of their classes: ``rng = random.Random(1)`` in a script."""

from __future__ import annotations

import functools
import sys
import sysconfig
import types
from collections.abc import Iterator
from typing import Any

from neuromanifold_gpt.state.users_objects import is_users_module

_NO_STATE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, staticmethod, classmethod, property)
_STANDARD_LIBRARY = sysconfig.get_path("stdlib")


def users_variables() -> Iterator[tuple[str, Any]]:
    """Of all of users' Python modules that are loaded, by name such as ``train.rng`` or ``data.Augmentation.rng``.

    Without modules, functions and classes.
    """
    for name in _names_of_users_modules(len(sys.modules)):
        for variable, value in vars(sys.modules[name]).copy().items() if name in sys.modules else ():
            if _is_magic(variable):
                continue
            kind = type(value)  # isinstance() would ask proxies, which may have nobody to ask
            if issubclass(kind, type):
                if value.__module__ == name:
                    yield from _attributes_of_class(f"{name}.{variable}", value)
            elif not issubclass(kind, _NO_STATE):
                yield f"{name}.{variable}", value


@functools.lru_cache(maxsize=1)
def _names_of_users_modules(_number_of_modules: int) -> list[str]:
    """There are thousands, and in most saves the same as before."""
    names: dict[int, str] = {}  # of several, the first
    for name, module in sorted(sys.modules.copy().items()):
        if _is_users(name, module):
            names.setdefault(id(module), name)
    return list(names.values())


def _attributes_of_class(path: str, kind: type) -> Iterator[tuple[str, Any]]:
    for attribute, value in vars(kind).copy().items():
        if not (_is_magic(attribute) or issubclass(type(value), _NO_STATE) or hasattr(type(value), "__get__")):
            yield f"{path}.{attribute}", value


def _is_users(name: str, module: Any) -> bool:
    if not isinstance(module, types.ModuleType) or not is_users_module(name):
        return False
    file = vars(module).get("__file__")  # some modules are loaded by a look at them
    return name == "__main__" or (isinstance(file, str) and not file.startswith(_STANDARD_LIBRARY))


def _is_magic(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")
