"""Python programs in processes of their own that need not wait for imports: forked from one that has done them.

Half of the time of this suite would else go into importing torch and Lightning. A program started here is a real
process, which gets real signals, as ``python program.py ...`` is, with one difference: all of one test session have the
same hash seed.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

REPOSITORY = Path(__file__).parents[1]
# Bits depend on the number of threads.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
_REQUEST_BYTES = 1 << 16
_TIMEOUT_SEC = 120


class WarmProcess:
    """``python program arguments`` in the repository's directory; used like ``subprocess.Popen`` with text pipes.

    Args:
        program: a path of a Python file, and its command line.
        environment: variables beside ``ENVIRONMENT``, which are read when it is used, not when torch is imported.
        stdout: a file in place of the pipe.
        merged: standard error goes where standard output goes.
        own_session: in a session of its own, so that ``os.killpg`` reaches it and its workers alone.
    """

    def __init__(
        self,
        *program: object,
        environment: dict[str, str] | None = None,
        stdout: IO[Any] | None = None,
        merged: bool = False,
        own_session: bool = False,
    ) -> None:
        self.args = [str(part) for part in program]
        self.returncode: int | None = None
        request = {
            "arguments": self.args,
            "environment": {**ENVIRONMENT, **(environment or {})},
            "own_session": own_session,
        }
        their_stdin, stdin = os.pipe()
        output, their_output = (None, os.dup(stdout.fileno())) if stdout else os.pipe()
        errors, their_errors = (None, os.dup(their_output)) if merged else os.pipe()
        status, their_status = os.pipe()
        theirs = [their_stdin, their_output, their_errors, their_status]
        socket.send_fds(_server(), [json.dumps(request).encode()], theirs)
        for descriptor in theirs:
            os.close(descriptor)
        self.stdin: IO[str] = os.fdopen(stdin, "w")
        self.stdout = None if output is None else os.fdopen(output)
        self.stderr = None if errors is None else os.fdopen(errors)
        self._status = os.fdopen(status)
        self.pid = int(self._status.readline())

    def poll(self, wait_sec: float = 0) -> int | None:
        """The exit code, negative if a signal ended it, or None while it runs."""
        if self.returncode is None and select.select([self._status], [], [], wait_sec)[0]:
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode

    def wait(self, timeout: float = _TIMEOUT_SEC) -> int:
        """Wait for the end; the exit code."""
        if (code := self.poll(timeout)) is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def communicate(self, timeout: float = _TIMEOUT_SEC) -> tuple[str, str]:
        """Wait for the end; what it has written into its pipes, which are closed then."""
        self.stdin.close()
        with ThreadPoolExecutor() as threads:
            texts = [threads.submit(pipe.read) if pipe else None for pipe in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()  # which ends the reading too
                raise
        self.close()
        output, errors = (text.result() if text else "" for text in texts)
        return output, errors

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Kill it if it runs, and close its pipes."""
        self.kill()
        self.wait()
        for pipe in (self.stdin, self.stdout, self.stderr):
            if pipe:
                pipe.close()


def run(*program: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, like ``subprocess.run``."""
    process = WarmProcess(*program, **options)
    output, errors = process.communicate()
    assert process.returncode is not None
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


@functools.cache
def _server() -> socket.socket:
    """One for the process that runs tests, from its first program on."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.warm_process", str(theirs.fileno())],
        cwd=REPOSITORY,
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        env=ENVIRONMENT,
    )
    theirs.close()

    def close() -> None:
        ours.shutdown(socket.SHUT_WR)  # closing is not enough where data workers were forked from this process
        process.wait()
        ours.close()

    atexit.register(close)
    return ours


# ------------------------------------------------------------------------------------------ the server's side


def _next_program(requests: socket.socket) -> dict[str, Any] | None:
    """Fork for each request; return in the forked processes, each with its own, and at the end, with None."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks for the exit codes of parents
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, _REQUEST_BYTES, 4)
        if not message:
            return None
        if os.fork() == 0:
            requests.close()
            _be_parent(descriptors)
            return dict(json.loads(message))
        for descriptor in descriptors:
            os.close(descriptor)


def _be_parent(descriptors: list[int]) -> None:
    """Fork the program's process, and say its number and its exit code; return in that process only."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *standard, status = descriptors
    program = os.fork()
    if program == 0:
        os.close(status)
        for number, descriptor in enumerate(standard):
            os.dup2(descriptor, number)
            os.close(descriptor)
        return
    for descriptor in standard:
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.write(status, f"{program}\n".encode())
    _, code = os.waitpid(program, 0)
    os.write(status, f"{os.waitstatus_to_exitcode(code)}\n".encode())
    os._exit(0)


def _execute(program: dict[str, Any]) -> None:
    """Do what the interpreter does with a command line; how it ends is left to the interpreter."""
    import numpy as np

    if program["own_session"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(program["environment"])
    random.seed()  # each interpreter has its own
    np.random.seed()
    sys.argv = program["arguments"]
    sys.orig_argv = [sys.executable, *sys.argv]
    sys.path[0] = str(Path(sys.argv[0]).parent.absolute())
    sys.path.insert(1, str(REPOSITORY))
    main = types.ModuleType("__main__")
    main.__file__ = sys.argv[0]
    sys.modules["__main__"] = main
    exec(compile(Path(sys.argv[0]).read_bytes(), sys.argv[0], "exec"), main.__dict__)


def _import_all() -> None:
    import jsonargparse  # noqa: F401

    import tests.lightning_io.toy  # noqa: F401 imports the two above

    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"{threads} threads: a fork would leave their locks taken"


if __name__ == "__main__":
    _import_all()
    if (received := _next_program(socket.socket(fileno=int(sys.argv[1])))) is not None:
        _execute(received)
