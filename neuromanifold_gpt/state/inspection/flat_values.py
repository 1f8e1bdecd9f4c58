"""Values that objects keep: numbers, texts, and flat containers of them, copied, compared and put back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

SCALARS = (bool, int, float, str, type(None))
_GLANCED_AT_WHOLE = 1 << 16  # lists up to this length
_GLANCED_AT_ITEMS = 1 << 10  # of longer ones
_TENSORS_GLANCED_AT_WHOLE = 1 << 20  # up to so many elements: to compare them takes 1 ms
_AS_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element


def copy_of(value: Any) -> Any:
    """A copy of a list or tuple, of an array as a tensor; ``None`` of anything else."""
    if isinstance(plain := as_plain(value), Tensor):
        return plain.clone()
    return type(value)(value) if type(value) in (list, tuple) else None


def as_plain(value: Any) -> Any:
    """A tensor or array of numbers as a tensor, on the same memory where that can be.

    ``None`` of tensors of other kinds (sparse, nested, quantized, lazy, without memory), of arrays that torch has no
    type for, and of anything else but lists and tuples, which are given as they are.
    """
    kind = type(value)  # isinstance() would ask proxies, which may have nobody to ask
    if kind in (np.ndarray, np.memmap):
        return torch.from_numpy(value if _can_be_shared(value) else value.copy()) if _has_type(value) else None
    if kind in (Tensor, nn.Parameter):
        return value.detach() if _has_elements(value) else None
    return value if kind in (list, tuple) else None


def _has_type(array: np.ndarray[Any, Any]) -> bool:
    return array.dtype.kind in "biuf" and array.dtype.isnative and array.dtype.itemsize in _AS_BITS


def _has_elements(tensor: Tensor) -> bool:
    is_plain = tensor.layout is torch.strided and not tensor.is_nested
    return is_plain and not tensor.is_quantized and tensor.device.type != "meta"


def _can_be_shared(array: np.ndarray[Any, Any]) -> bool:
    return array.flags.c_contiguous and array.flags.writeable


def put_back(current: Any, saved: Any) -> Any:
    """What an attribute has to be set to, so that it is a :func:`copy_of` what it was.

    It is the current value, changed in place, where that can be: others may hold the same list.
    """
    if type(current) is list and type(saved) is list:
        current[:] = saved
        return current
    if isinstance(saved, Tensor) and _can_take(current, saved):
        as_plain(current).copy_(saved)
        return current
    if isinstance(saved, Tensor):
        return saved.numpy().copy() if isinstance(current, np.ndarray) else saved.clone()
    return list(saved) if type(saved) is list else saved


def _can_take(current: Any, saved: Tensor) -> bool:
    """Whether a tensor or array can be filled with another."""
    plain = as_plain(current)
    if not isinstance(plain, Tensor) or not _is_alike(plain, saved):
        return False
    if isinstance(current, np.ndarray):
        return _can_be_shared(current)
    is_an_element = plain.dim() == 0 and plain.untyped_storage().nbytes() > plain.element_size()  # of a larger one
    return current.is_contiguous() and not is_an_element


def _is_alike(tensor: Tensor, other: Tensor) -> bool:
    return (tensor.shape, tensor.dtype, tensor.device) == (other.shape, other.dtype, other.device)


def equal(value: Any, other: Any) -> bool:
    """Whether two values are of one type and equal; tensors, and numbers that are none, by their bits."""
    if isinstance(value, Tensor) or isinstance(other, Tensor):
        both = isinstance(value, Tensor) and isinstance(other, Tensor) and not (is_lazy(value) or is_lazy(other))
        return both and _is_alike(value, other) and torch.equal(_bits_of(value), _bits_of(other))
    if value is other or type(value) is not type(other):
        return value is other
    if isinstance(value, np.generic):
        return value.dtype == other.dtype and value.tobytes() == other.tobytes()
    if isinstance(value, float):
        return value == other or (value != value and other != other)
    if isinstance(value, np.ndarray):  # of numbers, such as the state of a generator
        return value.dtype == other.dtype and np.array_equal(value, other)
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(equal(item, other[key]) for key, item in value.items())
    try:
        return bool(value == other)
    except (RuntimeError, ValueError):  # tensors or arrays within
        return len(value) == len(other) and all(map(equal, value, other))


def _bits_of(tensor: Tensor) -> Tensor:
    plain = tensor.detach().resolve_conj().resolve_neg()
    plain = torch.view_as_real(plain) if plain.is_complex() else plain
    return plain.view(_AS_BITS[plain.element_size()]) if plain.is_floating_point() else plain


def seem_equal(value: Any, other: Any) -> bool:
    """:func:`equal`, of long lists and large tensors by some of their items."""
    if isinstance(value, Tensor) and isinstance(other, Tensor) and value.numel() > _TENSORS_GLANCED_AT_WHOLE:
        if not _is_alike(value, other):
            return False
        grid = spaced(value.shape, value.stride(), _GLANCED_AT_WHOLE)
        return equal(value[grid], other[grid])
    if type(value) is not type(other) or not isinstance(value, list | tuple) or len(value) <= _GLANCED_AT_WHOLE:
        return equal(value, other)
    step = len(value) // _GLANCED_AT_ITEMS
    return len(value) == len(other) and value[::step] == other[::step]


def spaced(shape: Sequence[int], strides: Sequence[int], limit: int) -> tuple[slice, ...]:
    """A grid of at most so many elements of a tensor or array; of dimensions that repeat one element, that one."""
    steps = [max(size, 1) if stride == 0 else 1 for size, stride in zip(shape, strides, strict=True)]
    while math.prod(counts := [-(-size // step) for size, step in zip(shape, steps, strict=True)]) > limit:
        steps[counts.index(max(counts))] *= 2
    return tuple(slice(None, None, step) for step in steps)
