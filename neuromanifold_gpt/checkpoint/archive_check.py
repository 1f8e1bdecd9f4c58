"""Is a file a plain ``torch.save`` archive? Asked before ``torch.load`` may follow what it says about itself.

``torch.load(weights_only=True)`` runs no code of the file, but believes its sizes: a compressed record of some bytes
that unpacks to gigabytes, or a pickle that asks for ``bytearray(10**11)``, would take the memory. ``torch.save`` writes
nothing of the kind.
"""

from __future__ import annotations

import os
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

from neuromanifold_gpt.checkpoint.errors import DamagedCheckpointError, UntrustedPickleError
from neuromanifold_gpt.checkpoint.storage import open_regular

_MAXIMUM_PICKLE_BYTES = 256 << 20  # of structure and plain values, beside the tensors; more is no checkpoint
_ENCRYPTED = 0x1
_END_BYTES = 22  # of the record that ends the archive, without a comment
_LOCAL_HEADER_BYTES = 30
_BYTEARRAY = {"__builtin__ bytearray", "builtins bytearray"}
_ENCODE = "_codecs encode"


def check_archive(path: Path, *, trusted: bool = False) -> None:
    """Refuse an archive whose records are not stored side by side, or whose pickle asks for memory.

    Raises:
        DamagedCheckpointError: the archive is not one that ``torch.save`` writes.
        UntrustedPickleError: its pickle would take memory that the file does not fill, and is not ``trusted``.
    """
    try:
        with open_regular(path, follow_links=True) as file, zipfile.ZipFile(file) as archive:
            pickled = _data_of(file, _checked_records(archive, os.fstat(file.fileno()).st_size))
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError, struct.error) as error:
        raise DamagedCheckpointError(
            f"{path}: it is no archive that torch.save writes: {error}. Use another checkpoint."
        ) from error
    if not trusted:
        check_pickle(path, pickled)


def check_pickle(path: Path, pickled: bytes) -> None:
    """Refuse a pickle that makes a ``bytearray`` of anything but its own bytes.

    Raises:
        UntrustedPickleError: it does.
    """
    if b"bytearray" not in pickled:
        return
    try:
        asked = _asks_for_memory(pickled)
    except (ValueError, IndexError, struct.error):  # cut off, or no pickle: torch.load says what is wrong with it
        return
    if asked:
        raise UntrustedPickleError(
            f"{path}: reading it would need more than plain data: its pickle asks for a bytearray without content. "
            "Pass trusted=True if you trust whoever wrote the file."
        )


def _checked_records(archive: zipfile.ZipFile, file_bytes: int) -> zipfile.ZipInfo:
    """The pickle's record.

    Raises:
        ValueError: records are compressed, encrypted, overlapping, twice there, or none of them is the pickle.
    """
    records = archive.infolist()
    end = 0
    for record in sorted(records, key=lambda record: record.header_offset):
        if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
            raise ValueError(f"record {record.filename:.80} is compressed")
        if record.flag_bits & _ENCRYPTED:
            raise ValueError(f"record {record.filename:.80} is encrypted")
        if record.header_offset < end:
            raise ValueError(f"record {record.filename:.80} overlaps another one")
        end = record.header_offset + record.file_size
    if end > archive.start_dir or archive.comment or archive.start_dir + _END_BYTES > file_bytes:
        raise ValueError("its records do not fit into it")
    if len({record.filename for record in records}) != len(records):
        raise ValueError("a record is there twice")
    pickles = [record for record in records if record.filename.split("/", 1)[-1] == "data.pkl"]
    if len(pickles) != 1 or pickles[0].file_size > _MAXIMUM_PICKLE_BYTES:
        raise ValueError(f"expected one record data.pkl of at most {_MAXIMUM_PICKLE_BYTES} bytes")
    return pickles[0]


def _data_of(file: BinaryIO, record: zipfile.ZipInfo) -> bytes:
    """A stored record's data, whatever its checksum: ``torch.save`` can be told to compute none."""
    file.seek(record.header_offset)
    header = file.read(_LOCAL_HEADER_BYTES)
    name_bytes, extra_bytes = struct.unpack_from("<HH", header, 26)
    file.seek(name_bytes + extra_bytes, os.SEEK_CUR)
    return file.read(record.file_size)


def _asks_for_memory(pickled: bytes) -> bool:
    """Whether ``bytearray`` is called with anything but what ``_codecs.encode`` makes of a string, or nothing.

    As ``pickle`` writes it, the call of ``encode`` follows at once; no operation that the weights-only reader knows
    could put something else in its place.
    """
    memo: dict[int, str] = {}
    last = ""  # the global that was pushed by the operation before
    for operation, argument, _ in pickletools.genops(pickled):
        name = operation.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = last
            continue
        pushed = ""
        if name == "GLOBAL":
            pushed = str(argument)
        elif name in ("GET", "BINGET", "LONG_BINGET") and argument is not None:
            pushed = memo.get(argument, "")
        if last in _BYTEARRAY and pushed != _ENCODE and name != "EMPTY_TUPLE":
            return True
        last = pushed
    return False
