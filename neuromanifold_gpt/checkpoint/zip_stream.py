"""A ZIP archive written front to back, as ``torch.load`` reads it: stored records, data aligned for mmap.

Why not :mod:`zipfile`: the bytes it writes vary with Python's version and platform, and ours are part of the format.
Record order, fields and padding follow from the names and sizes alone. The checksum of a record stands behind its data
(general purpose bit 3, as in torch's own archives), so that a record is read once while it is written.

Reference: PKWARE APPNOTE 6.3.10, sections 4.3 and 4.5.3.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

ALIGNMENT_BYTES = 64  # of record data; what torch uses, enough for every dtype and vector load

_FLAGS = 0x0808  # sizes and CRC follow the data; names are UTF-8
_LIMIT_32 = 0xFFFFFFFF
_LIMIT_16 = 0xFFFF
_PADDING_ID = 0x4246  # "FB", the header id that torch gives to its own padding
_ZIP64_ID = 0x0001
_VERSION_STORED = 20
_VERSION_ZIP64 = 45
_DATE_1980_01_01 = 0x0021


class Sink(Protocol):
    """Where the archive goes."""

    def write(self, data: bytes | memoryview) -> None:
        """Append all of ``data``."""
        ...


@dataclass(frozen=True)
class _Entry:
    name: bytes
    size_bytes: int
    crc32: int
    offset: int


class ZipStream:
    """Writes records one after the other; :meth:`close` adds the directory."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._offset = 0
        self._entries: list[_Entry] = []

    def add(self, name: str, size_bytes: int, chunks: Iterable[bytes | memoryview]) -> int:
        """Append a record and return the offset of its data in the file.

        Raises:
            ValueError: the chunks have not ``size_bytes`` in total.
        """
        start, zip64, encoded = self._offset, size_bytes >= _LIMIT_32, name.encode()
        self._write(_local_header(encoded, zip64, start))
        data_offset, crc32 = self._offset, 0
        for chunk in chunks:
            crc32 = zlib.crc32(chunk, crc32)
            self._write(chunk)
        if self._offset - data_offset != size_bytes:
            raise ValueError(f"record {name}: expected {size_bytes} bytes, got {self._offset - data_offset}")
        sizes = struct.pack("<QQ" if zip64 else "<II", size_bytes, size_bytes)
        self._write(struct.pack("<II", 0x08074B50, crc32) + sizes)
        self._entries.append(_Entry(encoded, size_bytes, crc32, start))
        return data_offset

    def close(self) -> None:
        """Append the central directory. The sink stays open."""
        start = self._offset
        self._write(b"".join(_central_header(entry) for entry in self._entries))
        self._write(_end_of_directory(len(self._entries), self._offset - start, start))

    def _write(self, data: bytes | memoryview) -> None:
        self._sink.write(data)
        self._offset += len(data)


def _local_header(name: bytes, zip64: bool, start: int) -> bytes:
    version = _VERSION_ZIP64 if zip64 else _VERSION_STORED
    # With bit 3 set the sizes here are zero; an (empty) zip64 field tells that those behind the data have 8 bytes.
    extra = struct.pack("<HHQQ", _ZIP64_ID, 16, 0, 0) if zip64 else b""
    unpadded = start + 30 + len(name) + len(extra) + 4
    padding = -unpadded % ALIGNMENT_BYTES
    extra += struct.pack("<HH", _PADDING_ID, padding) + bytes(padding)
    sizes = (_LIMIT_32, _LIMIT_32) if zip64 else (0, 0)
    fields = (0x04034B50, version, _FLAGS, 0, 0, _DATE_1980_01_01, 0, *sizes, len(name), len(extra))
    return struct.pack("<IHHHHHIIIHH", *fields) + name + extra


def _central_header(entry: _Entry) -> bytes:
    large_size, large_offset = entry.size_bytes >= _LIMIT_32, entry.offset >= _LIMIT_32
    wide = ([entry.size_bytes] * 2 if large_size else []) + ([entry.offset] if large_offset else [])
    extra = struct.pack(f"<HH{len(wide)}Q", _ZIP64_ID, 8 * len(wide), *wide) if wide else b""
    version = _VERSION_ZIP64 if wide else _VERSION_STORED
    size = _LIMIT_32 if large_size else entry.size_bytes
    offset = _LIMIT_32 if large_offset else entry.offset
    fields = (0x02014B50, version, version, _FLAGS, 0, 0, _DATE_1980_01_01, entry.crc32, size, size)
    tail = (len(entry.name), len(extra), 0, 0, 0, 0, offset)
    return struct.pack("<IHHHHHHIII", *fields) + struct.pack("<HHHHHII", *tail) + entry.name + extra


def _end_of_directory(count: int, size_bytes: int, start: int) -> bytes:
    end = b""
    if count >= _LIMIT_16 or size_bytes >= _LIMIT_32 or start >= _LIMIT_32:
        version = _VERSION_ZIP64
        end += struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, version, version, 0, 0, count, count, size_bytes, start)
        end += struct.pack("<IIQI", 0x07064B50, 0, start + size_bytes, 1)
    count16, size32, start32 = min(count, _LIMIT_16), min(size_bytes, _LIMIT_32), min(start, _LIMIT_32)
    return end + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, count16, count16, size32, start32, 0)
