"""Sums of the bits of tensors: whether somebody has changed them since, at the cost of reading them once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, int16, int32, int64, nn, strided, uint8
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

_INTEGERS = {1: uint8, 2: int16, 4: int32, 8: int64}


def sums_of(named: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Of each tensor, also within containers, and numbers beside them; sharded tensors and other subclasses are left
    out."""
    sums = {name: [_sum(leaf) for leaf in tree_leaves(value)] for name, value in named}
    return {name: found for name, found in sums.items() if None not in found}


def others_than(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names under which the sums differ, or are on one side only."""
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


def persistent_buffers(module: LightningModule) -> Iterator[tuple[str, Tensor]]:
    """Those of the state dict, by name."""
    for owner, part in module.named_modules():
        for name, buffer in part._buffers.items():
            if buffer is not None and name not in part._non_persistent_buffers_set and not is_lazy(buffer):
                yield f"{owner}.{name}".lstrip("."), buffer


def _sum(value: Any) -> Any:
    if isinstance(value, bool | int | float):
        return value
    if type(value) not in (Tensor, nn.Parameter, nn.Buffer) or value.layout is not strided or value.is_meta:
        return None
    integer = _INTEGERS.get(value.element_size())
    if integer is None or value.is_quantized:
        return None
    bits = value.detach().reshape(-1).view(integer)
    return bits.sum(dtype=integer if value.element_size() >= 4 else int64).item()
