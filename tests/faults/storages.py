"""Storages that record, fail or crash. The files are real: only the moment of the fault is chosen."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from neuromanifold_gpt.checkpoint.storage import LocalStorage


class Crash(BaseException):
    """The process died here. Not an ``Exception``, and the storage does nothing from then on: no clean-up happens."""


class ObservedFile:
    """A real file, each write of which its storage is asked about."""

    def __init__(self, path: Path, storage: ObservedStorage) -> None:
        self.path = path
        self._storage = storage
        self._file = path.open("wb", buffering=0)

    def write(self, data: bytes | memoryview) -> int:
        return self._storage.write(self, data)

    def write_through(self, data: bytes | memoryview) -> int:
        return self._file.write(data)

    def fileno(self) -> int:
        return self._file.fileno()

    def __enter__(self) -> ObservedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class ObservedStorage(LocalStorage):
    """A :class:`LocalStorage` that calls :meth:`before` in front of each elementary operation.

    It does not wait for the disk: no test cuts the power; ``power_loss.py`` keeps account of what would be durable.
    """

    def before(self, operation: str, *paths: Path) -> None:
        """What the subclasses are about."""

    def create(self, path):
        self.before("create", path)
        return ObservedFile(path, self)

    def write(self, file: ObservedFile, data: bytes | memoryview) -> int:
        self.before("write", file.path)
        return file.write_through(data)

    def sync_file(self, file):
        self.before("sync_file", file.path)

    def sync_directory(self, path):
        self.before("sync_directory", path)

    def rename(self, source, target):
        self.before("rename", source, target)
        super().rename(source, target)

    def keep_as(self, source, target):
        self.before("keep_as", source, target)
        super().keep_as(source, target)  # which removes the target first

    def remove(self, path):
        self.before("remove", path)
        super().remove(path)


class RecordingStorage(ObservedStorage):
    """Lists what was done as ``(operation, name, ...)``, a run of writes to one file as one."""

    def __init__(self) -> None:
        self.operations: list[tuple[str, ...]] = []

    def before(self, operation, *paths):
        entry = (operation, *(path.name for path in paths))
        if operation != "write" or not self.operations or self.operations[-1] != entry:
            self.operations.append(entry)


class CountingStorage(ObservedStorage):
    """Has something happen at its operation number ``at``. Of the small writes of a file, every eighth is counted."""

    def __init__(self, at: int) -> None:
        self._left = at
        self._writes: Counter[Path] = Counter()

    def write(self, file, data):
        self._writes[file.path] += 1
        counts = self._writes[file.path] % 8 == 1
        return super().write(file, data) if counts else file.write_through(data)


class CrashingStorage(CountingStorage):
    """Dies before its operation number ``at``; a write is torn in the middle."""

    def __init__(self, at: int) -> None:
        super().__init__(at)
        self.crashed = False

    def before(self, operation, *paths):
        if self._left == 0:
            self.crashed = True
            raise Crash(f"before {operation} of {paths[-1].name}")
        self._left -= 1

    def write(self, file, data):
        if self.crashed:
            raise Crash("dead already")
        try:
            return super().write(file, data)
        except Crash:
            file.write_through(memoryview(data)[: len(data) // 2])
            raise


class FailingStorage(CountingStorage):
    """Raises ``error`` instead of its operation number ``at``, once or from then on."""

    def __init__(self, at: int, error: OSError, *, for_good: bool = False) -> None:
        super().__init__(at)
        self._error = error
        self._for_good = for_good
        self.refused: tuple[str, Path] | None = None

    def before(self, operation, *paths):
        self._left -= 1
        if self._left == -1 or (self._left < 0 and self._for_good):
            if self.refused is None:
                self.refused = operation, paths[0]
            # write(2) and fsync(2) know no name, so Python's errors of them have none.
            names = () if operation in ("write", "sync_file", "sync_directory") else (str(paths[0]),)
            raise OSError(*self._error.args, *names)


class ShortWritingStorage(ObservedStorage):
    """Takes at most a few bytes with each write, as a raw write may."""

    def write(self, file, data):
        return file.write_through(memoryview(data)[:10])
