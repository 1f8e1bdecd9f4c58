"""Files that somebody made to do harm, one function each: they get a directory with an intact checkpoint of step 3.

Each says what to load afterwards. ``canary`` is a file that their code would make.
"""

from __future__ import annotations

import io
import os
import pickle
import socket
import struct
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import xxhash

from neuromanifold_gpt.checkpoint.archive import TensorRecord
from neuromanifold_gpt.checkpoint.commit import open_complete
from neuromanifold_gpt.checkpoint.digest import file_digest
from neuromanifold_gpt.checkpoint.manifest import FileRecord, Manifest, read_manifest
from neuromanifold_gpt.checkpoint.naming import CheckpointPaths, paths_of_name, step_name
from neuromanifold_gpt.checkpoint.writer import STAMP_KEY

GIGABYTE = 1 << 30
Hostile = Callable[[CheckpointPaths, Path], Path]


class Calls:
    """Unpickled, it calls a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


class SetsState:
    """Unpickled, its ``__setstate__`` runs."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __setstate__(self, state: dict[str, str]) -> None:
        Path(state["canary"]).touch()


def code(canary: Path) -> dict[str, object]:
    """Objects that run code when they are unpickled."""
    touch = f"open({str(canary)!r}, 'w')"
    return {
        "os.system": Calls(os.system, f"touch '{canary}'"),
        "eval": Calls(eval, touch),
        "exec": Calls(exec, touch),
        "subprocess": Calls(subprocess.Popen, ["touch", str(canary)]),
        "getattr": Calls(getattr, Path(str(canary)), "touch"),
        "open": Calls(open, str(canary), "w"),
        "__setstate__": SetsState(str(canary)),
        "torch.load": Calls(torch.load, str(canary)),
        "pickle.loads": Calls(pickle.loads, pickle.dumps(Calls(eval, touch))),
    }


def opcodes(canary: Path) -> dict[str, bytes]:
    """Pickles that no pickler writes."""
    path = str(canary).encode()
    touch = b"touch '" + path + b"'"
    return {
        "INST": b"(S'" + touch.replace(b"'", b'"') + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'" + touch.replace(b"'", b'"') + b"'\no.",
        "protocol 4": pickle.dumps(Calls(os.system, touch.decode()), protocol=4),
        "a dotted global": b"\x80\x02ctorch\nos.system\nX" + struct.pack("<I", len(touch)) + touch + b"\x85R.",
        "a blocked module": b"\x80\x02csys\nexit\n)R.",
        "an extension": b"\x80\x02\x82\x01.",
        "a persistent id": b"\x80\x02X\x01\x00\x00\x00xQ.",
    }


def memory_bombs() -> dict[str, bytes]:
    """Pickles of a few bytes that ask for gigabytes, or for time without end."""
    number = b"\x8a\x05" + struct.pack("<Q", 4 * GIGABYTE)[:5]
    lists = b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60))
    return {
        "bytearray": b"\x80\x02c__builtin__\nbytearray\n" + number + b"\x85R.",
        "bytearray by its new name": b"\x80\x02cbuiltins\nbytearray\n" + number + b"\x85R.",
        "bytearray from the memo": b"\x80\x02]q\x02(c__builtin__\nbytearray\nq\x01h\x01" + number + b"\x85Re.",
        "bytearray with its number from the memo": b"\x80\x02("
        + number
        + b"\x85q\x05c__builtin__\nbytearray\nh\x05Rt.",
        "a tensor of nothing": b"\x80\x02}X\x05\x00\x00\x00model}X\x01\x00\x00\x00wctorch\nFloatTensor\n"
        + b"\x8a\x05"
        + struct.pack("<Q", GIGABYTE)[:5]
        + b"\x85Rss.",
        "lists in lists, doubled": b"\x80\x02}X\x05\x00\x00\x00model(" + lists + b"ts.",
        "lists in lists, deep": b"\x80\x02}X\x05\x00\x00\x00model" + b"]" * 100_000 + b"a" * 99_999 + b"s.",
    }


