"""What a module keeps beside its state dict and changes while it trains: integers, and buffers that are not persistent.

A counter in an attribute, such as the number of updates that a warm-up inside ``forward`` goes by, decides what comes
next as a buffer does. Attributes that never change are configuration, and are those of the resumed program. Tensors in
plain attributes are mostly intermediate results, and numbers with a fraction mostly losses and measured times, which no
two runs share: both stay out, and numbers that change are said, once.

A plain loop shows its modules when it saves: too late to tell what has changed. There nothing is stored, and what
changes from one save to the next is said.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.state.modules import listed, unwrap

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_CALLED_AFTER_TIMES = re.compile(r"(^|_)(time|times|tic|toc|elapsed|duration|sec|secs|seconds|ms|clock)$|^t\d*$")
_OTHERS_KEEP_TRACK = ("torch.", "torchmetrics.")  # of layers whose state is in the state dict, and of metrics


class ModuleValues:
    """Follows a module from when this is made."""

    def __init__(self, module: nn.Module) -> None:
        parts = list(module.named_modules())
        self._parts = [(name, part) for name, part in parts if _may_count(part)]
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

    def numbers(self) -> dict[str, float]:
        """All numbers by path, but those that are called after times, or that a part may save itself."""
        return {
            f"{owner}.{name}": value
            for owner, part in self._parts
            if type(part).get_extra_state is nn.Module.get_extra_state
            for name, value in vars(part).items()
            if type(value) in (int, float) and name not in _OF_EVERY_MODULE and not _CALLED_AFTER_TIMES.search(name)
        }

    def versions(self) -> dict[str, Any]:
        """What shows that a number or a buffer has changed."""
        return {**self.numbers(), **{path: (id(buffer), buffer._version) for path, buffer in self._buffers()}}

    def _integers(self) -> Iterator[tuple[str, int]]:
        for owner, part in self._parts:
            for name, value in vars(part).items():
                if type(value) is int and name not in _OF_EVERY_MODULE:
                    yield f"{owner}.{name}", value

    def _buffers(self) -> Iterator[tuple[str, Tensor]]:
        for owner, part in self._with_buffers:
            for name in sorted(part._non_persistent_buffers_set):
                buffer = part._buffers.get(name)
                if buffer is not None and not buffer.is_inference():
                    yield f"{owner}.{name}", buffer


class Unsaved:
    """Values that no checkpoint has, as they were when this was made; it does not hold the module."""

    def __init__(self, before: dict[str, Any]) -> None:
        self._before = before
        self._said: set[str] = set()

    def warn_if_changed(self, now: dict[str, Any]) -> None:
        """Say which have changed.

        Warns:
            InexactResumeWarning: names those that it did not name before.
        """
        changed = {path for path, value in now.items() if repr(self._before.get(path, value)) != repr(value)}
        new = changed - self._said
        if new:
            warnings.warn(
                "modules change values while they train that no checkpoint has: "
                f"{listed(sorted(path.lstrip('.') for path in new))}. If training depends on them, register them as "
                "persistent buffers.",
                InexactResumeWarning,
                stacklevel=3,
            )
        self._said |= new


_unsaved: WeakKeyDictionary[nn.Module, Unsaved] = WeakKeyDictionary()  # of plain loops, from their first save on


def warn_of_values_left_out(module: nn.Module) -> None:
    """For plain loops, at each save.

    Warns:
        InexactResumeWarning: numbers, or buffers that are not persistent, have changed since the first call for this
            module.
    """
    module = unwrap(module)
    now = ModuleValues(module).versions()
    _unsaved.setdefault(module, Unsaved(now)).warn_if_changed(now)


def _may_count(part: nn.Module) -> bool:
    return not type(part).__module__.startswith(_OTHERS_KEEP_TRACK)
