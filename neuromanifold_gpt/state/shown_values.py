"""A short text that shows whether a value has changed: of numbers what they are, of tensors, arrays, containers and
users' objects a digest. It is made in the middle of training, of whatever users' objects hold, so it costs little and
never fails.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from neuromanifold_gpt.state.users_objects import attributes_of

RESULT = "a result with its graph"
_LOOKED_AT_ITEMS = (100, 10, 10)  # of a container or object, of one in it, and of one in that; deeper, its length
_LOOKED_AT_ELEMENTS = 1 << 16  # of a tensor or array
_LOOKED_AT_ELEMENTS_WITHIN = 1 << 10  # of one in a list or dict, where larger ones than the above are passed over


def shown_value(value: Any, state_storages: Collection[int] = ()) -> str | None:
    """What shows whether a value has changed.

    Args:
        value: whatever an attribute holds.
        state_storages: addresses of memory that a checkpoint has.

    Returns:
        ``None`` of what is no number, text, tensor, array, or container or object with such; of an empty dict, as
        tables are before they are filled; and of what is in the state dict. :data:`RESULT` of tensors that belong to a
        graph.
    """
    try:
        return _shown(value, state_storages, 0)
    except Exception:  # noqa: BLE001 - tensors of other libraries, containers that a thread changes: no look is worth a run
        return None


def storages_of(module: nn.Module) -> set[int]:
    """Addresses of the memory of parameters and buffers."""
    return {address for tensor in (*module.parameters(), *module.buffers()) if (address := _address(tensor))}


def _shown(value: Any, state_storages: Collection[int], depth: int) -> str | None:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool | int | float):
        return repr(value) if abs(value) < 1 << 64 or value != value else _text_digest(hash(value))
    if isinstance(value, Tensor):
        if isinstance(value, nn.Parameter) or _address(value) in state_storages:
            return None
        return RESULT if value.requires_grad else _tensor_digest(value, depth)
    if isinstance(value, np.ndarray):
        return _array_digest(value, depth)
    if isinstance(value, str | bytes):
        return _text_digest(value)
    if isinstance(value, set | frozenset):
        return _text_digest(sorted(map(repr, value))) if len(value) <= _LOOKED_AT_ITEMS[0] else str(len(value))
    if isinstance(value, list | tuple | deque | dict):
        return _items_digest(value, value.values() if isinstance(value, dict) else value, state_storages, depth)
    attributes = attributes_of(value)
    return _items_digest(attributes, attributes.values(), state_storages, depth) if attributes else None


def _items_digest(
    container: Collection[Any], values: Collection[Any], state_storages: Collection[int], depth: int
) -> str | None:
    if depth == len(_LOOKED_AT_ITEMS):
        return str(len(container))
    items = list(islice(values, _LOOKED_AT_ITEMS[depth]))
    shown = [_shown(item, state_storages, depth + 1) for item in items]
    is_passed_over = isinstance(container, dict) if not items else not any(shown)
    return None if is_passed_over else f"{len(container)} {_text_digest(shown)}"


def _address(tensor: Tensor) -> int:
    """0 where there is none."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError, ValueError):  # sparse, or of another library
        return 0


def _tensor_digest(tensor: Tensor, depth: int) -> str:
    kind = [str(tensor.dtype), tuple(tensor.shape)]
    plain = tensor.layout is torch.strided and tensor.device.type != "meta" and not tensor.is_quantized
    if not plain or tensor.numel() == 0 or (depth and tensor.numel() > _LOOKED_AT_ELEMENTS):
        return _text_digest(kind)
    some = tensor.detach()[_spaced(tensor.shape, tensor.stride(), depth)]
    data = some.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8)
    return _text_digest([kind, xxhash.xxh3_64_hexdigest(data.numpy().tobytes())])


def _array_digest(array: np.ndarray[Any, Any], depth: int) -> str | None:
    if array.dtype.kind not in "biufc" or isinstance(array, np.memmap):
        return None
    kind = [str(array.dtype), array.shape]
    if depth and array.size > _LOOKED_AT_ELEMENTS:
        return _text_digest(kind)
    some = array[_spaced(array.shape, array.strides, depth)]
    return _text_digest([kind, xxhash.xxh3_64_hexdigest(some.tobytes())])


def _spaced(shape: Sequence[int], strides: Sequence[int], depth: int) -> tuple[slice, ...]:
    """A grid of elements; of dimensions that repeat one element, that one."""
    limit = _LOOKED_AT_ELEMENTS_WITHIN if depth else _LOOKED_AT_ELEMENTS
    steps = [max(size, 1) if stride == 0 else 1 for size, stride in zip(shape, strides, strict=True)]
    while math.prod(counts := [-(-size // step) for size, step in zip(shape, steps, strict=True)]) > limit:
        steps[counts.index(max(counts))] *= 2
    return tuple(slice(None, None, step) for step in steps)


def _text_digest(shown: Any) -> str:
    return xxhash.xxh3_64_hexdigest(repr(shown).encode())
