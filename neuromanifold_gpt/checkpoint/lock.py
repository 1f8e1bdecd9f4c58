"""One writer at a time in a directory, among processes that may be killed at any moment.

The lock is ``flock(2)`` on the file ``.nm-lock`` in the directory. The kernel releases it when its process ends,
however it ends, so a lock file that a killed process left behind blocks nobody; the next writer takes it over and
removes it when done. Forked children (data workers) close their copy at once, so that a worker which outlives its
parent holds nothing. Readers never need the lock.

Who finds a *save* in progress waits for its end; who finds a *run*, which holds its directory to the end, is refused.
Who begins a run clears what a killed one left: it may have nothing left to save.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import platform
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuromanifold_gpt.checkpoint.errors import (
    CheckpointLockedError,
    CheckpointWriteError,
    LeftoverWarning,
    UnlockedDirectoryWarning,
    UnreadableFileError,
)
from neuromanifold_gpt.checkpoint.leftovers import clear_leftovers
from neuromanifold_gpt.checkpoint.storage import LocalStorage, make_directory
from neuromanifold_gpt.checkpoint.user_warnings import warn_user

LOCK_NAME = ".nm-lock"
RUN, SAVE = "run", "save"

# How long to wait for a holder, by what it does. One that has not said yet is between its first two system calls.
_PATIENCE_SEC = {RUN: 0.0, SAVE: 600.0, None: 10.0}
_POLL_SEC = 0.02
_HOLDER_BYTES = 4096
_NO_LOCKS_HERE = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}


@dataclass
class _Hold:
    """A directory that this process holds, as often as ``count`` says."""

    descriptor: int
    count: int
    made_directory: bool


_holds: dict[str, _Hold] = {}
_holds_lock = threading.Lock()
# Two threads of one process share its hold; their saves still go one after the other.
_sections: dict[str, threading.RLock] = {}


class DirectoryLock:
    """This process's hold on a directory. Holds of one process add up: only the last release gives it free.

    Args:
        directory: made, durably, where it does not exist, and removed again if it is still empty in the end.
        purpose: :data:`RUN` or :data:`SAVE`; what others are told, and whether they wait.
    """

    def __init__(self, directory: Path, purpose: str) -> None:
        self._directory = directory
        self._key = os.path.realpath(directory)
        self._purpose = purpose

    def acquire(self) -> None:
        """Take the lock, waiting while somebody else's save is in progress.

        Raises:
            CheckpointLockedError: another process trains there; the message says which.
            CheckpointWriteError: the lock file cannot be written.

        Warns:
            UnlockedDirectoryWarning: the file system has no locks, so two writers would not notice each other.
            LeftoverWarning: what a killed process left could not be removed; that keeps no run from starting.
        """
        started_sec = time.monotonic()
        while not self._try():
            holder = _read_holder(Path(self._key) / LOCK_NAME)
            if time.monotonic() - started_sec >= _PATIENCE_SEC.get(holder.get("purpose"), 0.0):
                raise CheckpointLockedError(_refusal(self._directory, holder))
            time.sleep(_POLL_SEC)
        if self._purpose == RUN:
            try:
                self._clear_leftovers()
            except BaseException:
                self.release()
                raise

    def release(self) -> None:
        """Give this hold back."""
        with _holds_lock:
            hold = _holds.get(self._key)
            if hold is None:  # of a parent process
                return
            hold.count -= 1
            if hold.count:
                return
            del _holds[self._key]
            path = Path(self._key) / LOCK_NAME
            with contextlib.suppress(OSError):  # the directory may be gone, or read-only by now
                if os.path.samestat(path.stat(), os.fstat(hold.descriptor)):
                    path.unlink()  # while it is held: whoever has it open already sees that it is no longer the file
                if hold.made_directory:
                    Path(self._key).rmdir()
            with contextlib.suppress(OSError):  # it is closed, whatever the system says
                os.close(hold.descriptor)

    def __enter__(self) -> DirectoryLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _clear_leftovers(self) -> None:
        try:
            with writing(self._directory):  # not while another thread saves
                clear_leftovers(self._directory, LocalStorage())
        except (OSError, UnreadableFileError) as error:
            warn_user(
                f"{self._directory}: what an interrupted save left here could not be cleared away: {error}. The next "
                "save tries again.",
                LeftoverWarning,
            )

    def _try(self) -> bool:
        with _holds_lock:
            if self._key in _holds:
                _holds[self._key].count += 1
                return True
            path = Path(self._key) / LOCK_NAME
            try:
                made = not path.parent.exists()
                make_directory(path.parent)  # durably: what is saved in it must not vanish with it
                descriptor = _open_locked(path)
            except OSError as error:
                raise CheckpointWriteError(
                    f"{error.filename or path}: the directory cannot be locked for writing: {error.strerror}. Free "
                    "space or make the directory writable, or choose another one; older checkpoints are untouched."
                ) from error
            if descriptor is None:
                return False
            _holds[self._key] = _Hold(descriptor, 1, made)
            with contextlib.suppress(OSError):  # a full disk keeps nobody from locking; the holder stays unnamed then
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, _description(self._purpose), 0)
            return True


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Change files in ``directory`` while no other process, and no other thread of this one, does.

    Raises:
        CheckpointLockedError, CheckpointWriteError: see :meth:`DirectoryLock.acquire`.
    """
    section = _sections.setdefault(os.path.realpath(directory), threading.RLock())
    with section, DirectoryLock(directory, SAVE):
        yield


