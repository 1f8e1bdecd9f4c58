"""Texts for what holds no number and yet decides what is computed: functions, classes, layers, dtypes and slices.

They are compared within one process only.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Collection, Iterator
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from neuromanifold_gpt.state.inspection.plain_reading import (
    attribute_dict,
    bases_of,
    module_name_of,
    qualified_name_of,
    variables_of_class,
)
from neuromanifold_gpt.state.inspection.users_objects import is_of_the_run, is_of_users_class, is_users_module
from neuromanifold_gpt.state.metrics import is_metric

NONE = "none"
_CODE, _END = "code ", " | "
WITH_TENSORS = "with tensors "  # a layer: where one appears, or vanishes, the state dict shows that
OF_CLASS = f"{_CODE}of its class{_END}"  # a method
_BUILT_IN = (
    types.BuiltinMethodType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
    np.ufunc,
)
_methods: WeakKeyDictionary[type, list[str]] = WeakKeyDictionary()  # by name
_PLAIN = (torch.dtype, torch.layout, torch.memory_format, range)


def with_code(code: str, shown: str | None) -> str:
    """A text of which :func:`code_in` gives the first part; the second is the numbers that are kept with it."""
    return f"{_CODE}{code}{_END}{shown or ''}"


def code_in(shown: str | None) -> str:
    """Which functions and the like a value is, or holds; nothing of what is or holds none."""
    return shown.partition(_END)[0] if shown is not None and shown.startswith(_CODE) else ""


def code_of(value: Any, kept: Collection[int] = ()) -> str | None:
    """By qualified names, so that what is made anew is the same; ``None`` of other things.

    Args:
        value: whatever an attribute holds.
        kept: identities of objects that stay for the run, such as the modules that a method may belong to.
    """
    kind: type = type(value)  # isinstance() would ask proxies
    if issubclass(kind, types.FunctionType):
        is_of_run = (value.__module__ or "").partition(".")[0] in ("lightning", "pytorch_lightning", "lightning_fabric")
        instructions = hash(value.__code__) if "<" in value.__qualname__ else ""  # others may have the same name
        return None if is_of_run else f"{value.__module__}.{value.__qualname__}{instructions}"
    if issubclass(kind, types.MethodType):
        code = code_of(value.__func__)
        return f"{code} {id(value.__self__)}" if code and id(value.__self__) in kept else code
    if issubclass(kind, functools.partial):
        return code_of(value.func, kept)
    if issubclass(kind, functools._lru_cache_wrapper):
        return code_of((attribute_dict(value) or {}).get("__wrapped__"))
    if issubclass(kind, type):
        return f"{module_name_of(value)}.{qualified_name_of(value)}"
    if issubclass(kind, _BUILT_IN):
        return str(getattr(value, "__qualname__", None) or value.__name__)
    if issubclass(kind, slice):
        return str([part for part in (value.start, value.stop, value.step) if part is None or type(part) is int])
    if issubclass(kind, _PLAIN):
        return repr(value)
    return _class_of_object(value, kind)


def own_methods(thing: Any) -> Iterator[str]:
    """Names of methods that users' classes give an object, and ``forward``, if no attribute takes their place.

    It may hold one of them itself, as behind a strategy that has patched it for a while.
    """
    attributes = attribute_dict(thing) or {}
    for name in _names_of_methods(cast(Any, type(thing))):
        if name not in attributes or _is_own_method(thing, name, attributes[name]):
            yield name


def _is_own_method(thing: Any, name: str, value: Any) -> bool:
    if not issubclass(type(value), types.MethodType) or value.__self__ is not thing:
        return False
    in_bases = (variables_of_class(base).get(name) for base in bases_of(cast(Any, type(thing))))
    return value.__func__ is next((part for part in in_bases if issubclass(type(part), types.FunctionType)), None)


def _names_of_methods(kind: type) -> list[str]:
    names = _methods.get(kind)
    if names is None:
        found: dict[str, None] = {}
        for base in reversed(bases_of(kind)):
            is_users = is_users_module(module_name_of(base))
            for name, value in variables_of_class(base).items():
                is_any = name == "forward" or (is_users and name[:2] != "__")
                if is_any and issubclass(type(value), types.FunctionType):
                    found[name] = None
        names = _methods[kind] = [*found]
    return names


def _class_of_object(value: Any, kind: type) -> str | None:
    if issubclass(kind, nn.Module):
        return None if is_metric(value) else " ".join(class_of_layer(part) for part in value.modules())
    is_called = any("__call__" in variables_of_class(base) for base in bases_of(kind))
    return qualified_name_of(kind) if is_called and is_of_users_class(value) and not is_of_the_run(kind) else None


def is_plain_layer(module: Any) -> bool:
    """Whether it is of torch's classes, and has no tensors: then it is its class, whoever holds it."""
    if not issubclass(type(module), nn.Module) or is_metric(module):
        return False
    has_tensors = any(True for _ in (*module.parameters(), *module.buffers()))
    return not has_tensors and not any(is_of_users_class(part) for part in module.modules())


def class_of_layer(layer: nn.Module) -> str:
    """The name of its class, whatever torch has made of that; of a lazy layer, of what it becomes."""
    kind = type_before_parametrizations(layer)
    kind = getattr(kind, "cls_to_become", None) or kind
    return f"{module_name_of(kind)}.{qualified_name_of(kind)}"
