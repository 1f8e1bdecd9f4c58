"""A digest of the ids, labels and texts of samples: what augmentation leaves alone."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import xxhash
from torch import Tensor
from torch.utils._pytree import tree_leaves

from neuromanifold_gpt.state.inspection.flat_values import as_plain
from neuromanifold_gpt.state.unsaved.shown_values import shown_value

_MOST_LEAVES = 100  # of a sample, that are looked at
_WHOLE_ELEMENTS = 1 << 12  # of larger tensors, some are
_NUMBERS = (bool, int, np.integer, np.bool_)
_WHOLE_CHARACTERS = 1 << 16


class IdsDigest:
    """Of the samples of a stream, in order."""

    def __init__(self) -> None:
        self._hash = xxhash.xxh3_64()

    def add(self, sample: Any) -> None:
        """Add what is no fraction; other objects are passed over."""
        leaves = (sample,) if type(sample) in (int, str, Tensor) else tree_leaves(sample)
        for leaf in islice(leaves, _MOST_LEAVES):
            kind = type(leaf)  # isinstance() would ask proxies
            if issubclass(kind, _NUMBERS):
                self._hash.update(b"%d;" % leaf)
            elif issubclass(kind, str):
                self._hash.update(leaf[:_WHOLE_CHARACTERS].encode(errors="replace") + b";")
            elif issubclass(kind, bytes):
                self._hash.update(leaf[:_WHOLE_CHARACTERS] + b";")
            elif _has_no_fractions(leaf, kind):
                self._hash.update(_bytes_of(leaf))

    def digest(self) -> str:
        """Of what was added up to now."""
        return self._hash.hexdigest()


def _has_no_fractions(leaf: Any, kind: type) -> bool:
    if issubclass(kind, Tensor):
        return not (leaf.is_floating_point() or leaf.is_complex())
    return issubclass(kind, np.ndarray) and leaf.dtype.kind in "biu"


def _bytes_of(leaf: Any) -> bytes:
    plain = as_plain(leaf)
    if isinstance(plain, Tensor) and plain.device.type == "cpu" and plain.numel() <= _WHOLE_ELEMENTS:
        return plain.numpy().tobytes()
    return f"{shown_value(leaf, is_data=True)};".encode()
