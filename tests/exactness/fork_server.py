"""A process that has imported everything and run nothing, from which each job is forked.

So no run leaves a trace in the next, and none waits for imports. Reads one JSON job a line from standard input, answers
with one JSON line on standard output.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from . import child

_LAST_RANKS_GRACE_SEC = 3.0


def serve() -> None:
    """Answer jobs until there is none."""
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"{threads} threads: a fork would leave their locks taken"
    while (job := json.loads(sys.stdin.readline() or "null")) is not None:
        print(json.dumps(run_job(job)), flush=True)


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Start the process of each rank at the same moment, wait for all.

    When one of several ranks has died, the others get a moment to notice, as a launcher gives them, and are killed.
    """
    began = time.monotonic()
    port = _free_port() if len(job["ranks"]) > 1 else None
    processes = {_fork(phases, rank, len(job["ranks"]), port, job) for rank, phases in enumerate(job["ranks"])}
    codes: dict[int, int] = {}
    deadline = began + job["timeout_sec"]
    while len(codes) < len(processes):
        for process in processes - set(codes):
            finished, status = os.waitpid(process, os.WNOHANG)
            if finished:
                codes[process] = os.waitstatus_to_exitcode(status)
                if codes[process] != 0:
                    deadline = min(deadline, time.monotonic() + _LAST_RANKS_GRACE_SEC)
        if time.monotonic() > deadline:
            for process in processes - set(codes):
                _kill_group(process)
        time.sleep(0.002)
    for process in processes:
        _kill_group(process)  # data workers that a killed process has left
    return {"codes": [codes[process] for process in sorted(processes)], "seconds": time.monotonic() - began}


def _fork(phases: list[dict[str, Any]], rank: int, ranks: int, port: int | None, job: dict[str, Any]) -> int:
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.setpgid(0, 0)
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if port is not None:
            os.environ.update(_launched_as(rank, ranks, port))
        code = child.run_phases(phases)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _launched_as(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun puts into the environment."""
    names = ("RANK", "LOCAL_RANK", "GROUP_RANK"), ("WORLD_SIZE", "LOCAL_WORLD_SIZE")
    values = {**dict.fromkeys(names[0], str(rank)), **dict.fromkeys(names[1], str(ranks)), "GROUP_RANK": "0"}
    return {**values, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "exactness"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _kill_group(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)


if __name__ == "__main__":
    serve()
