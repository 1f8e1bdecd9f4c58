"""A row of token ids as the training samples of a language model."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from neuromanifold_gpt.data.errors import DatasetError


class TokenBlocks(Dataset[tuple[Tensor, Tensor]]):
    """Blocks of consecutive tokens, each with the tokens that follow its own by one.

    Item i is ``(x, y)``, both (block_size,) int64: ``x = tokens[i * block_size : (i + 1) * block_size]``, and
    y is the same one token later. The blocks meet without gap or overlap; a last piece too short for a block
    is left out.

    A memory map is pickled as the place of its file, not as its content, so that data workers share it. The
    file must stay as it is while the data set is used.

    Args:
        tokens: (N,) integers, contiguous; N > block_size. It is kept, not copied.
        block_size: tokens of a block.

    Raises:
        DatasetError: the tokens are not of that kind, or too few.
    """

    def __init__(self, tokens: np.ndarray, block_size: int) -> None:
        if not isinstance(block_size, int) or isinstance(block_size, bool) or block_size < 1:
            raise DatasetError(f"block_size: expected an integer of at least 1, found {block_size!r}; correct it")
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu" or not tokens.flags.c_contiguous:
            raise DatasetError(
                f"tokens: expected a contiguous row of integers, found {tokens.dtype} of shape {tokens.shape} and "
                f"strides {tokens.strides}; make it one with numpy.ascontiguousarray(tokens.ravel())"
            )
        if len(tokens) <= block_size:
            raise DatasetError(
                f"tokens: expected at least block_size + 1 = {block_size + 1}, found {len(tokens)}; choose a "
                f"block_size below {len(tokens)}, or a data set with more text"
            )
        self.tokens = tokens
        self.block_size = block_size

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.block_size

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([i])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Fetch several blocks at once, as `torch.utils.data.DataLoader` does.

        Raises:
            IndexError: an index is not in 0 .. len - 1; a negative one can only come from a mistake.
        """
        windows = [self._window(index(i)) for i in indices]
        # Two copies: if they shared memory, masking x in place would change y.
        return [(torch.from_numpy(w[:-1].astype(np.int64)), torch.from_numpy(w[1:].astype(np.int64))) for w in windows]

    def _window(self, i: int) -> np.ndarray:
        if not 0 <= i < len(self):
            raise IndexError(f"block index: expected 0 .. {len(self) - 1}, found {i}")
        start = i * self.block_size
        return self.tokens[start : start + self.block_size + 1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "tokens": _place_in_file(self.tokens) or self.tokens}

    def __setstate__(self, state: dict[str, Any]) -> None:
        tokens = state["tokens"]
        self.__dict__.update({**state, "tokens": _map_again(**tokens) if isinstance(tokens, dict) else tokens})


def _place_in_file(tokens: np.ndarray) -> dict[str, Any] | None:
    """Say where a file holds the tokens; None if no file does."""
    root = tokens
    while isinstance(root.base, np.ndarray):
        root = root.base
    # A copy-on-write map may hold changes that are not in its file.
    if not isinstance(root, np.memmap) or root.filename is None or root.mode == "c":
        return None
    # The offset attribute of a slice is that of the whole map: only addresses tell where the slice begins.
    shift = tokens.__array_interface__["data"][0] - root.__array_interface__["data"][0]
    return {
        "path": str(root.filename),
        "offset": root.offset + shift,
        "dtype": tokens.dtype.str,
        "count": len(tokens),
    }


def _map_again(path: str, offset: int, dtype: str, count: int) -> np.memmap:
    try:
        return np.memmap(Path(path), dtype=dtype, mode="r", offset=offset, shape=(count,))
    except (OSError, ValueError) as error:  # ValueError: the file is shorter
        raise DatasetError(
            f"{path}: expected {count} tokens from byte {offset} on, as when the data set was made, found none "
            f"({error}); start again, and leave the file as it is meanwhile"
        ) from error
