"""Another process that writes checkpoints, on command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import neuromanifold_gpt

SCRIPT = Path(__file__).with_name("lock_holder.py")


class Process:
    """Another process, that does what it is told."""

    def __init__(self, directory: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(neuromanifold_gpt.__file__).parents[1])}
        self.popen = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment, "OMP_NUM_THREADS": "1"},
        )
        assert self.popen.stdout.readline() == "ready\n"

    def tell(self, line: str) -> None:
        print(line, file=self.popen.stdin, flush=True)

    def answer(self) -> str:
        return self.popen.stdout.readline().strip()

    def asked(self, line: str) -> str:
        self.tell(line)
        return self.answer()

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.popen.stdin.close()
        self.popen.stdout.close()
