"""Every state in which a POSIX file system may be found after the power was lost, from a record of what was done to it.

What POSIX promises and no more: the content of a file is durable after ``fsync`` of the file, a change of names after
``fsync`` of the directory. Until then, of the changes of names any may have become durable and any not, a rename also
by half (both names); of the content, any part of the blocks.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .storages import ObservedStorage

BLOCK_BYTES = 4096
_ALL_SUBSETS_UP_TO_BLOCKS = 8

Event = tuple[Any, ...]
Files = dict[str, bytes]


class RecordingStorage(ObservedStorage):
    """Notes each operation, writes with their data, in ``events``."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def before(self, operation, *paths):
        if operation != "write":
            self.events.append((operation, *(path.name for path in paths)))

    def keep_as(self, source, target):
        super().keep_as(source, target)
        self.events[-2:] = reversed(self.events[-2:])  # the target is removed first

    def write(self, file, data):
        count = super().write(file, data)
        self.events.append(("write", file.path.name, bytes(memoryview(data)[:count])))
        return count


@dataclass
class Content:
    """One inode: what was written to it, and what of it was there at its last ``fsync``."""

    written: bytes = b""
    durable: bytes = b""

    def after_power_loss(self) -> list[bytes]:
        """What may be found in it: cut off at any block, any blocks never written, or as it was at the last sync."""
        if self.written == self.durable:
            return [self.durable]
        blocks = [self.written[i : i + BLOCK_BYTES] for i in range(0, len(self.written), BLOCK_BYTES)]
        found = {self.durable: None, self.written: None, b"": None}
        for count in range(len(blocks) + 1):
            found[b"".join(blocks[:count])] = None
        if len(blocks) <= _ALL_SUBSETS_UP_TO_BLOCKS:
            zeroed = itertools.product((False, True), repeat=len(blocks))
        else:
            zeroed = (tuple(i == j for j in range(len(blocks))) for i in range(len(blocks)))
        for choice in zeroed:
            parts = (bytes(len(block)) if zero else block for block, zero in zip(blocks, choice, strict=True))
            found[b"".join(parts)] = None
        for torn in (1, len(self.written) // 2, len(self.written) - 1):  # a block need not be the file system's unit
            found[self.written[:torn]] = None
        return list(found)


Change = dict[str, Content | None]


@dataclass
class Disk:
    """The names and contents of one directory: as processes see them, and as far as they are durable.

    ``pending`` has, for each change of names since the last sync, the ways in which it may have become durable.
    """

    live: dict[str, Content] = field(default_factory=dict)
    durable: dict[str, Content] = field(default_factory=dict)
    pending: list[list[Change]] = field(default_factory=list)

    @classmethod
    def holding(cls, directory: Path) -> Disk:
        """A directory all of which is durable."""
        contents = {path.name: path.read_bytes() for path in directory.iterdir()}
        live = {name: Content(data, data) for name, data in contents.items()}
        return cls(live, dict(live))

    def seen(self) -> Files:
        """What a process finds while the power is on."""
        return {name: content.written for name, content in self.live.items()}

    def apply(self, event: Event) -> None:
        """Take account of one operation."""
        operation, *names = event
        getattr(self, f"_{operation}")(*names)

    def after_power_loss(self) -> Iterator[Files]:
        """All directories that may be found if the power is lost now."""
        for choice in itertools.product(*([{}, *ways] for ways in self.pending)):
            names: dict[str, Content | None] = dict(self.durable)
            for change in choice:
                names.update(change)
            there = {name: content for name, content in names.items() if content is not None}
            contents = {id(content): content for content in there.values()}
            for found in itertools.product(*(content.after_power_loss() for content in contents.values())):
                data = dict(zip(contents, found, strict=True))
                yield {name: data[id(content)] for name, content in there.items()}

    def copied(self) -> Disk:
        """Another one, that goes its own way from here."""
        return copy.deepcopy(self)

    def _change(self, *ways: Change) -> None:
        self.pending.append(list(ways))
        for name, content in ways[0].items():
            if content is None:
                self.live.pop(name, None)
            else:
                self.live[name] = content

    def _create(self, name: str) -> None:
        if name in self.live:  # emptied, under all its names
            self.live[name].written = b""
        else:
            self._change({name: Content()})

    def _write(self, name: str, data: bytes) -> None:
        self.live[name].written += data

    def _sync_file(self, name: str) -> None:
        self.live[name].durable = self.live[name].written

    def _sync_directory(self, _: str) -> None:
        self.durable = dict(self.live)
        self.pending.clear()

    def _rename(self, source: str, target: str) -> None:
        content = self.live[source]
        if self.live.get(target) is not content:  # of two links to one file, rename(2) leaves both
            self._change({source: None, target: content}, {target: content})

    def _keep_as(self, source: str, target: str) -> None:
        self._change({target: self.live[source]})

    def _remove(self, name: str) -> None:
        if name in self.live:
            self._change({name: None})


def moments(events: list[Event]) -> Iterator[tuple[list[Event], bool]]:
    """The events between two moments at which power may be lost, and whether the last of all has passed.

    No moment lies within the writes of a file: until it is synced, it may be found torn anywhere.
    """
    some: list[Event] = []
    for i, event in enumerate(events):
        some.append(event)
        if event[0] == "write" and i + 1 < len(events) and events[i + 1][0] == "write":
            continue
        yield some, i + 1 == len(events)
        some = []


def written_out(files: Files, directory: Path) -> Path:
    """Those files, and no others, in a directory."""
    directory.mkdir(exist_ok=True)
    for path in directory.iterdir():
        if path.name not in files:
            path.unlink()
    for name, content in files.items():
        path = directory / name
        path.unlink(missing_ok=True)  # it may be a link
        path.write_bytes(content)
    return directory
