"""Single values, and flat lists of them, in the form that a checkpoint can have, with their types.

A number of NumPy is stored as its type and its bytes, a member of an enumeration as its name.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from neuromanifold_gpt.state.inspection.flat_values import SCALARS, as_plain
from neuromanifold_gpt.state.inspection.plain_reading import module_name_of, qualified_name_of, variables_of_module

UNKNOWN = object()
_NUMBERS_OF_NUMPY = (np.number, np.bool_)
_NUMBERS_AND_TEXTS = (*SCALARS, *_NUMBERS_OF_NUMPY)
_SEQUENCES = {"list": list, "tuple": tuple}


def is_single_value(value: Any) -> bool:
    """Whether it is a number, text, flag, member of an enumeration or tensor of no dimension that can be stored.

    Not a tensor that data workers have too: a change reaches them at once.
    """
    kind = type(value)  # isinstance() would ask proxies
    if kind is Tensor and value.dim() == 0:
        return as_plain(value) is not None and not value.is_shared()
    return is_scalar(kind)


def is_scalar(kind: type) -> bool:
    """Whether a class is one of numbers, texts or enumerations that can be stored."""
    return issubclass(kind, _NUMBERS_AND_TEXTS) or _is_enumeration(kind)


def stored(value: Any) -> Any:
    """Plain values that stand for a scalar, or for a list or tuple of scalars; anything else as it is.

    Of a user's own kind of number or text, the number or text itself.
    """
    kind = type(value)
    if kind in (list, tuple):
        return _stored_sequence(value)
    if issubclass(kind, _NUMBERS_OF_NUMPY):
        return {"numpy": value.dtype.str, "bytes": value.tobytes()}
    if _is_enumeration(kind):
        member = {"value": value.value} if issubclass(kind, enum.Flag) else {"name": value.name}
        return {"module": module_name_of(kind), "enumeration": qualified_name_of(kind), **member}
    if issubclass(kind, str):
        return str.__str__(value)
    if issubclass(kind, float):
        return float.__float__(value)
    return int.__int__(value) if issubclass(kind, int) and kind is not bool else value


def as_it_was(saved: Any) -> Any:
    """What :func:`stored` was given; :data:`UNKNOWN` if it belongs to an enumeration that is no longer there."""
    kind = type(saved)
    if kind is dict and "numpy" in saved:
        numbers = np.frombuffer(saved["bytes"], saved["numpy"])
        return _SEQUENCES[saved["in"]](numbers) if "in" in saved else numbers[0]
    if kind is dict and "enumeration" in saved:
        return _member(saved)
    if kind in (list, tuple) and dict in {*map(type, saved)}:
        items = [as_it_was(item) for item in saved]
        return UNKNOWN if UNKNOWN in items else kind(items)
    return saved


def _stored_sequence(values: Sequence[Any]) -> Any:
    kinds = {*map(type, values)}
    if kinds.issubset(SCALARS):
        return values
    if len(kinds) == 1 and isinstance(values[0], _NUMBERS_OF_NUMPY) and values[0].dtype.kind != "m":
        array = np.array(values)
        return {"numpy": array.dtype.str, "bytes": array.tobytes(), "in": type(values).__name__}
    return type(values)(stored(value) for value in values)  # type: ignore[call-arg]


def _member(saved: dict[str, Any]) -> Any:
    members = _enumeration(saved["module"], saved["enumeration"])
    try:
        return members(saved["value"]) if "value" in saved else members[saved["name"]]
    except (TypeError, KeyError, ValueError):
        return UNKNOWN


def _is_enumeration(kind: type) -> bool:
    return issubclass(kind, enum.Enum) and _enumeration(module_name_of(kind), qualified_name_of(kind)) is kind


def _enumeration(module: Any, qualified_name: str) -> Any:
    """The class of that name; ``None`` if there is none, or nobody could find it by its name."""
    found: Any = variables_of_module(sys.modules.get(module)) if isinstance(module, str) else {}
    for name in qualified_name.split("."):
        found = (found if isinstance(found, dict) else vars(found)).get(name)
        if not isinstance(found, type):
            return None
    return found if issubclass(found, enum.Enum) else None
