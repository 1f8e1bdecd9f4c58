"""The manifest: the commit record of a checkpoint, written last.

A JSON object in one exact spelling. Its last member, ``digest``, is the xxh3-128 of the text before it, and a reader
accepts the file only if writing its content again gives the same bytes: an altered character cannot pass.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from neuromanifold_gpt.checkpoint.archive import TensorRecord
from neuromanifold_gpt.checkpoint.errors import CheckpointNotFoundError, DamagedCheckpointError
from neuromanifold_gpt.checkpoint.naming import MANIFEST_SUFFIX, CheckpointPaths, paths_of_name, previous
from neuromanifold_gpt.checkpoint.storage import open_regular, raise_if_refused

FORMAT = "neuromanifold_gpt separated checkpoint"
FORMAT_VERSION = 1
MODEL, OPTIMIZER = "model", "optimizer"

MAXIMUM_BYTES = 64 << 20  # some 200,000 tensors; reading it takes some ten times as much memory
_HEX_128 = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class FileRecord:
    """One data file: its name beside the manifest, its size and the xxh3-128 of its bytes."""

    name: str
    size_bytes: int
    digest: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint consists of.

    Attributes:
        name: what its files have in common, ``checkpoint-step000050``.
        step: global step (number of optimizer steps taken).
        epoch: epoch in which it was taken, if the training has epochs.
        pair: digest of the content of both data files together; each of them holds it too.
        files: ``"model"`` and, unless the checkpoint is model-only, ``"optimizer"``.
        tensors: the tensors of each file, in file order.
        metrics: numbers that describe the state, such as ``val_loss``.
        environment: what can change bits between two runs (see ``environment.py``).
        details: what else is worth knowing and must not be inside the files: time, host, run settings.
    """

    name: str
    step: int
    epoch: int | None
    pair: str
    files: dict[str, FileRecord]
    tensors: dict[str, tuple[TensorRecord, ...]]
    metrics: dict[str, float] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def model_only(self) -> bool:
        """Whether there is no optimizer file."""
        return OPTIMIZER not in self.files

    def to_bytes(self) -> bytes:
        """The file's content."""
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, **vars(self), "model_only": self.model_only}
        content["metrics"] = {key: _number_to_json(value) for key, value in self.metrics.items()}
        text = json.dumps(content, indent=1, allow_nan=False, default=_fields)
        return f'{text[:-2]},\n "digest": "{_digest(text)}"\n}}\n'.encode()


def read_manifest(path: Path, paths: CheckpointPaths | None = None) -> Manifest:
    """Read and check a manifest; ``paths`` are those of its checkpoint, where ``path`` is not its final name.

    Raises:
        CheckpointNotFoundError: there is no such file.
        DamagedCheckpointError: it is not, to the letter, what was written.
        UnreadableFileError: the system refused to read it.
    """
    paths = paths or paths_of_name(path.parent, path.name.removesuffix(MANIFEST_SUFFIX))
    try:
        with open_regular(path) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes > MAXIMUM_BYTES:
                raise _damaged(path, f"at most {MAXIMUM_BYTES} bytes", f"{size_bytes}")
            raw = file.read()
    except FileNotFoundError:
        raise CheckpointNotFoundError(f"{path}: there is no such manifest.") from None
    except OSError as error:
        raise_if_refused(path, error)
        raise _damaged(path, "a readable file", str(error)) from error
    try:
        _refuse_many_values(raw)
        content = json.loads(raw, parse_constant=_refuse_constant)
        manifest = _parse(content, paths)
        unaltered = manifest.to_bytes() == raw
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(path, "a manifest of this package", f"{type(error).__name__}: {error}") from error
    if not unaltered:
        raise _damaged(path, "the bytes that were written", "others (the digest does not match)")
    return manifest


def _refuse_many_values(raw: bytes) -> None:
    """Ours has a line for each value: no small file of many values."""
    most = 2 * raw.count(b"\n")
    if raw.count(b",") > most and _STRING.sub(b"", raw).count(b",") > most:  # names may have commas
        raise ValueError("more values than lines")


_STRING = re.compile(rb'"(?:[^"\\]|\\.?)*+(?:"|\Z)', re.DOTALL)  # to the end where it has none: in linear time


