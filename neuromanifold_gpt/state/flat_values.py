"""Values that objects keep: numbers, texts, and flat containers of them, copied, compared and put back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

SCALARS = (bool, int, float, str, type(None))
_GLANCED_AT_WHOLE = 1 << 16  # lists up to this length
_GLANCED_AT_ITEMS = 1 << 10  # of longer ones


def copy_of(value: Any) -> Any:
    """A copy of a flat container of numbers or strings, of an array as a tensor; ``None`` of anything else."""
    if isinstance(plain := as_plain(value), Tensor):
        return plain.clone()
    if type(value) in (list, tuple) and all(isinstance(item, SCALARS) for item in value):
        return type(value)(value)
    return None


def as_plain(value: Any) -> Any:
    """An array of numbers as a tensor, on the same memory where that can be; all else as it is."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value if _can_be_shared(value) else value.copy())
    return value.detach() if isinstance(value, Tensor) else value


def _can_be_shared(array: np.ndarray[Any, Any]) -> bool:
    return array.flags.c_contiguous and array.flags.writeable


def put_back(attributes: dict[str, Any], name: str, saved: Any) -> None:
    """Set an attribute to a :func:`copy_of` what it was; in place where that can be: others may hold the same list."""
    current = attributes.get(name)
    if type(current) is list and type(saved) is list:
        current[:] = saved
    elif isinstance(saved, Tensor) and _can_take(current, saved):
        as_plain(current).copy_(saved)
    elif isinstance(saved, Tensor):
        attributes[name] = saved.numpy().copy() if isinstance(current, np.ndarray) else saved.clone()
    else:
        attributes[name] = list(saved) if type(saved) is list else saved


def _can_take(current: Any, saved: Tensor) -> bool:
    """Whether a tensor or array can be filled with another."""
    if isinstance(current, np.ndarray):
        return current.dtype.kind in "biuf" and _can_be_shared(current) and _is_alike(as_plain(current), saved)
    return isinstance(current, Tensor) and current.is_contiguous() and _is_alike(current, saved)


def _is_alike(tensor: Tensor, other: Tensor) -> bool:
    return (tensor.shape, tensor.dtype, tensor.device) == (other.shape, other.dtype, other.device)


def equal(value: Any, other: Any) -> bool:
    """Whether two values are of one type and equal."""
    if isinstance(value, Tensor) or isinstance(other, Tensor):
        both = isinstance(value, Tensor) and isinstance(other, Tensor)
        return both and _is_alike(value, other) and torch.equal(value, other)
    if value is other or type(value) is not type(other):
        return value is other
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(equal(item, other[key]) for key, item in value.items())
    try:
        return bool(value == other)
    except (RuntimeError, ValueError):  # tensors or arrays within
        return len(value) == len(other) and all(map(equal, value, other))


def seem_equal(value: Any, other: Any) -> bool:
    """:func:`equal`, of long lists by some of their items."""
    if type(value) is not type(other) or not isinstance(value, list | tuple) or len(value) <= _GLANCED_AT_WHOLE:
        return equal(value, other)
    step = len(value) // _GLANCED_AT_ITEMS
    return len(value) == len(other) and value[::step] == other[::step]
