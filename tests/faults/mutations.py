"""Damage to one checkpoint: what of it is changed, and how."""

from __future__ import annotations

import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from neuromanifold_gpt import Checkpoint
from neuromanifold_gpt.checkpoint.commit import open_complete
from neuromanifold_gpt.checkpoint.naming import paths_of_name

MODEL, OPTIMIZER, MANIFEST = "model", "optimizer", "manifest"
BLOCK_BYTES = 512  # of a disk; those of file systems are multiples


@dataclass(frozen=True)
class Mutation:
    """A change of one file: ``tensor`` is a tensor that it hits, if it lies in the data of one."""

    role: str
    what: str
    change: Callable[[Path], None]
    tensor: str | None = None

    def __str__(self) -> str:
        return f"{self.what} in the {self.role} file"


class Specimen:
    """A directory with an older checkpoint and a newer one, which is damaged and healed again."""

    def __init__(self, directory: Path, newest: str) -> None:
        self.directory = directory
        self.newest: Checkpoint = open_complete(paths_of_name(directory, newest))
        self.paths = {
            MODEL: self.newest.paths.model,
            OPTIMIZER: self.newest.paths.optimizer,
            MANIFEST: self.newest.paths.manifest,
        }
        self.content = {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}

    def bytes_of(self, role: str) -> bytes:
        return self.content[self.paths[role].name]

    def tensor_at(self, role: str, offset: int) -> str | None:
        """Path of a tensor whose data is there."""
        for record in self.newest.manifest.tensors.get(role, ()):
            if record.offset <= offset < record.offset + record.size_bytes:
                return record.path
        return None

    def heal(self) -> None:
        """Everything is as it was."""
        for path in self.directory.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in self.content or not path.is_file() or path.is_symlink():
                path.unlink()
        for name, content in self.content.items():
            path = self.directory / name
            if not path.exists() or path.read_bytes() != content:
                path.write_bytes(content)

    def flip(self, role: str, offset: int, bit: int) -> Mutation:
        """One bit."""
        content = bytearray(self.bytes_of(role))
        content[offset] ^= 1 << bit
        what = f"bit {bit} of byte {offset} flipped"
        return Mutation(role, what, _writes(content), self.tensor_at(role, offset))

    def replaced(self, role: str, start: int, new: bytes, old_bytes: int, what: str) -> Mutation | None:
        """A range of bytes by others; ``None`` where that changes nothing."""
        old = self.bytes_of(role)
        content = old[:start] + new + old[start + old_bytes :]
        if content == old:
            return None
        first = next((i for i, (a, b) in enumerate(zip(old, content, strict=False)) if a != b), start)
        same_size = len(content) == len(old)
        return Mutation(role, what, _writes(content), self.tensor_at(role, first) if same_size else None)

    def truncated(self, role: str, length: int) -> Mutation:
        """The file ends early."""
        content = self.bytes_of(role)[:length]
        tensors = self.newest.manifest.tensors.get(role, ())
        lost = next((record.path for record in tensors if record.offset + record.size_bytes > length), None)
        return Mutation(role, f"cut off at byte {length}", _writes(content), lost)

    def boundaries(self, role: str) -> list[int]:
        """Where something ends and something else begins: zip headers, data, descriptors, the directory, blocks."""
        length = len(self.bytes_of(role))
        edges = {0, 1, length - 1, *range(0, length, BLOCK_BYTES)}
        if role != MANIFEST:
            with zipfile.ZipFile(self.paths[role]) as archive:
                edges |= {archive.start_dir, length - 22}
                for info in archive.infolist():
                    name_bytes, extra_bytes = (
                        int.from_bytes(self.bytes_of(role)[info.header_offset + at :][:2], "little") for at in (26, 28)
                    )
                    data = info.header_offset + 30 + name_bytes + extra_bytes
                    edges |= {info.header_offset, info.header_offset + 30, data, data + info.file_size}
                    edges |= {data + info.file_size + 16}
        else:
            edges |= {i for i, byte in enumerate(self.bytes_of(role)) if byte in b'\n"{'}
        return sorted(edge for edge in edges if 0 <= edge < length)

    def tensor_bytes(self, role: str) -> set[int]:
        """Offsets of all bytes of tensor data."""
        records = self.newest.manifest.tensors.get(role, ())
        return {at for record in records for at in range(record.offset, record.offset + record.size_bytes)}


def _writes(content: bytes | bytearray) -> Callable[[Path], None]:
    return lambda path: (path.unlink(), path.write_bytes(content))[0]


