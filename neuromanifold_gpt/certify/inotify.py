"""Notice at once what happens in a directory tree, by the kernel's inotify.

Polling would miss a file that is half-written for a millisecond, and cannot tell who reads a file.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
from dataclasses import dataclass, field
from pathlib import Path

from neuromanifold_gpt.certify.errors import CertifyError

_ACCESS, _MODIFY, _CLOSE_WRITE, _CLOSE_NOWRITE = 0x1, 0x2, 0x8, 0x10
_MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x40, 0x80, 0x100, 0x200
_OVERFLOW, _IS_DIRECTORY = 0x4000, 0x40000000
_WATCHED = _ACCESS | _MODIFY | _CLOSE_WRITE | _CLOSE_NOWRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE
_HEADER = struct.Struct("iIII")
_BUFFER_BYTES = 1 << 20


@dataclass
class Happened:
    """What happened since the last look: paths relative to the watched directory."""

    changed: dict[str, None] = field(default_factory=dict)  # in order; created, written or moved here
    read: set[str] = field(default_factory=set)  # read from, or opened for reading only and closed again
    overflowed: bool = False  # the kernel dropped events


class TreeWatch:
    """Watches a directory and everything below it, new directories included.

    Raises:
        CertifyError: the kernel refuses, because its limit of watches or instances is reached.
    """

    def __init__(self, root: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._root = root
        self._directories: dict[int, str] = {}
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise self._refused("inotify_init1")
        self._add("", Happened())

    def close(self) -> None:
        """Stop watching."""
        os.close(self._descriptor)

    def wait(self, timeout_sec: float) -> Happened:
        """What happened; waits until something does, at most ``timeout_sec``."""
        happened = Happened()
        if select.select([self._descriptor], [], [], timeout_sec)[0]:
            self._parse(os.read(self._descriptor, _BUFFER_BYTES), happened)
        return happened

    def _parse(self, events: bytes, happened: Happened) -> None:
        offset = 0
        while offset < len(events):
            number, mask, _cookie, length = _HEADER.unpack_from(events, offset)
            name = events[offset + _HEADER.size : offset + _HEADER.size + length].rstrip(b"\0")
            offset += _HEADER.size + length
            if mask & _OVERFLOW:
                happened.overflowed = True
            if number not in self._directories:
                continue
            path = str(Path(self._directories[number], os.fsdecode(name)))
            if mask & _IS_DIRECTORY:
                if mask & (_CREATE | _MOVED_TO):
                    self._add(path, happened)
            elif mask & (_ACCESS | _CLOSE_NOWRITE):
                happened.read.add(path)
            elif name and mask & (_MODIFY | _CLOSE_WRITE | _CREATE | _MOVED_TO):
                happened.changed[path] = None

    def _add(self, relative: str, happened: Happened) -> None:
        """Watch a directory; what was put into it before the watch began counts as changed."""
        directory = self._root / relative
        number = self._libc.inotify_add_watch(self._descriptor, os.fsencode(directory), _WATCHED)
        if number < 0:
            if not directory.is_dir():  # gone again already: a temporary directory
                return
            raise self._refused("inotify_add_watch")
        self._directories[number] = relative
        try:
            entries = list(os.scandir(directory))
        except FileNotFoundError:
            return
        for entry in entries:
            path = str(Path(relative, entry.name))
            if entry.is_dir(follow_symlinks=False):
                self._add(path, happened)
            else:
                happened.changed[path] = None

    def _refused(self, call: str) -> CertifyError:
        reason = os.strerror(ctypes.get_errno())
        return CertifyError(f"{call}: {reason}. Raise /proc/sys/fs/inotify/max_user_watches or max_user_instances.")
