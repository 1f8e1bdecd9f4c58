"""Another process that writes checkpoints, on command."""

from __future__ import annotations

from pathlib import Path

from ..warm_process import WarmProcess

SCRIPT = Path(__file__).with_name("lock_holder.py")


class Process:
    """Another process, that does what it is told."""

    def __init__(self, directory: Path) -> None:
        self._process = WarmProcess(SCRIPT, directory)
        self.pid = self._process.pid
        assert self.answer() == "ready"

    def tell(self, line: str) -> None:
        print(line, file=self._process.stdin, flush=True)

    def answer(self) -> str:
        return self._process.stdout.readline().strip()

    def asked(self, line: str) -> str:
        self.tell(line)
        return self.answer()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()