def archive(pickled: bytes, *, compressed: bool = False, more: dict[str, bytes] | None = None) -> bytes:
    """What ``torch.save`` writes, around a pickle of one's own."""
    buffer = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", method) as writer:
        for name, data in {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n", **(more or {})}.items():
            writer.writestr(f"archive/{name}", data)
    return buffer.getvalue()


def saved(content: object, *, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def forge(paths: CheckpointPaths, role: str, content: bytes, tensors: tuple[TensorRecord, ...] = ()) -> Path:
    """Put a file in the place of one of a checkpoint, with a manifest of which every digest matches."""
    path = {"model": paths.model, "optimizer": paths.optimizer}[role]
    path.write_bytes(content)
    manifest = read_manifest(paths.manifest)
    files = {**manifest.files, role: FileRecord(path.name, len(content), file_digest(path))}
    forged = replace(manifest, files=files, tensors={**manifest.tensors, role: tensors})
    paths.manifest.write_bytes(forged.to_bytes())
    return paths.model


def unified(paths: CheckpointPaths, content: bytes) -> Path:
    path = paths.directory / "unified.ckpt"
    path.write_bytes(content)
    return path


def rewritten(paths: CheckpointPaths, change: Callable[[str], str]) -> Path:
    """A manifest with its text changed, and its digest made to match."""
    text = paths.manifest.read_text()
    body = change(text[: text.rindex(',\n "digest"')] + "\n}")
    digest = xxhash.xxh3_128_hexdigest(body.encode())
    paths.manifest.write_bytes(f'{body[:-2]},\n "digest": "{digest}"\n}}\n'.encode())
    return paths.model


def _in_each_place(canary: Path) -> dict[str, Hostile]:
    found: dict[str, Hostile] = {}
    stamp = {"format_version": 1, "file": "model", "pair": "0" * 32, "global_step": 3}

    def add(what: str, build: Callable[[], bytes], places: list[str]) -> None:
        for place in places:
            if place == "unified":
                found[f"{what} in a unified file"] = lambda paths, _: unified(paths, build())
            else:
                found[f"{what} in the {place} file"] = lambda paths, _, place=place: forge(paths, place, build())

    for name, trap in code(canary).items():
        add(f"{name} among weights", lambda trap=trap: saved({"state_dict": {"w": trap}}), ["model", "unified"])
        add(f"{name} beside them", lambda trap=trap: saved({"optimizer_states": [trap]}), ["optimizer"])
        hyper = {"state_dict": {}, "hyper_parameters": {"a": [{"b": trap}]}, STAMP_KEY: stamp} if trap else {}
        add(f"{name} in hyper-parameters", lambda content=hyper: saved(content), ["model", "unified"])
        old = {"model": {}, "trap": trap}
        found[f"{name} in a file of torch 1.5"] = lambda paths, _, old=old: unified(paths, saved(old, zipped=False))
    for name, pickled in {**opcodes(canary), **memory_bombs()}.items():
        add(f"{name} in a pickle", lambda pickled=pickled: archive(pickled), ["model", "optimizer", "unified"])
        found[f"{name} in a bare pickle"] = lambda paths, _, pickled=pickled: unified(paths, pickled)
    return found


def _archives() -> dict[str, Hostile]:
    plain = b"\x80\x02}X\x05\x00\x00\x00model}s."
    twice = io.BytesIO()
    with zipfile.ZipFile(twice, "w") as writer:
        writer.writestr("archive/data.pkl", plain)
        writer.fp.seek(0, os.SEEK_END)  # type: ignore[union-attr]
        writer.writestr("archive/data.pkl", b"\x80\x02}.")

    def declaring(size: int) -> bytes:
        """The directory says that the pickle is larger than the file."""
        content = bytearray(archive(plain))
        at = content.index(b"PK\1\2")
        struct.pack_into("<II", content, at + 20, size, size)
        return bytes(content)

    def overlapping() -> bytes:
        content = bytearray(archive(plain))
        first = content.index(b"PK\1\2")
        second = content.index(b"PK\1\2", first + 4)
        struct.pack_into("<I", content, second + 42, 0)
        return bytes(content)

    def torchscript() -> bytes:
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
        return buffer.getvalue()

    bombs = {
        "a compressed pickle of a gigabyte": lambda: archive(bytes(GIGABYTE), compressed=True),
        "a compressed record beside it": lambda: archive(plain, compressed=True, more={"data/0": bytes(GIGABYTE // 4)}),
        "a record of 4 GB by its own account": lambda: declaring(0xFFFFFFF0),
        "a record of 3 GB by its own account": lambda: declaring(3 * GIGABYTE),
        "records that overlap": overlapping,
        "two pickles": twice.getvalue,
        "a TorchScript archive": torchscript,
        "200,000 records": lambda: archive(plain, more={f"data/{i}": b"" for i in range(200_000)}),
        "paths that lead outside": lambda: archive(b"\x80\x02.", more={"../../../../tmp/outside": b"x"}),
        "no pickle": lambda: archive(plain).replace(b"data.pkl", b"data.pk1"),
    }
    found: dict[str, Hostile] = {}
    for what, build in bombs.items():
        found[f"{what}, unified"] = lambda paths, _, build=build: unified(paths, build())
        found[f"{what}, separated"] = lambda paths, _, build=build: forge(paths, "model", build())
    return found


def _manifests() -> dict[str, Hostile]:
    name = step_name(3)

    def text(old: str, new: str) -> Hostile:
        def build(paths: CheckpointPaths, _: Path) -> Path:
            assert old in paths.manifest.read_text()
            return rewritten(paths, lambda content: content.replace(old, new, 1))

        return build

    def raw(content: bytes) -> Hostile:
        def build(paths: CheckpointPaths, _: Path) -> Path:
            paths.manifest.write_bytes(content)
            return paths.model

        return build

    def sparse(size_bytes: int) -> Hostile:
        def build(paths: CheckpointPaths, _: Path) -> Path:
            with paths.manifest.open("r+b") as file:
                file.truncate(size_bytes)
            return paths.model

        return build

    def records(make: Callable[[TensorRecord, int], tuple[TensorRecord, ...]]) -> Hostile:
        def build(paths: CheckpointPaths, _: Path) -> Path:
            manifest = read_manifest(paths.manifest)
            first = manifest.tensors["model"][0]
            forged = make(first, manifest.files["model"].size_bytes)
            changed = Manifest(**{**vars(manifest), "tensors": {**manifest.tensors, "model": forged}})
            paths.manifest.write_bytes(changed.to_bytes())
            return paths.model

        return build

    head = b'{\n "format": "neuromanifold_gpt separated checkpoint",\n "format_version": 1,\n "name": '
    names = [
        "../older-model.pt",
        "/etc/passwd",
        "",
        ".",
        "..",
        "x\\u0000y",
        f"./{name}-model.pt",
        f"sub/{name}-model.pt",
    ]
    numbers = [
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "-1",
        "true",
        "3.0",
        '"3"',
        "null",
        "9" * 4000,
        "9" * 5000,
        "1e5",
    ]
    return {
        **{f"a file named {other!r}": text(f'"name": "{name}-model.pt"', f'"name": "{other}"') for other in names},
        **{f"step {number:.12}": text('"step": 3', f'"step": {number}') for number in numbers},
        **{
            f"metric {number:.12}": text('"metrics": {}', f'"metrics": {{\n  "a": {number}\n }}')
            for number in numbers[:4]
        },
        **{f"offset {number:.12}": text('"offset": ', f'"offset": {number}') for number in ("-", "9" * 400, "1e")},
        "100,000 lists in each other": raw(head + b"[" * 100_000),
        "60 MB of lists": raw(head + b"[" + b"[]," * 20_000_000 + b"[]]}"),
        "60 MB of lists on lines of their own": raw(head + b"[" + b"[],\n" * 15_000_000 + b"[]]\n}"),
        "60 MB of text": raw(head + b'"' + b"x" * 60_000_000 + b'"}'),
        "60 MB of digits": raw(head + b"9" * 60_000_000 + b"}"),
        "a terabyte": sparse(1 << 40),
        "no text": raw(b"\xff\xfe" + head),
        "a list": raw(b'["neuromanifold_gpt separated checkpoint"]'),
        "another role": text('"files": {\n', '"files": {\n  "../x": {"name": "a", "size_bytes": 1, "digest": ""},\n'),
        "tensors over each other": records(
            lambda first, size: tuple(replace(first, offset=i, size_bytes=size - i) for i in range(1000))
        ),
        "a tensor of a terabyte": records(lambda first, _: (replace(first, size_bytes=1 << 40),)),
        "a tensor far behind the end": records(lambda first, _: (replace(first, offset=1 << 60),)),
    }


def _places() -> dict[str, Hostile]:
    """What lies where a file should be."""
    found: dict[str, Hostile] = {}

    def add(what: str, make: Callable[[Path], None]) -> None:
        def build(paths: CheckpointPaths, role: str) -> Path:
            path = {"model": paths.model, "optimizer": paths.optimizer, "manifest": paths.manifest}[role]
            path.rename(paths.directory.parent / "outside")
            make(path)
            return paths.model

        for role in ("model", "optimizer", "manifest"):
            found[f"{what} as {role}"] = lambda paths, _, role=role: build(paths, role)

        def build_unified(paths: CheckpointPaths, _: Path) -> Path:
            path = paths.directory / "unified.ckpt"
            make(path)
            return path

        if what != "a link to the right file outside":
            found[f"{what} as unified file"] = build_unified

    add("a pipe", os.mkfifo)
    add("a link to endless zeros", lambda path: path.symlink_to("/dev/zero"))
    add("a link to the terminal", lambda path: path.symlink_to("/dev/tty"))
    add("a link to the right file outside", lambda path: path.symlink_to(path.parent.parent / "outside"))
    add("a link to /etc/passwd", lambda path: path.symlink_to("/etc/passwd"))
    add("a socket", _bind)
    return found


def _bind(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket may have some hundred bytes only
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(here)


def catalogue(canary: Path) -> dict[str, Hostile]:
    """All of them, by what they are."""
    return {**_in_each_place(canary), **_archives(), **_manifests(), **_places()}


def target(directory: Path) -> CheckpointPaths:
    """The checkpoint that is replaced."""
    paths = paths_of_name(directory, step_name(3))
    open_complete(paths)
    return paths
