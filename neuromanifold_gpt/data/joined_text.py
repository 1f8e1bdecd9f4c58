"""Many text files as one memory-mapped corpus, through a cache file that holds them joined.

The sources are read through on every opening: their digests name the cache file and say what must be in it.
So a changed source is noticed however it was changed, a cache file that was cut short or damaged is never
used, and there is nothing beside the cache file that could disagree with it. Cache files may be deleted
at any time.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash

from neuromanifold_gpt.data.errors import DatasetError
from neuromanifold_gpt.data.splits import CHUNK_BYTES, Split, open_split
from neuromanifold_gpt.data.text_files import TextFile, is_validation

TEMPORARY_NAME = re.compile(r"\.[a-z]+-[0-9a-f]{32}\.bin\.[0-9]+-[0-9a-f]{8}\.tmp")
ABANDONED_AFTER_S = 3600  # a writer touches its temporary file with every chunk

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Content:
    """What the joined bytes are: those of train, directly followed by those of validation."""

    train_size: int
    train_digest: str
    validation_size: int
    validation_digest: str

    @property
    def key(self) -> str:
        return xxhash.xxh3_128_hexdigest(
            f"{self.train_size} {self.train_digest} {self.validation_size} {self.validation_digest}".encode()
        )


def validation_size(size: int) -> int:
    """Say how many of `size` bytes, the last ones, are for validation where no files can be told apart."""
    return max(1, size // 10)


def default_cache_dir() -> Path:
    """Locate the cache folder of this package: ``neuromanifold_gpt`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Raises:
        DatasetError: there is no home directory.
    """
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if Path(xdg).is_absolute():  # the XDG base directory specification says to ignore a relative one
        return Path(xdg, "neuromanifold_gpt")
    try:
        return Path.home() / ".cache" / "neuromanifold_gpt"
    except RuntimeError as error:
        raise DatasetError(
            "expected a home directory for the cache, found none; set XDG_CACHE_HOME to a writable folder"
        ) from error


def open_joined(files: Sequence[TextFile], *, name: str, cache_dir: Path) -> tuple[Split, Split]:
    """Open text files, joined by one newline byte each, as byte-level train and validation splits.

    Each file is on one side, by a hash of its path. Where that leaves a side empty, the last tenth of the
    joined bytes is for validation instead.

    Args:
        files: at least one file, in the order in which they are joined.
        name: how the name of the cache file begins.
        cache_dir: folder of the cache files; it is made if need be.

    Raises:
        OSError: the cache file is there, but cannot be read.
        DatasetError: a file cannot be read or changes meanwhile, there is not enough text, or the cache
            cannot be written.
    """
    parts, train_size = _divide(files)
    content = _measure(_joined_chunks(parts), train_size)
    path = cache_dir / f"{name}-{content.key}.bin"
    splits = _open_intact(path, content)
    if splits is None:
        logger.info("joining %d text files into %s", len(files), path)
        _write(path, parts, content)
        splits = _open_intact(path, content)
    if splits is None:
        raise DatasetError(f"{path}: the cache file is damaged right after it was written; check the disk")
    return splits


def _divide(files: Sequence[TextFile]) -> tuple[list[list[TextFile]], int]:
    """Group files into parts that are joined each for itself, and count the bytes that are for training."""
    sides: list[list[TextFile]] = [[], []]
    for file in files:
        sides[is_validation(file.relative)].append(file)
    train, validation = sides
    if train and validation:
        return sides, _joined_size(train)
    size = _joined_size(files)
    if size < 2:
        raise DatasetError(f"{files[0].path}: expected at least 2 bytes of text, found {size}; give more text")
    return [list(files)], size - validation_size(size)


def _joined_size(files: Sequence[TextFile]) -> int:
    return sum(file.size for file in files) + len(files) - 1


def _joined_chunks(parts: Iterable[Sequence[TextFile]]) -> Iterator[bytes]:
    for part in parts:
        for number, file in enumerate(part):
            if number > 0:
                yield b"\n"
            yield from _file_chunks(file)


def _file_chunks(file: TextFile) -> Iterator[bytes]:
    size = 0
    try:
        with file.path.open("rb") as source:
            while chunk := source.read(CHUNK_BYTES):
                size += len(chunk)
                yield chunk
    except OSError as error:
        raise DatasetError(
            f"{file.path}: cannot be read ({error.strerror}); check its permissions, or move it elsewhere"
        ) from error
    if size != file.size:
        raise DatasetError(
            f"{file.path}: expected {file.size} bytes, found {size}: it changed while it was read; start again when "
            "nothing writes to it"
        )


def _measure(chunks: Iterable[bytes], train_size: int) -> _Content:
    """Digest joined bytes, the first `train_size` of them apart from the others."""
    train, validation = xxhash.xxh3_128(), xxhash.xxh3_128()
    size = 0
    for chunk in chunks:
        end_of_train = max(0, train_size - size)
        train.update(chunk[:end_of_train])
        validation.update(chunk[end_of_train:])
        size += len(chunk)
    return _Content(train_size, train.hexdigest(), size - train_size, validation.hexdigest())


def _open_intact(path: Path, content: _Content) -> tuple[Split, Split] | None:
    """Map a cache file; None if it is missing or holds anything but the content."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DatasetError(_unusable_cache(path, error)) from error
    if size == content.train_size + content.validation_size:
        train = open_split(path, np.uint8, count=content.train_size)
        validation = open_split(path, np.uint8, offset=content.train_size, count=content.validation_size)
        if (train.digest, validation.digest) == (content.train_digest, content.validation_digest):
            return train, validation
    logger.warning("%s is damaged; it is written anew from its sources", path)
    return None


def _write(path: Path, parts: list[list[TextFile]], content: _Content) -> None:
    """Write the cache file: whole or not at all, whatever else is writing it at the same time."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path.parent)
        with temporary.open("xb") as file:
            written = _measure(_written(_joined_chunks(parts), file), content.train_size)
            if written != content:
                raise DatasetError(
                    f"{path}: the text files changed while they were joined; start again when nothing writes to them"
                )
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        raise DatasetError(_unusable_cache(path, error)) from error
    finally:
        _discard(temporary)


def _written(chunks: Iterable[bytes], file: BinaryIO) -> Iterator[bytes]:
    for chunk in chunks:
        file.write(chunk)
        yield chunk


def _remove_abandoned(cache_dir: Path) -> None:
    """Remove what killed writers left; a writer at work is told by its recent modification time."""
    for temporary in filter(lambda path: TEMPORARY_NAME.fullmatch(path.name), cache_dir.iterdir()):
        try:
            if time.time() - temporary.stat().st_mtime > ABANDONED_AFTER_S:
                temporary.unlink()
        except FileNotFoundError:  # its writer has finished, or another process has removed it
            continue
        except OSError as error:
            logger.warning("%s was left by a killed process and cannot be removed (%s)", temporary, error.strerror)


def _discard(temporary: Path) -> None:
    """Remove a temporary file after a failure; after success it has been renamed away."""
    try:
        temporary.unlink(missing_ok=True)
    except OSError as error:  # the folder itself cannot be used: the error on its way to the caller says so
        logger.debug("%s cannot be removed (%s)", temporary, error.strerror)


def _sync_directory(directory: Path) -> None:
    """Make a rename in the directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unusable_cache(path: Path, error: OSError) -> str:
    return (
        f"{path.parent}: the cache file {path.name} cannot be kept here ({error.strerror or error}); make room or "
        "make the folder writable, or set XDG_CACHE_HOME to another folder"
    )
