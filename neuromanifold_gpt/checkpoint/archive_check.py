"""Is a file a plain ``torch.save`` archive? Asked before ``torch.load`` may follow what it says about itself.

``torch.load(weights_only=True)`` runs no code of the file, but believes its sizes: a compressed record of some bytes
that unpacks to gigabytes would take the memory. ``torch.save`` writes nothing of the kind. Nor does it write archives
that two programs read in two ways, so that the pickle which is looked at here is not the one that is loaded: torch
finds the list of records by its offset, and a record whatever the case of its name; Python goes by sizes and letters.
"""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

from neuromanifold_gpt.checkpoint.errors import DamagedCheckpointError
from neuromanifold_gpt.checkpoint.pickle_check import check_pickle
from neuromanifold_gpt.checkpoint.storage import open_regular, raise_if_refused

_MAXIMUM_PICKLE_BYTES = 256 << 20  # of structure and plain values, beside the tensors; more is no checkpoint
_ENCRYPTED = 0x1
_END_SIGNATURE = b"PK\x05\x06"
_END_BYTES = 22  # of the record that ends the archive, without a comment
_IN_ZIP64 = 0xFFFFFFFF  # the number is in the longer record before it
_ZIP64_END_BYTES, _LOCATOR_BYTES = 56, 20
_LOCAL_HEADER_BYTES = 30


def check_archive(path: Path, *, trusted: bool = False) -> None:
    """Refuse an archive whose records are not stored side by side, or whose pickle asks for memory.

    Raises:
        DamagedCheckpointError: the archive is not one that ``torch.save`` writes.
        UntrustedPickleError: its pickle would take memory that the file does not fill, and is not ``trusted``.
    """
    try:
        with open_regular(path, follow_links=True) as file, zipfile.ZipFile(file) as archive:
            _check_ends(file, archive)
            pickled = _data_of(file, _checked_records(archive))
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError, struct.error) as error:
        raise_if_refused(path, error)
        raise DamagedCheckpointError(
            f"{path}: it is no archive that torch.save writes: {error}. Use another checkpoint."
        ) from error
    if not trusted:
        check_pickle(path, pickled)


def _checked_records(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    """The pickle's record.

    Raises:
        ValueError: records are compressed, encrypted, overlapping, twice there, in several folders, or none of them is
            the pickle.
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
    if end > archive.start_dir:
        raise ValueError("its records do not fit into it")
    if len({record.filename.lower() for record in records}) != len(records):
        raise ValueError("a record is there twice")
    if any(record.orig_filename != record.filename for record in records):
        raise ValueError("a record has a name that is cut off")
    if len({record.filename.split("/", 1)[0] for record in records}) != 1:
        raise ValueError("its records do not lie in one folder")
    pickles = [record for record in records if record.filename.split("/", 1)[-1] == "data.pkl"]
    if len(pickles) != 1 or pickles[0].file_size > _MAXIMUM_PICKLE_BYTES:
        raise ValueError(f"expected one record data.pkl of at most {_MAXIMUM_PICKLE_BYTES} bytes")
    return pickles[0]


def _check_ends(file: BinaryIO, archive: zipfile.ZipFile) -> None:
    """The list of records lies where the end of the file says, and nothing lies between the two or behind.

    Raises:
        ValueError: it does not.
    """
    file_bytes = os.fstat(file.fileno()).st_size
    end = file_bytes - _END_BYTES
    signature, _, size_bytes, offset, comment_bytes = struct.unpack("<4s8sIIH", _read_at(file, end, _END_BYTES))
    if signature != _END_SIGNATURE or comment_bytes:
        raise ValueError("something lies behind it")
    if offset == _IN_ZIP64 or size_bytes == _IN_ZIP64 or archive.start_dir + size_bytes != end:
        end -= _LOCATOR_BYTES + _ZIP64_END_BYTES
        _, size_bytes, offset = struct.unpack("<40sQQ", _read_at(file, end, _ZIP64_END_BYTES))
        (end_offset,) = struct.unpack("<8xQ4x", _read_at(file, end + _ZIP64_END_BYTES, _LOCATOR_BYTES))
        if end_offset != end:
            raise ValueError("its end is not where it says")
    if offset != archive.start_dir or offset + size_bytes != end:
        raise ValueError("the list of its records is not where it says")


def _read_at(file: BinaryIO, offset: int, size_bytes: int) -> bytes:
    if offset < 0:
        raise ValueError("it is cut off")
    file.seek(offset)
    return file.read(size_bytes)


def _data_of(file: BinaryIO, record: zipfile.ZipInfo) -> bytes:
    """A stored record's data, whatever its checksum: ``torch.save`` can be told to compute none."""
    file.seek(record.header_offset)
    header = file.read(_LOCAL_HEADER_BYTES)
    name_bytes, extra_bytes = struct.unpack_from("<HH", header, 26)
    file.seek(name_bytes + extra_bytes, os.SEEK_CUR)
    return file.read(record.file_size)
