"""What a module keeps beside its state dict and changes while it trains: integers, and buffers that are not persistent.

A counter in an attribute, such as the number of updates that a warm-up inside ``forward`` goes by, decides what comes
next as a buffer does. Attributes that never change are configuration, and are those of the resumed program. Tensors in
plain attributes are mostly intermediate results, and numbers with a fraction mostly losses and measured times, which no
two runs share: both stay out, and numbers that change are said, once.

A plain loop shows its modules when it saves and when it restores, too late to see what changes: there, all are stored,
and a restore says which of them were built as something else.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.state.modules import listed, unwrap

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_LARGE_BYTES = 64 << 10  # a buffer that is not persistent and larger is taken for a table, of positions say
_CALLED_AFTER_TIMES = re.compile(
    r"(^|_)(t\d*|time|times|tic|toc|start|started|begin|began|end|ended|elapsed|duration|sec|secs|seconds|ms|clock)(_|$)"
)
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

    def current(self) -> dict[str, Any]:
        """All but large buffers, changed or not, in the form of :meth:`changed`. The tensors are the live ones."""
        small = [(path, buffer) for path, buffer in self._buffers() if buffer.nbytes <= _LARGE_BYTES]
        return {"integers": dict(sorted(self._integers())), "buffers": dict(sorted(small, key=lambda item: item[0]))}

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

    def fractions(self) -> dict[str, float]:
        """Numbers with a fraction, by path, but those that are called after times or that a part may save itself."""
        return {
            f"{owner}.{name}": value
            for owner, part in self._parts
            if type(part).get_extra_state is nn.Module.get_extra_state
            for name, value in vars(part).items()
            if type(value) is float and not _CALLED_AFTER_TIMES.search(name)
        }

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


class Fractions:
    """Numbers that no checkpoint has, as they were when this was made; it does not hold the module."""

    def __init__(self, before: dict[str, float]) -> None:
        self._before = before
        self._said: set[str] = set()

    def warn_if_changed(self, now: dict[str, float]) -> None:
        """Say which have changed.

        Warns:
            InexactResumeWarning: names those that it did not name before.
        """
        new = {path for path, value in now.items() if self._before.get(path, value) != value} - self._said
        if new:
            warnings.warn(
                "numbers in plain attributes of modules change while they train, and no checkpoint has them: "
                f"{listed(sorted(path.lstrip('.') for path in new))}. If training depends on them, register them as "
                "buffers.",
                InexactResumeWarning,
                stacklevel=3,
            )
        self._said |= new


_fractions: WeakKeyDictionary[nn.Module, Fractions] = WeakKeyDictionary()  # of plain loops, from their first save on


def module_values(module: nn.Module) -> dict[str, Any]:
    """What a restore may have to put back, see :meth:`ModuleValues.current`.

    Warns:
        InexactResumeWarning: numbers with a fraction have changed since the first call for this module.
    """
    module = unwrap(module)
    values = ModuleValues(module)
    now = values.fractions()
    _fractions.setdefault(module, Fractions(now)).warn_if_changed(now)
    return values.current()


def restore_module_values(module: nn.Module, saved: dict[str, Any]) -> None:
    """Put back :func:`module_values`; what is no longer there is passed over.

    Warns:
        InexactResumeWarning: lists those that the module was built with otherwise, since a setting may be among them.
    """
    values = ModuleValues(unwrap(module))
    live = values.current()
    integers = {path: value for path, value in saved["integers"].items() if live["integers"].get(path) != value}
    buffers = {
        path: value
        for path, value in saved["buffers"].items()
        if path in live["buffers"] and not _same(live["buffers"][path], value)
    }
    values.restore({"integers": integers, "buffers": buffers})
    now = {path: value for path, value in values.current()["integers"].items() if path in integers}
    said = [f"{path.lstrip('.')} is {now[path]}, was {live['integers'].get(path)}" for path in now]
    said += [path.lstrip(".") for path in buffers]
    if said:
        warnings.warn(
            f"what modules keep in plain integers and in buffers that are not persistent is that of the checkpoint: "
            f"{listed(said)}. So counters go on; in persistent buffers they do without this word. If a setting that "
            "you have changed is among them, set it again after restoring.",
            InexactResumeWarning,
            stacklevel=3,
        )


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.cpu(), other.cpu())


def _may_count(part: nn.Module) -> bool:
    return not type(part).__module__.startswith(_OTHERS_KEEP_TRACK)
