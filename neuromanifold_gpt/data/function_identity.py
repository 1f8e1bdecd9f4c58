"""Which function, or other callable object, something is."""

from __future__ import annotations

import functools
import inspect
import types
from typing import Any

from neuromanifold_gpt.state.unsaved.shown_values import shown_value


def identity(value: Any) -> Any:
    """What stays the same; methods and partial functions are made anew each time, of the same parts."""
    if issubclass(type(value), types.MethodType):
        return id(value.__func__), id(value.__self__)
    if issubclass(type(value), functools.partial):
        arguments = [*value.args, *value.keywords.values()]
        return identity(value.func), *value.keywords, *(shown_value(part) or id(part) for part in arguments)
    return id(value)


def is_same_function(function: Any, other: Any) -> bool:
    """Whether two are of the same parts."""
    return function is other or bool(identity(function) == identity(other))


def name_of(function: Any) -> str:
    """Where a function is from; of another callable object its class."""
    named = function.func if issubclass(type(function), functools.partial) else function
    named = named if inspect.isroutine(named) or inspect.isclass(named) else type(named)
    return f"{named.__module__}.{named.__qualname__}"
