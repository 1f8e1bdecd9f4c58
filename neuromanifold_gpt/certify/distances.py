"""How far two tensors of one shape and type are apart, in pieces: checkpoints can be larger than the memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_PIECE_ELEMENTS = 1 << 18  # with everything that is computed from them: some tens of megabytes
_INTEGERS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


@dataclass
class Distance:
    """How far apart.

    Attributes:
        absolute, relative: largest of all elements; infinite where one of two is no number.
        ulps: largest distance in units of the last place; ``None`` if that means nothing for their type or values.
        differing: how many elements differ by their bits.
        scale: largest finite magnitude in the first tensor.
    """

    absolute: float = 0.0
    relative: float = 0.0
    ulps: float | None = 0.0
    differing: int = 0
    scale: float = 0.0


def distance(a: Tensor, b: Tensor) -> Distance:
    """Compare two tensors of real numbers. By bits: a NaN is equal to itself, and 0.0 is not equal to -0.0."""
    found = Distance()
    for left, right in _pieces(a, b):
        _add(found, left, right)
    return found


def as_bytes(tensor: Tensor) -> Tensor:
    """Its bytes in a row; no copy of a tensor that lies in one piece."""
    return _flat(tensor).view(torch.uint8)


def _flat(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    # resolved, since a view of a conjugate has the bits of the original
    return tensor.resolve_conj().resolve_neg().contiguous().reshape(-1)


def _pieces(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(_flat(a).split(_PIECE_ELEMENTS), _flat(b).split(_PIECE_ELEMENTS), strict=True)


def _add(found: Distance, a: Tensor, b: Tensor) -> None:
    if torch.equal(as_bytes(a), as_bytes(b)):
        found.scale = max(found.scale, _largest_finite(a.double()))
        found.ulps = found.ulps if a.dtype in _INTEGERS and bool(a.isfinite().all()) else None
        return
    unequal = _unequal(a, b)
    x, y = a.double(), b.double()
    apart = torch.where(unequal, (x - y).abs(), torch.zeros_like(x)).nan_to_num(nan=math.inf)
    magnitude = torch.maximum(x.abs(), y.abs())
    relative = torch.where(unequal & (magnitude > 0), apart / magnitude, torch.zeros_like(x)).nan_to_num(nan=math.inf)
    ulps = _ulps(a, b)
    found.absolute = max(found.absolute, apart.max().item())
    found.relative = max(found.relative, relative.max().item())
    found.ulps = None if ulps is None or found.ulps is None else max(found.ulps, ulps)
    found.differing += int(unequal.sum())
    found.scale = max(found.scale, _largest_finite(x))


def _unequal(a: Tensor, b: Tensor) -> Tensor:
    integer = _INTEGERS.get(a.dtype)
    if integer is not None:
        return a.view(integer) != b.view(integer)
    return (as_bytes(a) != as_bytes(b)).reshape(a.numel(), -1).any(1)


def _largest_finite(x: Tensor) -> float:
    return float(x.abs().nan_to_num(nan=0.0, posinf=0.0).max())


def _ulps(a: Tensor, b: Tensor) -> float | None:
    """How many numbers of the type lie between two."""
    integer = _INTEGERS.get(a.dtype)
    if integer is None or not bool(a.isfinite().all() and b.isfinite().all()):
        return None
    ordered = []
    lowest = torch.iinfo(integer).min
    for tensor in (a, b):
        bits = tensor.view(integer).to(torch.int64)
        ordered.append(torch.where(bits < 0, lowest - bits, bits))
    if integer is not torch.int64:
        return float((ordered[0] - ordered[1]).abs().max())
    one_sign = (ordered[0] < 0) == (ordered[1] < 0)  # the difference of two signs can overflow 64 bits
    apart = torch.where(one_sign, (ordered[0] - ordered[1]).double(), ordered[0].double() - ordered[1].double())
    return float(apart.abs().max())
