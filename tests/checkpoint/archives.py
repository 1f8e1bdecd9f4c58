"""Write a payload as an archive, and compare what comes back: to the bit, to the type, to the stride."""

from __future__ import annotations

import struct
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuromanifold_gpt.checkpoint.archive import ArchiveWriter, DigestingSink, WrittenArchive
from neuromanifold_gpt.checkpoint.staging import stage


def write(payload: dict[str, Any], path: Path) -> WrittenArchive:
    """What the writer of a checkpoint does for one file, without its stamp."""
    with path.open("wb", buffering=0) as file, DigestingSink(file) as sink:
        archive = ArchiveWriter(sink, stage(payload))
        archive.write_tensors()
        return archive.finish({})


def written_bytes(payload: dict[str, Any], path: Path) -> bytes:
    """The file that a payload becomes."""
    write(payload, path)
    return path.read_bytes()


def memory(tensor: Tensor) -> bytes:
    """The elements of a tensor in row-major order, bit for bit, whatever its dtype."""
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return bytes(tensor.flatten().view(torch.uint8).tolist()) if tensor.numel() else b""


def same(one: Any, other: Any) -> bool:
    """Equality that no rounding, no conversion and no reordering can pass."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        layouts = [(t.dtype, t.shape, t.stride(), t.requires_grad, t.device, memory(t)) for t in (one, other)]
        return layouts[0] == layouts[1]
    if isinstance(one, float):
        return struct.pack("<d", one) == struct.pack("<d", other)
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if type(one) in (dict, OrderedDict, Counter):
        return (
            same(list(one), list(other))
            and all(same(one[key], other[key]) for key in one)
            and same(getattr(one, "__dict__", None), getattr(other, "__dict__", None))
        )
    if type(one) in (list, tuple, torch.Size):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other
