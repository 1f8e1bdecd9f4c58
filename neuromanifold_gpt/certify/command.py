"""Run a command in a session of its own, stop it, end it, and leave none of its processes behind.

A training command may start more processes: data workers, ranks, some of them in sessions of their own (torchrun's
are). Every one inherits an environment variable, by which it is found in ``/proc`` wherever it
has moved.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from neuromanifold_gpt.certify.errors import PlanError

OUT = "{out}"
_MARK = "NEUROMANIFOLD_CERTIFY_RUN"
_KILL_TIMEOUT_SEC = 10.0


@dataclass(frozen=True)
class Command:
    """What starts the training, and what starts it again; ``{out}`` in them stands for the output directory."""

    start: tuple[str, ...]
    resume: tuple[str, ...]

    @classmethod
    def parse(cls, command: Sequence[str] | str, resume: Sequence[str] | str | None = None) -> Command:
        """Split strings as a shell does.

        Raises:
            PlanError: the command is empty, or ``{out}`` is in neither its arguments.
        """
        start = _split(command)
        again = start if resume is None else _split(resume)
        for words in (start, again):
            if not words:
                raise PlanError("command: expected a training command, found nothing. Give it after --.")
            if not any(OUT in word for word in words):
                raise PlanError(
                    f"command: expected {OUT} in its arguments, found {shlex.join(words)!r}. Write {OUT} where the "
                    "command takes its output directory, as in --out_dir={out}."
                )
        return cls(start, again)

    def arguments(self, out: Path, *, resuming: bool) -> list[str]:
        """The argument list with the output directory in it."""
        return [word.replace(OUT, str(out)) for word in (self.resume if resuming else self.start)]


def _split(command: Sequence[str] | str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(command) if isinstance(command, str) else map(str, command))
    except ValueError as error:
        raise PlanError(f"command: {command!r} cannot be split into words: {error}.") from error


class Running:
    """A command that runs. Leave its ``with`` block, by whatever way, and nothing of it runs any more.

    Args:
        arguments: what to run.
        stdout, stderr: files for its output.
        environment: further environment variables.

    Raises:
        PlanError: there is no such program.
    """

    def __init__(
        self, arguments: Sequence[str], stdout: Path, stderr: Path, environment: dict[str, str] | None = None
    ) -> None:
        self._mark = f"{_MARK}={secrets.token_hex(8)}"
        name, value = self._mark.split("=")
        # Unbuffered output, so that what a killed program has printed is not lost with it.
        variables = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {}), name: value}
        with stdout.open("wb") as out, stderr.open("wb") as err:
            try:
                self._process = subprocess.Popen(
                    arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env=variables,
                    start_new_session=True,
                )
            except OSError as error:
                raise PlanError(f"command: {arguments[0]!r} cannot be started: {error.strerror}.") from error

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()

    @property
    def exit_code(self) -> int | None:
        """``None`` while it runs; negative: ended by that signal."""
        return self._process.poll()

    def stop(self) -> None:
        """Hold every process where it is; returns when they have stopped."""
        self._signal_all(signal.SIGSTOP)
        deadline_sec = time.monotonic() + 1
        while time.monotonic() < deadline_sec and not stopped(self._process.pid):
            time.sleep(0.0001)

    def go_on(self) -> None:
        """Let every process continue after :meth:`stop`."""
        self._signal_all(signal.SIGCONT)

    def terminate(self) -> None:
        """SIGTERM to the command's own process, as ``kill`` and Kubernetes send it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to every process; returns when none of them is left."""
        deadline_sec = time.monotonic() + _KILL_TIMEOUT_SEC
        self._signal_all(signal.SIGKILL)
        self._process.wait()
        while any(True for _ in self._members()) and time.monotonic() < deadline_sec:
            self._signal_all(signal.SIGKILL)
            time.sleep(0.002)

    def _signal_all(self, number: signal.Signals) -> None:
        # The group first: that is one system call, the rest takes a walk through /proc.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)
        for pid in self._members():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    def _members(self) -> Iterator[int]:
        """The processes of this run, found by the variable they inherited."""
        mark = self._mark.encode()
        for entry in os.scandir("/proc"):
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if mark in Path(entry.path, "environ").read_bytes() and _state(entry) not in "ZX":
                        yield int(entry.name)


def stopped(pid: int) -> bool:
    """Whether no thread of a process runs any more: each is stopped, or has ended.

    A process that was sent SIGSTOP has not stopped when ``kill`` returns, and its threads stop one by one: one that
    writes a log may finish a write that has begun.
    """
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return True
    return all(_state(thread) in "TtZX" for thread in threads)


def _state(entry: str | os.PathLike[str]) -> str:
    """The state of an entry of /proc as a letter: R, S, D, T (stopped), Z (ended, not waited for); X: there is none."""
    try:
        return Path(entry, "stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "X"


def require_linux() -> None:
    """``/proc`` and inotify are needed.

    Raises:
        PlanError: this is not Linux.
    """
    if not sys.platform.startswith("linux"):
        raise PlanError(f"certify: expected Linux (it watches with inotify), found {sys.platform}.")