def looks_like_manifest(path: Path) -> bool:
    """Whether a path is a file that claims, in its first bytes, to be one of our manifests.

    Raises:
        UnreadableFileError: the system refused to read it.
    """
    try:
        with open_regular(path) as file:
            return FORMAT.encode() in file.read(64)
    except OSError as error:
        raise_if_refused(path, error)
        return False  # a pipe, a link


def shown(name: str) -> str:
    """A name from a file, for a message: control characters in it must not reach a terminal."""
    return name if name.isprintable() else ascii(name)


def _parse(content: Any, paths: CheckpointPaths) -> Manifest:
    if content["format"] != FORMAT or content["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format {content['format']!r} version {content['format_version']!r}")
    manifest = Manifest(
        name=_checked(content["name"], str),
        step=_count(content["step"]),
        epoch=None if content["epoch"] is None else _count(content["epoch"]),
        pair=_hex(content["pair"]),
        files={role: _file_record(role, record, paths) for role, record in content["files"].items()},
        tensors={role: tuple(map(_tensor_record, records)) for role, records in content["tensors"].items()},
        metrics={key: _number_from_json(value) for key, value in content["metrics"].items()},
        environment=_checked(content["environment"], dict),
        details=_checked(content["details"], dict),
    )
    if MODEL not in manifest.files or set(manifest.files) != set(manifest.tensors):
        raise ValueError(f"files {sorted(manifest.files)}, tensors of {sorted(manifest.tensors)}")
    for role, records in manifest.tensors.items():  # a reader takes memory for what they say
        places = sorted({(record.offset, record.size_bytes) for record in records})  # of tied weights the same
        ends = [0, *(offset + size_bytes for offset, size_bytes in places)]
        if any(offset < end for (offset, _), end in zip(places, ends, strict=False)):
            raise ValueError(f"tensors that overlap in the {role} file")
        if ends[-1] > manifest.files[role].size_bytes:
            raise ValueError(f"a tensor behind the end of the {role} file")
    return manifest


def _file_record(role: str, record: Mapping[str, Any], paths: CheckpointPaths) -> FileRecord:
    # Only a name that this package would have given is followed: nothing outside the directory, no link to elsewhere.
    final = {MODEL: paths.model, OPTIMIZER: paths.optimizer}[role]
    if record["name"] not in (final.name, previous(final).name):
        raise ValueError(f"{role} file named {record['name']!r}, expected {final.name!r}")
    return FileRecord(record["name"], _count(record["size_bytes"]), _hex(record["digest"]))


def _tensor_record(record: Mapping[str, Any]) -> TensorRecord:
    return TensorRecord(
        path=_checked(record["path"], str),
        dtype=_checked(record["dtype"], str),
        shape=tuple(_count(size) for size in record["shape"]),
        offset=_count(record["offset"]),
        size_bytes=_count(record["size_bytes"]),
        digest=_hex(record["digest"]),
    )


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"expected a count, found {value!r:.40}")
    return value


def _hex(value: Any) -> str:
    if not isinstance(value, str) or not _HEX_128.fullmatch(value):
        raise ValueError(f"expected an xxh3-128 digest, found {value!r:.40}")
    return value


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"expected {kind.__name__}, found {value!r:.40}")
    return value


def _fields(record: Any) -> dict[str, Any]:
    if not isinstance(record, FileRecord | TensorRecord):
        raise TypeError(f"expected plain values, found {record!r:.40}")
    return vars(record)  # asdict would copy, which takes as long as all the rest


def _number_to_json(value: float) -> float | str:
    # JSON has no nan and no infinity.
    return value if isinstance(value, int) or math.isfinite(value) else repr(float(value))


def _number_from_json(value: Any) -> float:
    if isinstance(value, str) and value not in ("nan", "inf", "-inf"):
        raise ValueError(f"expected a number, found {value!r:.40}")
    return float(value) if isinstance(value, str) else _checked(value, type(value) if type(value) is int else float)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"the constant {name} is not JSON")


def _digest(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode())


def _damaged(path: Path, expected: str, found: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(
        f"{path}: the manifest is damaged: expected {expected}, found {found}. Use an older checkpoint of the same "
        "directory (latest_checkpoint finds the newest intact one)."
    )
