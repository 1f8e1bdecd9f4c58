"""Faults at chosen system calls of a real process, by strace.

A dry run lists the calls that concern a directory. One of them is then chosen by its name, by the path that it is about
and by its number among the calls of that name and path: strace counts calls in each thread by itself, and the threads
of a save write to different files.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .fork_server import REPOSITORY, ForkServer, Outcome

_TRACED = "%file,%desc"  # whatever concerns files
_LINE = re.compile(r"(?P<thread>\d+) +(?P<name>\w+)\((?P<arguments>.*?)\)? += (?P<result>.*)")
_CHANGING = re.compile(
    r"write|pwrite|sendfile|splice|copy_file_range|fallocate|truncate|sync|link|rename|mkdir|rmdir|mknod|chmod|chown|utime|setxattr"
)
_OPENED_TO_CHANGE = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC")


@dataclass(frozen=True)
class Call:
    """One system call on a path: ``number`` counts, from 1, the calls of the same name on it."""

    name: str
    path: str
    number: int
    changes: bool

    def __str__(self) -> str:
        return f"{self.name} {self.number} of {Path(self.path).name}"


def missing_strace() -> str | None:
    """Why nothing can be traced here; ``None`` if it can."""
    program = shutil.which("strace")
    if program is None:
        return "strace is not installed (make faults installs it where it may)"
    tried = subprocess.run([program, "-o", "/dev/null", "true"], capture_output=True, text=True)
    return f"strace may not trace here: {tried.stderr.strip()}" if tried.returncode else None


def calls_of(server: ForkServer, directory: Path, task: str, *arguments: object) -> list[Call]:
    """All calls of a task that name ``directory`` or something in it, in order."""
    with tempfile.NamedTemporaryFile("r") as log:
        outcome = _traced(server, task, arguments, ["-o", log.name])
        assert outcome.killed_by is None, outcome
        assert outcome.error is None, outcome
        return list(_parsed(log.read(), str(directory)))


def inject(server: ForkServer, call: Call, fault: str, task: str, *arguments: object) -> tuple[Outcome, bool]:
    """Run a task with ``fault``, as ``strace -e inject`` takes it, at one call; also whether the call was reached."""
    with tempfile.NamedTemporaryFile("r") as log:
        outcome = _traced(server, task, arguments, _options(log.name, call, fault))
        return outcome, _was_reached(log.read(), call)


def calls_of_program(command: list[str], environment: dict[str, str], directory: Path) -> list[Call]:
    """As :func:`calls_of`, for a program that is run from its beginning."""
    with tempfile.NamedTemporaryFile("r") as log:
        assert _run_traced(command, environment, ["-o", log.name]) == 0
        return list(_parsed(log.read(), str(directory)))


def inject_into_program(command: list[str], environment: dict[str, str], call: Call, fault: str) -> tuple[int, bool]:
    """As :func:`inject`; returns the exit code, negative for a signal."""
    with tempfile.NamedTemporaryFile("r") as log:
        exit_code = _run_traced(command, environment, _options(log.name, call, fault))
        return exit_code, _was_reached(log.read(), call)


def _run_traced(command: list[str], environment: dict[str, str], options: list[str]) -> int:
    tracing = ["strace", "-f", "-y", "-e", f"trace={_TRACED}", *options]
    return subprocess.run([*tracing, *command], cwd=REPOSITORY, env=environment, capture_output=True).returncode


def _options(log: str, call: Call, fault: str) -> list[str]:
    return ["-o", log, "-P", call.path, "-e", f"inject={call.name}:{fault}:when={call.number}"]


def _was_reached(log: str, call: Call) -> bool:
    """Of calls on other paths nothing is logged."""
    seen = Counter(re.findall(rf"^(\d+) +{call.name}\(", log, re.MULTILINE))
    return max(seen.values(), default=0) >= call.number


def _traced(server: ForkServer, task: str, arguments: tuple[object, ...], options: list[str]) -> Outcome:
    tracers = []

    def attach(pid: int) -> None:
        command = ["strace", "-f", "-y", "-e", f"trace={_TRACED}", *options, "-p", str(pid)]
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        tracers.append(tracer)
        assert tracer.stderr is not None
        said = ""
        while "attached" not in said:
            said = tracer.stderr.readline()
            assert said, f"strace ended: {tracer.wait()}"

    outcome = server.run(task, *arguments, attach=attach)
    for tracer in tracers:
        tracer.communicate()
    return outcome


def _parsed(log: str, directory: str) -> Iterator[Call]:
    numbers: Counter[tuple[str, str, str]] = Counter()
    for line in log.splitlines():
        match = _LINE.match(line)
        if match is None or match["result"].startswith("?"):
            continue
        paths = dict.fromkeys(re.findall(rf"[\"<]({re.escape(directory)}(?:/[^\">]*)?)[\">]", line))
        for path in paths:
            numbers[match["thread"], match["name"], path] += 1
        if not paths:
            continue
        path = next(iter(paths))
        changes = bool(
            _CHANGING.search(match["name"])
            or (match["name"].startswith("open") and _OPENED_TO_CHANGE.search(match["arguments"]))
        )
        yield Call(match["name"], path, numbers[match["thread"], match["name"], path], changes)
