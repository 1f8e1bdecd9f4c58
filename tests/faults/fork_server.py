"""Runs tasks in processes of their own without importing torch in each: it forks.

A task is a function ``module:name`` of JSON arguments that returns what is to be observed: a second function, which is
called when a tracer, if there is to be one, has been attached.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
_TIMEOUT_SEC = 300  # a task that hangs is ended by SIGALRM; long, since machines may be busy


@dataclass(frozen=True)
class Outcome:
    """How a task ended: the signal that killed it, or the class and text of its exception, or neither."""

    killed_by: int | None
    error: str | None = None
    classes: tuple[str, ...] = ()
    message: str = ""
    value: Any = None
    grown_bytes: int = 0


class ForkServer:
    """The client's side; a context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.fork_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        )

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_: object) -> None:
        # Said in words: data workers forked from this process may still hold its end of the pipe open.
        self._process.communicate(json.dumps(None) + "\n")
        assert self._process.returncode == 0

    def run(self, task: str, *arguments: object, attach: Callable[[int], None] = lambda pid: None) -> Outcome:
        """Run a task to its end; ``attach`` is called with the process id before its second part begins."""
        started = self._ask({"task": task, "arguments": arguments})
        if "pid" in started:
            attach(started["pid"])
            started = self._ask("go")
        return Outcome(**started)

    def _ask(self, request: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


def serve() -> None:
    """The server's side."""
    from . import tasks  # noqa: F401
    from .tiny_training import undisturbed

    undisturbed()  # imports all that a training imports, once for all
    output, sys.stdout = sys.stdout, sys.stderr
    while (request := json.loads(sys.stdin.readline() or "null")) is not None:
        report_read, report_write = os.pipe()
        go_read, go_write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(report_read)
            _run_child(request["task"], request["arguments"], report_write, go_read)
        os.close(report_write)
        os.close(go_read)
        with os.fdopen(report_read) as reports:
            if reports.readline() == "ready\n":
                print(json.dumps({"pid": child}), file=output, flush=True)
                sys.stdin.readline()
                os.write(go_write, b"g")
            report = reports.read()
        os.close(go_write)
        _, status = os.waitpid(child, 0)
        killed_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        outcome = {} if killed_by or not report else json.loads(report)
        print(json.dumps({"killed_by": killed_by, **outcome}), file=output, flush=True)


def _run_child(task: str, arguments: list[Any], report: int, go: int) -> None:
    signal.alarm(_TIMEOUT_SEC)
    module, name = task.split(":")
    outcome: dict[str, Any] = {}
    ready = False
    try:
        observed = getattr(importlib.import_module(module), name)(*arguments)
        os.write(report, b"ready\n")
        ready = True
        os.read(go, 1)
        before_kib = _peak_kib()
        try:
            outcome["value"] = observed()
        finally:
            outcome["grown_bytes"] = (_peak_kib() - before_kib) * 1024
    except BaseException as error:  # noqa: BLE001 told to whoever asked
        outcome.update(
            error=type(error).__name__, message=str(error), classes=[kind.__name__ for kind in type(error).__mro__]
        )
    if not ready:
        os.write(report, b"\n")
    os.write(report, json.dumps(outcome, default=str).encode())
    os._exit(0)


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    serve()
