"""The few file operations that a save is made of.

Every change that the writer makes to a directory goes through one :class:`Storage`, so that a test can record the
operations, refuse them, or ask what each power loss between two of them would leave behind.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from neuromanifold_gpt.checkpoint.errors import UnreadableFileError


class Storage(Protocol):
    """File operations with the meaning of their POSIX namesakes; all of them raise ``OSError``."""

    def create(self, path: Path) -> BinaryIO:
        """Open a file for writing, emptying the one that is there."""
        ...

    def sync_file(self, file: BinaryIO) -> None:
        """Return when the bytes written so far would survive a power loss."""
        ...

    def sync_directory(self, path: Path) -> None:
        """Return when the names in ``path`` would survive a power loss."""
        ...

    def rename(self, source: Path, target: Path) -> None:
        """Give ``source`` the name ``target``, replacing what has it, in one step."""
        ...

    def keep_as(self, source: Path, target: Path) -> None:
        """Make the content of ``source`` available under ``target`` as well."""
        ...

    def remove(self, path: Path) -> None:
        """Remove a file; one that is not there is fine."""
        ...


def open_regular(path: Path, *, follow_links: bool = False) -> BinaryIO:
    """Open a regular file for reading, unbuffered; anything else is refused before it can block or never end.

    Raises:
        OSError: it cannot be opened, or is a pipe, a device, a directory, or (unless ``follow_links``) a link.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    if not follow_links and path.is_symlink():
        raise OSError(errno.ELOOP, "a symbolic link, which is not followed", str(path))
    descriptor = os.open(path, flags if follow_links else flags | getattr(os, "O_NOFOLLOW", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb", buffering=0)


# Something else lies there, or nothing; or what was read makes no sense, of which Python itself raises OSErrors.
_NO_REFUSAL = {None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ELOOP}


def is_refusal(error: OSError) -> bool:
    """Whether the system could not or would not read a file, which may be intact."""
    return error.errno not in _NO_REFUSAL


@contextlib.contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` of a reader, a bad block or a network mount that is gone, into one that names the file.

    Raises:
        UnreadableFileError: of the file that the system named, else of ``path``.
    """
    try:
        yield
    except OSError as error:
        raise _unreadable(path, error) from error


def raise_if_refused(path: Path, error: Exception) -> None:
    """Tell a refusal of the system from what reading nonsense gives.

    Raises:
        UnreadableFileError: see :func:`read_errors`.
    """
    if isinstance(error, OSError) and is_refusal(error):
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> UnreadableFileError:
    return UnreadableFileError(
        f"{error.filename or path}: the system refused to read it: {error.strerror or error}. It may be intact: "
        "try again when this is repaired, or use another checkpoint."
    )


def make_directory(path: Path) -> None:
    """Create a directory and its parents, durably: each new name is synced into its parent."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        LocalStorage().sync_directory(directory.parent)


class LocalStorage:
    """:class:`Storage` on a local POSIX file system."""

    def create(self, path: Path) -> BinaryIO:
        """Open unbuffered: the writer hands over whole chunks."""
        return path.open("wb", buffering=0)

    def sync_file(self, file: BinaryIO) -> None:
        """``fsync`` the file."""
        os.fsync(file.fileno())

    def sync_directory(self, path: Path) -> None:
        """``fsync`` the directory, where the platform lets one open it."""
        if os.name == "nt":  # directories cannot be opened there; NTFS journals the rename itself
            return
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            with contextlib.suppress(OSError):  # nothing was written through it, so no error of it means anything
                os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """``rename(2)``."""
        source.replace(target)

    def keep_as(self, source: Path, target: Path) -> None:
        """A hard link, or a synced copy where the file system has none."""
        self.remove(target)
        try:
            os.link(source, target)
        except OSError:
            # FAT and some network mounts know no links. A copy that fails raises: nothing is swallowed here.
            shutil.copyfile(source, target)
            with target.open("rb") as file:
                os.fsync(file.fileno())

    def remove(self, path: Path) -> None:
        """``unlink(2)``."""
        path.unlink(missing_ok=True)
