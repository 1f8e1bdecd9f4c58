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

from .fork_server import ForkServer, Outcome

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
        options = ["-o", log.name, "-P", call.path, "-e", f"inject={call.name}:{fault}:when={call.number}"]
        outcome = _traced(server, task, arguments, options)
        text = log.read()
    # Of calls on other paths nothing is logged.
    seen = Counter(re.findall(rf"^(\d+) +{call.name}\(", text, re.MULTILINE))
    return outcome, max(seen.values(), default=0) >= call.number


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