def lock_directory(directory: str | Path) -> DirectoryLock:
    """Keep other processes from writing checkpoints into a directory, for as long as a run lasts.

    For plain loops. ``SeparatedCheckpoint`` and ``train.py`` do this by themselves, and each single ``save_checkpoint``
    is exclusive in any case. The lock ends with the process, also when that is killed::

        with lock_directory("out"):
            ...  # train, saving into "out"

    Raises:
        CheckpointLockedError: another process holds the directory; the message says which.
        CheckpointWriteError: the directory cannot be written.
    """
    return DirectoryLock(Path(directory), RUN)


def _open_locked(path: Path) -> int | None:
    """The lock file, locked; ``None`` if somebody else has it."""
    while True:
        # Not inherited by programs that are started, and never a link to somewhere else.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            if error.errno not in _NO_LOCKS_HERE:
                os.close(descriptor)
                error.filename = str(path)
                raise
            warn_user(
                f"{path.parent}: this file system has no locks ({error.strerror}): a second process that writes here "
                "would not be noticed.",
                UnlockedDirectoryWarning,
            )
        try:
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
        except FileNotFoundError:
            pass
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder removed it between our two calls


def _description(purpose: str) -> bytes:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    command = shlex.join(sys.orig_argv)[:1000]
    holder = {"purpose": purpose, "host": platform.node(), "pid": os.getpid(), "since": now, "command": command}
    return json.dumps(holder).encode()


def _read_holder(path: Path) -> dict[str, Any]:
    """What the holder wrote about itself; empty where it has not."""
    try:
        with path.open("rb") as file:
            holder = json.loads(file.read(_HOLDER_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    known = holder.items() if isinstance(holder, dict) else ()
    return {
        key: value for key, value in known if isinstance(value, int) or (isinstance(value, str) and value.isprintable())
    }


def _refusal(directory: Path, holder: dict[str, Any]) -> str:
    known = {key: holder.get(key, "unknown") for key in ("pid", "host", "since", "command")}
    return (
        f"{directory}: another process writes checkpoints here: process {known['pid']} on {known['host']}, since "
        f"{known['since']}, {known['command']!r}. Wait for it, stop it, or choose another directory. When that process "
        "ends, however it ends, the directory is free; there is nothing to remove by hand."
    )


def _forget_in_child() -> None:
    """A forked child shares its parent's open files: kept open here, they would keep the lock when the parent dies."""
    global _holds_lock
    for hold in _holds.values():
        with contextlib.suppress(OSError):  # it is closed, whatever the system says
            os.close(hold.descriptor)
    _holds.clear()
    _sections.clear()
    _holds_lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_in_child)
