"""What modules change while they train and no checkpoint has: it is not stored, so it is said.

Flags, numbers, tensors, lists and dicts in plain attributes may decide what comes next: a codebook that is initialized
by the first batch, a temperature that anneals, the hidden state that a recurrent model carries from batch to batch.
Most of them are results that nobody reads again, and times, which no two runs share: both are a reason not to store
them.
"""

from __future__ import annotations

import re
import warnings
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.state.module_values import OF_EVERY_MODULE, is_kept_by_others, non_persistent_buffers
from neuromanifold_gpt.state.modules import listed, unwrap

DETAILS_KEY = "module_values"
_CALLED_AFTER_TIMES = re.compile(r"(^|_)(time|times|tic|toc|elapsed|duration|sec|secs|seconds|ms|clock)$|^t\d*$")
_LOOKED_AT_ITEMS = 100  # of a list or dict
_LOOKED_AT_ITEMS_WITHIN = 10  # of one in another
_LOOKED_AT_ELEMENTS = 1 << 16  # of a tensor, evenly spaced
_MAXIMUM_DEPTH = 3


def values_beside_state(
    module: nn.Module, *, with_followed: bool = True, ignored: Collection[str] = ()
) -> dict[str, str]:
    """What shows whether a value has changed, by path: numbers as they are, of all else a digest.

    Args:
        module: it and its parts are searched.
        with_followed: also what :class:`ModuleValues` stores.
        ignored: names of attributes.
    """
    in_state = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    found = {}
    for path, value in _values(module, ignored):
        shown = shown_value(value, in_state) if with_followed or type(value) is not int else None
        if shown is not None:
            found[path] = shown
    if with_followed:
        found.update((path, _digest(buffer)) for path, buffer in non_persistent_buffers(module.named_modules()))
    return found


def warn_of_values_left_out(module: nn.Module) -> dict[str, str]:
    """For plain loops, at each save; gives what :func:`warn_of_other_values` takes.

    Warns:
        InexactResumeWarning: values have changed since the first call for this module, or since it was restored.
    """
    module = unwrap(module)
    now = values_beside_state(module)
    _followed.setdefault(module, UnsavedValues(now)).warn_if_changed(now)
    return now


def warn_of_other_values(module: nn.Module, saved: Mapping[str, Any]) -> None:
    """For plain loops, at the restore.

    Warns:
        InexactResumeWarning: the module has other values than at the save.
    """
    module = unwrap(module)
    now = values_beside_state(module)
    _followed[module] = UnsavedValues(now)
    others = sorted(path for path in now.keys() & saved.keys() if now[path] != saved[path])
    if others:
        warnings.warn(
            "modules had other values at the save, which no checkpoint has and which stay as they are now: "
            f"{listed([_name(path) for path in others])}. {_REMEDY}",
            InexactResumeWarning,
            stacklevel=3,
        )


class UnsavedValues:
    """Follows the values of a module, which it does not hold."""

    def __init__(self, before: dict[str, str]) -> None:
        self._before = dict(before)
        self._said: set[str] = set()

    def note_new(self, now: dict[str, str]) -> None:
        """What was not there before, such as a table that is built when it is first needed, begins as it is now."""
        self._before = {**now, **self._before}

    def warn_if_changed(self, now: dict[str, str]) -> None:
        """Say which have changed.

        Warns:
            InexactResumeWarning: names those that it did not name before.
        """
        changed = {path for path, value in now.items() if self._before.get(path, value) != value}
        new = sorted(changed - self._said)
        if new:
            warnings.warn(
                "modules change values while they train that no checkpoint has: "
                f"{listed([_name(path) for path in new])}. {_REMEDY}",
                InexactResumeWarning,
                stacklevel=4,
            )
        self._said |= changed
        self.note_new(now)


_REMEDY = "If training depends on them, register them as persistent buffers, or save them in a get_extra_state."
_followed: WeakKeyDictionary[nn.Module, UnsavedValues] = WeakKeyDictionary()  # of plain loops


def _values(module: nn.Module, ignored: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Attributes of users' modules, but those called after times, or of a part that saves state itself."""
    for owner, part in module.named_modules():
        if is_kept_by_others(part) or type(part).get_extra_state is not nn.Module.get_extra_state:
            continue
        for name, value in vars(part).items():
            if name not in OF_EVERY_MODULE and name not in ignored and not _CALLED_AFTER_TIMES.search(name):
                yield f"{owner}.{name}", value


def shown_value(value: Any, in_state: Collection[int] = (), depth: int = 0) -> str | None:
    """What shows whether a value has changed: a number itself, of tensors, arrays, lists and dicts a digest.

    Args:
        value: whatever an attribute holds.
        in_state: ids of tensors that a checkpoint has.
        depth: of the list or dict that it is in.

    Returns:
        ``None`` of what is no such value, or belongs to a graph, as intermediate results do.
    """
    if type(value) in (bool, int, float):
        return repr(value)
    if isinstance(value, Tensor):
        is_result = value.requires_grad or isinstance(value, nn.Parameter) or id(value) in in_state
        return None if is_result else _digest(value)
    if type(value) is np.ndarray and value.dtype.kind in "biufc":
        return _digest(torch.from_numpy(value.reshape(-1)[:: _spacing(value.size)].copy()))
    if isinstance(value, list | tuple | deque | dict) and depth < _MAXIMUM_DEPTH:
        count = _LOOKED_AT_ITEMS_WITHIN if depth else _LOOKED_AT_ITEMS
        shown = [shown_value(item, in_state, depth + 1) for item in islice(items_looked_at(value), count)]
        return f"{len(value)} items {xxhash.xxh3_64_hexdigest(repr(shown).encode())}"
    return None


def items_looked_at(container: Collection[Any]) -> Iterator[Any]:
    """Of a dict, values."""
    return islice(container.values() if isinstance(container, dict) else container, _LOOKED_AT_ITEMS)


def _digest(tensor: Tensor) -> str:
    kind = f"{tensor.dtype} {tuple(tensor.shape)}"
    plain = type(tensor) is Tensor and tensor.layout is torch.strided and not tensor.is_quantized
    if not plain or tensor.device.type == "meta" or tensor.numel() == 0:
        return kind
    flat = tensor.detach().reshape(-1)
    some = flat[:: _spacing(flat.numel())].cpu().contiguous()
    return f"{kind} {xxhash.xxh3_64_hexdigest(some.view(torch.uint8).numpy().tobytes())}"


def _spacing(elements: int) -> int:
    return max(1, -(-elements // _LOOKED_AT_ELEMENTS))


def _name(path: str) -> str:
    return path.lstrip(".")
