"""Storages that record, fail, crash, or lose power. The files are real: only the moment of the fault is chosen."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
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


class CrashBefore(ObservedStorage):
    """Dies before a named operation on a named file."""

    def __init__(self, operation: str, name: str) -> None:
        self._last = operation, name
        self._dead = False

    def before(self, operation, *paths):
        self._dead = self._dead or (operation, paths[0].name) == self._last
        if self._dead:
            raise Crash(f"before {operation} of {paths[0].name}")


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


@dataclass
class Content:
    """One inode: what was written to it, and how much of that would survive a power loss."""

    written: bytearray = field(default_factory=bytearray)
    durable_bytes: int = 0


Names = dict[str, Content]


class PowerLossStorage(CrashingStorage):
    """Keeps account of what was synced in one directory, and so of what a power loss could leave there: a sample, for
    tests of one operation. ``power_loss.py`` enumerates all of it.

    What POSIX promises and no more: file content is durable after ``fsync`` of the file, a change of names after
    ``fsync`` of the directory; of the changes before that, any may have become durable and any not. A write is no
    operation of its own here: until it is synced, the file is torn anywhere.
    """

    def __init__(self, at: int, directory: Path) -> None:
        super().__init__(at)
        self._durable: Names = {}
        if directory.exists():
            for path in directory.iterdir():
                data = path.read_bytes()
                self._durable[path.name] = Content(bytearray(data), len(data))
        self._live = dict(self._durable)
        self._pending: list[tuple[str, Content | None]] = []

    def states_after_power_loss(self, chosen: random.Random) -> Iterator[dict[str, bytes]]:
        """The extreme directories that a power loss can leave now, and some between, as content by name."""
        count = len(self._pending)
        if count <= 4:
            choices: Iterable[tuple[bool, ...]] = itertools.product((False, True), repeat=count)
        else:
            single = [tuple(i == j for j in range(count)) for i in range(count)]
            single += [tuple(i != j for j in range(count)) for i in range(count)]
            mixed = [tuple(chosen.random() < 0.5 for _ in range(count)) for _ in range(4)]
            choices = [(False,) * count, (True,) * count, *single, *mixed]
        for choice in choices:
            names = dict(self._durable)
            for durable, (name, content) in zip(choice, self._pending, strict=True):
                if durable:
                    _change(names, name, content)
            yield {name: self._survived(content, chosen) for name, content in names.items()}

    @staticmethod
    def _survived(content: Content, chosen: random.Random) -> bytes:
        torn = chosen.randint(content.durable_bytes, len(content.written))
        return bytes(content.written[:torn])

    def _note(self, name: str, content: Content | None) -> None:
        _change(self._live, name, content)
        self._pending.append((name, content))

    def create(self, path):
        file = super().create(path)
        if path.name in self._live:  # emptied, under all its names
            self._live[path.name].written.clear()
            self._live[path.name].durable_bytes = 0
        else:
            self._note(path.name, Content())
        return file

    def write(self, file, data):
        count = file.write_through(data)
        self._live[file.path.name].written += bytes(memoryview(data)[:count])
        return count

    def sync_file(self, file):
        super().sync_file(file)
        content = self._live[file.path.name]
        content.durable_bytes = len(content.written)

    def sync_directory(self, path):
        super().sync_directory(path)
        for name, content in self._pending:
            _change(self._durable, name, content)
        self._pending.clear()

    def rename(self, source, target):
        super().rename(source, target)
        content = self._live[source.name]
        if self._live.get(target.name) is not content:  # of two links to one file, rename(2) leaves both
            # Both names change at once, or neither: one change in the account.
            self._note(f"{source.name}\n{target.name}", content)

    def keep_as(self, source, target):
        super().keep_as(source, target)
        self._note(target.name, self._live[source.name])

    def remove(self, path):
        super().remove(path)
        if path.name in self._live:
            self._note(path.name, None)


def _change(names: Names, name: str, content: Content | None) -> None:
    *old, new = name.split("\n")
    for gone in old:
        names.pop(gone, None)
    if content is None:
        names.pop(new, None)
    else:
        names[new] = content
