"""xxh3-128 digests of files and parts of files.

xxh3 is not a cryptographic hash: it finds damage, not forgery. It costs a small part of what reading the file costs.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import xxhash

from neuromanifold_gpt.checkpoint.storage import open_regular

_CHUNK_BYTES = 1 << 20  # stays in the core's cache between read and digest


def file_digest(path: Path) -> str:
    """Digest of a whole file."""
    with open_regular(path) as file:
        return open_file_digest(file)


def open_file_digest(file: BinaryIO, offset: int = 0, size_bytes: int | None = None) -> str:
    """Digest of ``size_bytes`` from ``offset`` of an open file, or of all that follows."""
    digest = xxhash.xxh3_128()
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    file.seek(offset)
    left = size_bytes
    while left is None or left > 0:
        wanted = _CHUNK_BYTES if left is None else min(left, _CHUNK_BYTES)
        count = file.readinto(buffer[:wanted])  # type: ignore[attr-defined]
        if not count:
            break
        digest.update(buffer[:count])
        left = None if left is None else left - count
    return digest.hexdigest()
