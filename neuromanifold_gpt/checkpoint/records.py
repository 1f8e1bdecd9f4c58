"""Read the tensor data of an archive, each byte of the file once: into the tensors' own memory, digesting as it comes.

Most of the time of a load goes into the kernel, which copies from the page cache and zeroes fresh memory. So some
threads read ahead while the digest, which has to be taken in the file's order, follows behind them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, cast

import torch
import xxhash
from typing_extensions import Buffer

from neuromanifold_gpt.checkpoint.archive import TensorRecord

_CHUNK_BYTES = 8 << 20
_READING_THREADS = 2


def read_records(
    file: BinaryIO, records: Sequence[TensorRecord], *, digest_all: bool
) -> tuple[list[torch.UntypedStorage], str]:
    """Read the storages of an archive, in file order; tensors of one storage (tied weights) have one entry.

    With ``digest_all``, what lies between them is read as well and the xxh3-128 of the whole file is returned; without,
    an empty string.

    Raises:
        OSError: the file cannot be read, or ends before a record does.
    """
    places = sorted({record.offset: record.size_bytes for record in records}.items())
    memory = [torch.empty(size_bytes, dtype=torch.uint8) for _, size_bytes in places]
    file_bytes = os.fstat(file.fileno()).st_size
    pieces = [
        (offset, memoryview(cast(Buffer, data.numpy()))) for (offset, _), data in zip(places, memory, strict=True)
    ]
    if digest_all:
        pieces = list(_with_gaps(pieces, file_bytes))
    chunks = [
        (offset + start, piece[start : start + _CHUNK_BYTES])
        for offset, piece in pieces
        for start in range(0, len(piece), _CHUNK_BYTES)
    ]
    digest = xxhash.xxh3_128()
    with ThreadPoolExecutor(_READING_THREADS) as threads:
        for _, chunk in threads.map(lambda chunk: _read_completely(file.fileno(), *chunk), chunks):
            if digest_all:
                digest.update(chunk)
    return [data.untyped_storage() for data in memory], digest.hexdigest() if digest_all else ""


def _with_gaps(pieces: list[tuple[int, memoryview]], file_bytes: int) -> Iterator[tuple[int, memoryview]]:
    """The pieces, and scratch memory for everything between and around them: the whole file in order."""
    end = 0
    for offset, piece in [*pieces, (file_bytes, memoryview(b""))]:
        if offset > end:
            yield end, memoryview(bytearray(offset - end))
        yield offset, piece
        end = offset + len(piece)


def _read_completely(descriptor: int, offset: int, chunk: memoryview) -> tuple[int, memoryview]:
    rest = chunk
    while rest:
        count = os.preadv(descriptor, [rest], offset + len(chunk) - len(rest))
        if not count:
            raise EOFError(f"the file ends at byte {offset + len(chunk) - len(rest)}")
        rest = rest[count:]
    return offset, chunk
