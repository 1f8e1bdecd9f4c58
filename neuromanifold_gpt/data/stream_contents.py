"""Lists, dicts, tensors and arrays that a stream fills as it is read: buckets, leftover tokens, an order of indices.

A pass begins with what the one before has left in them, and so must one that a resumed program begins: also where
somebody, as Lightning does, has asked for a batch before the position was loaded.
"""

from __future__ import annotations

import types
from collections import deque
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor

from neuromanifold_gpt.data.changes import looked_at_attributes, shown_attributes
from neuromanifold_gpt.state.inspection.flat_values import SCALARS, as_plain, equal
from neuromanifold_gpt.state.inspection.kept_variables import kept_variables, set_variable
from neuromanifold_gpt.state.inspection.plain_reading import attribute_dict
from neuromanifold_gpt.state.inspection.stored_values import UNKNOWN, as_it_was, is_scalar, stored
from neuromanifold_gpt.state.owned_state import OwnedState

MAXIMUM_ITEMS = 1 << 16  # of a container, in all that it holds, and elements of tensors
_CONTAINERS = (list, tuple, set, deque, dict)
_FOLLOWED = (*_CONTAINERS, Tensor, np.ndarray)
_NOT_KEPT, _TABLE = {"kind": "not kept"}, {"kind": "table"}
_LOOKED_AT_ITEMS = 1000  # of a dict


class StreamContents:
    """Follows them from the time when the stream was made.

    Args:
        owned: the stream. What is among its values is no affair of this.
    """

    def __init__(self, owned: OwnedState) -> None:
        self._owned = owned
        self._as_made = self._now()
        self._shown_at_first_batch: dict[str, str] | None = None

    def begin(self) -> None:
        """The first batch is there: what it needs is made."""
        if self._shown_at_first_batch is None:
            self._shown_at_first_batch = shown_attributes(self._owned)

    def changed(self) -> dict[str, Any]:
        """Those that are not as they were made, by path, as plain values and tensors."""
        return {path: kept for path, kept in self._now().items() if not equal(kept, self._as_made.get(path, ...))}

    def not_kept(self) -> list[str]:
        """Those that have changed since the first batch, and are too large or hold other things."""
        paths = [path for path, kept in self._now().items() if equal(kept, _NOT_KEPT)]
        before = self._shown_at_first_batch
        if before is None or not paths:
            return []
        now = shown_attributes(self._owned)
        return sorted(path for path in paths if now.get(path) != before.get(path))

    def restore(self, changed: dict[str, Any]) -> None:
        """Put back :meth:`changed`, and the others as they were made."""
        owners = dict(self._owned.owners())
        values = dict(looked_at_attributes(self._owned))
        now = self._now()
        for path in now.keys() | changed.keys():
            owner, _, name = path.rpartition(".")
            kept = changed.get(path, self._as_made.get(path, ...))
            if owner not in owners or kept in (_NOT_KEPT, _TABLE) or equal(kept, now.get(path, ...)):
                continue
            if kept is not ...:
                _set(owners[owner], name, values.get(path), kept)
            elif (attributes := attribute_dict(owners[owner])) is not None and now[path] is not None:
                attributes.pop(name, None)  # made since

    def _now(self) -> dict[str, Any]:
        in_position = self._owned.values()
        return {
            path: _kept(value)
            for path, value in looked_at_attributes(self._owned)
            if value is None or (path not in in_position and issubclass(type(value), _FOLLOWED))
        }


def _set(owner: Any, name: str, current: Any, kept: Any) -> None:
    value, kind = _unpacked(kept), type(current)
    if type(value) in (dict, set) and issubclass(kind, type(value)):
        current.clear()
        current.update(value)
    elif kind is deque and type(value) is deque and current.maxlen == value.maxlen:
        current.clear()
        current.extend(value)
    elif kind is list and type(value) is list:
        current[:] = value
    elif value is not UNKNOWN and (type(owner) is not types.FunctionType or name in kept_variables(owner)):
        set_variable(owner, name, value)


def _kept(value: Any) -> Any:
    try:
        return _Packing().packed(value, is_outermost=True)
    except (TypeError, RuntimeError):  # changed by a thread meanwhile
        return _TABLE if _is_table(value) else _NOT_KEPT


def _is_table(value: Any) -> bool:
    """Whether it is a dict of things that were found or opened once, rather than of buckets."""
    if not issubclass(type(value), dict):
        return False
    return not any(type(item) in (list, deque) for item in islice(value.values(), _LOOKED_AT_ITEMS))


class _Packing:
    """Makes of a container what a checkpoint can hold; ``TypeError`` if it cannot."""

    def __init__(self) -> None:
        self._items_left = MAXIMUM_ITEMS

    def packed(self, value: Any, *, is_outermost: bool = False) -> Any:
        kind = type(value)  # isinstance() would ask proxies
        if is_scalar(kind):
            return stored(value)
        if kind is bytes:
            return value
        if issubclass(kind, Tensor | np.ndarray):
            return self._packed_elements(value)
        # One within another is made anew, the outermost is filled again.
        if kind not in _CONTAINERS and not (is_outermost and issubclass(kind, dict)):
            raise TypeError
        self._take(len(value))
        if issubclass(kind, dict):
            return {"kind": "dict", "items": [[self.packed(key), self.packed(item)] for key, item in value.items()]}
        plain = {*map(type, value)}.issubset(SCALARS)
        items = list(value) if plain else list(map(self.packed, value))
        limit = {"maxlen": value.maxlen} if kind is deque else {}
        return {"kind": kind.__name__, "items": items, **limit}

    def _packed_elements(self, value: Any) -> dict[str, Any]:
        self._take(value.numel() if isinstance(value, Tensor) else value.size)
        if (plain := as_plain(value)) is None or plain.device.type != "cpu":
            raise TypeError
        return {"kind": "array" if isinstance(value, np.ndarray) else "tensor", "items": plain.clone()}

    def _take(self, count: int) -> None:
        self._items_left -= count
        if self._items_left < 0:
            raise TypeError


def _unpacked(kept: Any) -> Any:
    if type(kept) is not dict or "kind" not in kept:
        return as_it_was(kept)
    kind, items = kept["kind"], kept["items"]
    if kind in ("tensor", "array"):
        return items.clone() if kind == "tensor" else items.numpy().copy()
    if kind == "dict":
        return {_unpacked(key): _unpacked(item) for key, item in items}
    values = [_unpacked(item) for item in items]
    if kind == "deque":
        return deque(values, kept["maxlen"])
    return {"list": list, "tuple": tuple, "set": set}[kind](values)
