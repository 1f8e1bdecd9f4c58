"""What a module keeps beside its state dict and changes while it trains: numbers, and buffers that are not persistent.

A counter in an attribute, such as the number of updates that a warm-up inside ``forward`` goes by, or a temperature
that anneals, decides what comes next as a buffer does. Attributes that never change are configuration, and are those of
the resumed program. What else changes is not stored, see ``unsaved_values.py``: flags, since what one says may hold of
a process only (that a table was built), and numbers of which a clock may have a part; nor is anything of a plain loop,
which shows its modules when it saves: too late to tell what has changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from neuromanifold_gpt.state.inspection.clocks import is_of_a_clock, names_set_beside_clocks
from neuromanifold_gpt.state.inspection.stored_values import as_it_was, stored
from neuromanifold_gpt.state.inspection.users_objects import is_a_time
from neuromanifold_gpt.state.metrics import is_metric

OF_EVERY_MODULE = frozenset({*vars(nn.Module()), "_compiled_call_impl"})
_NUMBERS = frozenset({int, float, np.float64, np.float32, np.float16, np.int64, np.int32})


class ModuleValues:
    """Follows a module from when this is made."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        parts = list(module.named_modules())
        self._parts = {name: part for name, part in parts if not is_kept_by_others(part)}
        self._with_buffers = [(name, part) for name, part in parts if part._non_persistent_buffers_set]
        self._changed: set[str] = set()  # for good: a counter may come back to where it began
        self._numbers_before = self.numbers()
        self._buffers_before = {path: (buffer, buffer._version) for path, buffer in self._buffers()}

    def changed(self) -> dict[str, Any]:
        """What has been found changed once, as it is now, by path: numbers as they are stored, copies of tensors."""
        numbers, buffers = self.numbers(), dict(self._buffers())
        for path, value in numbers.items():
            if path not in self._changed and not _is_same(self._numbers_before.get(path), value):
                owner, _, name = path.rpartition(".")
                if is_stored(self._parts[owner], name, value):
                    self._changed.add(path)
        for path, buffer in buffers.items():
            before, version = self._buffers_before.get(path, (None, 0))
            if buffer is not before or buffer._version != version:
                self._changed.add(path)
        return {
            "numbers": {path: stored(value) for path, value in numbers.items() if path in self._changed},
            "buffers": {path: buffer.detach().clone() for path, buffer in buffers.items() if path in self._changed},
        }

    def numbers(self) -> dict[str, Any]:
        """All of them, by path, as they are now."""
        return {
            f"{owner}.{name}": value
            for owner, part in self._parts.items()
            for name, value in vars(part).items()
            if type(value) in _NUMBERS and name not in OF_EVERY_MODULE
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Put back :meth:`changed`; what is no longer there is passed over."""
        self._changed.update(saved["numbers"], saved["buffers"])
        for path, value in saved["numbers"].items():
            owner, _, name = path.rpartition(".")
            if owner in self._parts:
                setattr(self._parts[owner], name, as_it_was(value))
        owners, live = dict(self._with_buffers), dict(self._buffers())
        for path, value in saved["buffers"].items():
            owner, _, name = path.rpartition(".")
            if path in live and live[path].shape == value.shape and live[path].dtype == value.dtype:
                live[path].copy_(value)
            elif path in live:
                owners[owner]._buffers[name] = value.to(live[path].device, copy=True)
            elif owner in owners and name in owners[owner]._non_persistent_buffers_set:
                # It is None until a first batch sets it.
                devices = (parameter.device for parameter in self._module.parameters())
                owners[owner]._buffers[name] = value.to(next(devices, "cpu"), copy=True)

    def _buffers(self) -> Iterator[tuple[str, Tensor]]:
        return non_persistent_buffers(self._with_buffers)


def is_stored(part: nn.Module, name: str, value: Any) -> bool:
    """Whether an attribute of a part that is not :func:`is_kept_by_others` is a number, and no clock has made it, as
    far as this can be seen.
    """
    if type(value) not in _NUMBERS:
        return False
    if type(value) is int:  # of a time, even whole seconds would be a strange kind
        return True
    return not (is_a_time(name, value) or name in names_set_beside_clocks(type(part)) or is_of_a_clock(value))


def _is_same(before: Any, now: Any) -> bool:
    return bool(before == now or (before != before and now != now))


def non_persistent_buffers(parts: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, Tensor]]:
    """Those of parts by name, by path."""
    for owner, part in parts:
        for name in sorted(part._non_persistent_buffers_set):
            buffer = part._buffers.get(name)
            if buffer is not None and not buffer.is_inference():
                yield f"{owner}.{name}", buffer


def is_kept_by_others(part: nn.Module) -> bool:
    """Whether it is a layer of torch, whose state is in the state dict, or a metric."""
    return is_metric(part) or type_before_parametrizations(part).__module__.startswith("torch.")