def at_chosen_places(specimen: Specimen, role: str) -> Iterator[Mutation]:
    """Each byte that is no tensor data, every so-manieth that is, each boundary, each block."""
    chosen = random.Random(role)
    content, data = specimen.bytes_of(role), specimen.tensor_bytes(role)
    for offset in range(len(content)):
        if offset not in data or chosen.random() < 0.05:
            yield specimen.flip(role, offset, chosen.randrange(8))
    boundaries = specimen.boundaries(role)
    for edge in boundaries:
        for length in {edge, edge + 1, max(edge - 1, 0)} - {len(content)}:
            yield specimen.truncated(role, length)
    several = [
        change
        for edge in boundaries
        for change in (
            specimen.replaced(role, edge, b"\0", 0, f"a zero inserted at {edge}"),
            specimen.replaced(role, edge, b"", 1, f"byte {edge} left out"),
            specimen.replaced(role, edge, content[edge : edge + 16][::-1], 16, f"16 bytes turned around at {edge}"),
        )
    ]
    for block_bytes in (BLOCK_BYTES, 4096):
        for start in range(0, len(content), block_bytes):
            size = min(block_bytes, len(content) - start)
            other = content[-size:] if start < block_bytes else content[:size]
            several += [
                specimen.replaced(role, start, bytes(size), size, f"{size} zeros at {start}"),
                specimen.replaced(role, start, b"\xff" * size, size, f"{size} ones at {start}"),
                specimen.replaced(role, start, other, size, f"another block at {start}"),
            ]
    several += [
        specimen.replaced(role, len(content), extra, 0, f"{extra!r} appended")
        for extra in (b"\0", b"\n", b" ", b"PK\5\6", content[-22:], content)
    ]
    yield from (change for change in several if change is not None)


def of_whole_files(specimen: Specimen, role: str, foreign: dict[str, bytes]) -> Iterator[Mutation]:
    """Something else lies where the file should be; ``foreign`` has other files by what they are."""
    names = ["older", *foreign]
    older = next(name for name in specimen.content if name.endswith(specimen.paths[role].name[-9:]))
    everything = {"older": specimen.content[older], **foreign}
    for name in names:
        if everything[name] != specimen.bytes_of(role):
            yield Mutation(role, f"replaced by {name}", _writes(everything[name]))
    yield Mutation(role, "empty", _writes(b""))
    yield Mutation(role, "all zeros", _writes(bytes(len(specimen.bytes_of(role)))))
    elsewhere = specimen.directory / "moved"

    def as_directory(path: Path) -> None:
        path.unlink()
        path.mkdir()
        (path / "file").write_bytes(b"")

    def as_pipe(path: Path) -> None:
        path.unlink()
        os.mkfifo(path)

    def as_link(target: Path | None) -> Callable[[Path], None]:
        def change(path: Path) -> None:
            if target is None:
                path.rename(elsewhere)  # the right content, but in a place that is not the checkpoint's
            else:
                path.unlink()
            path.symlink_to(target or elsewhere)

        return change

    yield Mutation(role, "a directory in the place of it", as_directory)
    yield Mutation(role, "a pipe in the place of it", as_pipe)
    for what, target in {
        "itself": specimen.paths[role],
        "nothing": Path("/no/such"),
        "zeros": Path("/dev/zero"),
    }.items():
        yield Mutation(role, f"a link to {what} in the place of it", as_link(target))
    yield Mutation(role, "a link to its moved content in the place of it", as_link(None))
    yield Mutation(role, "missing", lambda path: path.unlink())


def of_the_manifest_s_spelling(specimen: Specimen) -> Iterator[Mutation]:
    """The same content, or nearly, in other JSON; and members twice."""
    text = specimen.bytes_of(MANIFEST).decode()
    content = json.loads(text)
    texts = {
        "without line ends": json.dumps(content),
        "indented by 2": json.dumps(content, indent=2) + "\n",
        "sorted": json.dumps(content, indent=1, sort_keys=True) + "\n",
        "a blank more": text.replace('": ', '":  ', 1),
        "DOS line ends": text.replace("\n", "\r\n"),
        "a byte order mark": "\ufeff" + text,
        "UTF-16": text.encode("utf-16").decode("latin1"),
        "an escaped letter": text.replace("checkpoint-", "\\u0063heckpoint-", 1),
        "step as a float": text.replace('"step": 3', '"step": 3.0', 1),
        "a member twice": text.replace('"step": 3,', '"step": 3,\n "step": 3,', 1),
        "a member more": text.replace('"step": 3,', '"step": 3,\n "note": "",', 1),
        "another digest": text.replace(content["digest"], "0" * 32),
        "the digest in capitals": text.replace(content["digest"], content["digest"].upper()),
        "no digest": text.replace(f',\n "digest": "{content["digest"]}"', ""),
        "another step": text.replace('"step": 3', '"step": 4', 1),
        "files exchanged": text.replace("-model.pt", "-x.pt").replace("-optimizer.pt", "-model.pt"),
    }
    for what, changed in texts.items():
        if changed != text:
            yield Mutation(MANIFEST, what, _writes(changed.encode("latin1" if what == "UTF-16" else "utf-8")))
