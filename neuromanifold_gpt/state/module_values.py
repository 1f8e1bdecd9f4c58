"""What a module keeps beside its state dict and changes while it trains: integers, and buffers that are not persistent.

A counter in an attribute, such as the number of updates that a warm-up inside ``forward`` goes by, decides what comes
next as a buffer does. Attributes that never change are configuration, and are those of the resumed program. What else
changes is not stored, see ``unsaved_values.py``; nor is anything of a plain loop, which shows its modules when it
saves: too late to tell what has changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from neuromanifold_gpt.state.metrics import is_metric

OF_EVERY_MODULE = frozenset({*vars(nn.Module()), "_compiled_call_impl"})


class ModuleValues:
    """Follows a module from when this is made."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        parts = list(module.named_modules())
        self._parts = [(name, part) for name, part in parts if not is_kept_by_others(part)]
        self._with_buffers = [(name, part) for name, part in parts if part._non_persistent_buffers_set]
        self._changed: set[str] = set()  # for good: a counter may come back to where it began
        self._integers_before = dict(self._integers())
        self._buffers_before = {path: (buffer, buffer._version) for path, buffer in self._buffers()}

    def changed(self) -> dict[str, Any]:
        """What has been found changed once, as it is now, by path: integers, and copies of tensors."""
        integers, buffers = dict(self._integers()), dict(self._buffers())
        self._changed.update(path for path, value in integers.items() if self._integers_before.get(path) != value)
        for path, buffer in buffers.items():
            before, version = self._buffers_before.get(path, (None, 0))
            if buffer is not before or buffer._version != version:
                self._changed.add(path)
        return {
            "integers": {path: value for path, value in integers.items() if path in self._changed},
            "buffers": {path: buffer.detach().clone() for path, buffer in buffers.items() if path in self._changed},
        }

    def integers(self) -> dict[str, int]:
        """All of them, by path, as they are now."""
        return dict(self._integers())

    def restore(self, saved: dict[str, Any]) -> None:
        """Put back :meth:`changed`; what is no longer there is passed over."""
        self._changed.update(saved["integers"], saved["buffers"])
        counting = dict(self._parts)
        for path, value in saved["integers"].items():
            owner, _, name = path.rpartition(".")
            if owner in counting:
                setattr(counting[owner], name, value)
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

    def _integers(self) -> Iterator[tuple[str, int]]:
        for owner, part in self._parts:
            for name, value in vars(part).items():
                if type(value) is int and name not in OF_EVERY_MODULE:
                    yield f"{owner}.{name}", value

    def _buffers(self) -> Iterator[tuple[str, Tensor]]:
        return non_persistent_buffers(self._with_buffers)


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
