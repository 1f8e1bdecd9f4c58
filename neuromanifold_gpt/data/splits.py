"""One split of a corpus: a memory map of token ids, read through once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from neuromanifold_gpt.data.errors import DatasetError

CHUNK_BYTES = 4 << 20  # read at a time: bounds the memory that a corpus of any size takes


@dataclass(frozen=True, eq=False)
class Split:
    """Token ids of a file, and what a look at all of them has told.

    Args:
        path: file that holds the tokens.
        tokens: (N,) uint8 or uint16, read-only memory map.
        digest: xxh3-128 of the bytes, 32 hexadecimal digits.
        largest: largest token id.
    """

    path: Path
    tokens: np.memmap
    digest: str
    largest: int


def open_split(path: Path, dtype: npt.DTypeLike, *, offset: int = 0, count: int) -> Split:
    """Map `count` > 0 tokens that begin `offset` bytes into a file, and read them through once.

    Raises:
        OSError: the file cannot be read.
        DatasetError: it is shorter than that.
    """
    try:
        tokens = np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(count,))
    except ValueError as error:
        raise DatasetError(
            f"{path}: expected {count} tokens from byte {offset} on, found fewer ({error}); it shrank while it was "
            "opened: start again when nothing writes to it"
        ) from error
    step = CHUNK_BYTES // tokens.itemsize
    hasher = xxhash.xxh3_128()
    largest = 0
    for start in range(0, count, step):
        chunk = tokens[start : start + step]
        hasher.update(chunk.data)
        largest = max(largest, int(chunk.max()))
    return Split(path, tokens, hasher.hexdigest(), largest)
