"""Find and read what a program saved: checkpoints of any framework, as trees of tensors and plain values.

An artifact is any file that is neither a log nor text for people. Files that belong together (a folder
``checkpoint-50``; ``step50-model.pt`` and ``step50-optimizer.pt``) form one unit: a checkpoint.
"""

from __future__ import annotations

import io
import json
import mmap
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuromanifold_gpt.certify import inert_pickle
from neuromanifold_gpt.certify.errors import UnreadableError
from neuromanifold_gpt.certify.metrics import YAML, history_rows, is_metric_file, is_text_log
from neuromanifold_gpt.certify.safetensors_file import read_safetensors

_STEP_IN_NAME = re.compile(
    r"(?:global[_-]?step|step|iteration|iter|checkpoint|ckpt|update|model)s?[=_-]?(\d+)|^(\d+)$|[_-](\d+)$",
    re.IGNORECASE,
)
_EPOCH_IN_NAME = re.compile(r"epoch[=_-]?\d+", re.IGNORECASE)
_STEP_KEYS = ("global_step", "step", "steps", "iter_num", "iteration", "iter", "it", "updates", "num_updates")
_MAX_TEXT_BYTES = 65536
_BINARY = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".npz", ".npy", ".safetensors", ".tar", ".h5", ".dat")
_TORCH_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_CONTROLS = {chr(number) for number in range(32)} - set("\t\n\r")
_RENAMED_PER_START = re.compile(r"version_\d+|-v\d+(?=\.)|\d{4}-\d\d-\d\d|\d\d-\d\d-\d\d|\d{8,}")


@dataclass(frozen=True)
class Artifact:
    """One saved file.

    Attributes:
        relative: its path below the output directory.
        key: the same without what a program makes up anew at each start (``version_1``, ``-v1``).
        unit: the checkpoint that it belongs to.
        step: the step in its name; ``None`` if there is none.
    """

    relative: str
    path: Path
    key: str
    unit: str
    step: int | None


@dataclass
class Unit:
    """The files of one checkpoint."""

    name: str
    step: int | None
    files: list[Artifact] = field(default_factory=list)

    @property
    def form(self) -> str:
        """What units of the same kind have in common: the name without its numbers."""
        return without_numbers(self.name)

    @property
    def file_forms(self) -> frozenset[str]:
        """The names of the files, without numbers."""
        return frozenset(without_numbers(file.relative) for file in self.files)


def without_numbers(name: str) -> str:
    """``checkpoint-step000050.pt`` becomes ``checkpoint-step#.pt``."""
    return re.sub(r"\d+", "#", name)


def find_artifacts(out: Path) -> dict[str, Artifact]:
    """Every saved file below ``out``, by its relative path."""
    found = {}
    for path in sorted(out.rglob("*")):
        relative = str(path.relative_to(out))
        if is_artifact_name(relative) and path.is_file() and not path.is_symlink() and not _is_history(path):
            found[relative] = artifact_at(out, relative)
    return found


def is_artifact_name(relative: str) -> bool:
    """Whether the path can be that of a saved file rather than of a log."""
    return not is_metric_file(relative) and not is_text_log(relative) and "__pycache__" not in relative


def _is_history(path: Path) -> bool:
    if path.suffix != ".json":
        return False
    try:
        return bool(history_rows(content := json.loads(path.read_text()))) and isinstance(content, list)
    except (ValueError, OSError):
        return False


def units_of(artifacts: Mapping[str, Artifact]) -> list[Unit]:
    """Artifacts gathered into checkpoints."""
    units: dict[str, Unit] = {}
    for artifact in artifacts.values():
        units.setdefault(artifact.unit, Unit(artifact.unit, artifact.step)).files.append(artifact)
    return list(units.values())


def artifact_at(out: Path, relative: str) -> Artifact:
    """What the path of a saved file tells of it; the file need not exist."""
    path = out / relative
    parts = Path(relative).parts
    for depth, part in enumerate(parts):
        is_file = depth == len(parts) - 1
        step = step_in_name(part if not is_file else _stem(part))
        if step is not None or _EPOCH_IN_NAME.search(part):
            prefix = str(Path(*parts[: depth + 1]))
            unit = prefix if not is_file else str(Path(*parts[:depth], f"step {step}" if step is not None else part))
            return Artifact(relative, path, _RENAMED_PER_START.sub("*", relative), unit, step)
    return Artifact(relative, path, _RENAMED_PER_START.sub("*", relative), relative, None)


def step_in_name(name: str) -> int | None:
    """The step that a file's or folder's name tells: 50 for ``checkpoint-50``, ``epoch=1-step=50``, ``iter_50``."""
    found = [match for match in _STEP_IN_NAME.finditer(_EPOCH_IN_NAME.sub("", name)) if any(match.groups())]
    return int(next(filter(None, found[0].groups()))) if found else None


def step_in_path(relative: str) -> int | None:
    """The step that the path of a saved file tells."""
    parts = Path(relative).parts
    found = [step_in_name(part) for part in parts[:-1]] + [step_in_name(_stem(parts[-1]))]
    return next((step for step in found if step is not None), None)


def _stem(name: str) -> str:
    """Without extensions and without the role behind the number: ``step50-model.pt`` becomes ``step50``."""
    return re.sub(r"\.[A-Za-z][\w.\-]*$", "", name)


def read_tree(path: Path) -> Any:
    """The content of a saved file as a tree of dicts and lists with tensors, arrays and plain values.

    Raises:
        UnreadableError: it is torn, or its form is not known. Nothing in the file is executed.
    """
    try:
        with path.open("rb") as file:
            beginning = file.read(16)
        if path.suffix == ".safetensors":
            return read_safetensors(path)
        if path.suffix == ".json":
            return json.loads(path.read_text())
        if beginning[:6] == b"\x93NUMPY":
            return np.load(path, allow_pickle=False)
        if beginning[:2] == b"PK":
            return _zip_archive(path)
        if beginning[:1] == b"\x80":
            return _torch_or_pickle(path)
        if not beginning:
            raise UnreadableError(f"{path.name}: it is empty")
        if path.suffix in YAML:
            return _lines_of_yaml(path.read_text())
        if path.suffix not in _BINARY and path.stat().st_size <= _MAX_TEXT_BYTES:
            text = path.read_bytes().decode()
            if text.isprintable() or not set(text) & _CONTROLS:
                return text  # such as a file "latest" that names a checkpoint
    except UnreadableError:
        raise
    except Exception as error:  # a torn or hostile file can raise nearly anything
        reason = (str(error).splitlines() or [""])[0]
        raise UnreadableError(f"{path.name}: {type(error).__name__}: {reason}") from error
    raise UnreadableError(f"{path.name}: of a form that is not known")


def _lines_of_yaml(text: str) -> dict[str, Any]:
    """What stands behind the colon of each line, by its key: enough to compare by, without a parser of YAML."""
    found: dict[str, Any] = {}
    for number, line in enumerate(text.splitlines()):
        key, _, value = (part.strip(" -") for part in line.partition(":"))
        whole = re.fullmatch(r"\d+", value)
        found[f"{key} (line {number})" if key in found else key] = int(value) if whole else value
    return found


def _zip_archive(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if names and all(name.endswith(".npy") for name in names):
            return {name.removesuffix(".npy"): _array(archive, name) for name in names}
    parts = concatenated_archives(path)
    if len(parts) == 1:
        return _torch_or_pickle(path, mapped=True)
    trees = []
    for begin, end in parts:
        with path.open("rb") as file:
            file.seek(begin)
            trees.append(torch.load(io.BytesIO(file.read(end - begin)), map_location="cpu", weights_only=True))
    return trees


def _array(archive: zipfile.ZipFile, name: str) -> Any:
    """One array of an ``.npz``; of one with objects, as states of random number generators are, what is pickled."""
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _, _, dtype = read_header(file)
        if dtype.hasobject:
            return inert_pickle.load(io.BytesIO(file.read()))
    with archive.open(name) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def concatenated_archives(path: Path) -> list[tuple[int, int]]:
    """Where in a file each of its ZIP archives begins and ends: torch's distributed checkpoints hold one per tensor.

    Readers of such a file see the last one alone.

    Raises:
        UnreadableError: something else stands before an archive.
    """
    parts: list[tuple[int, int]] = []
    end = path.stat().st_size
    with path.open("rb") as file:
        while end:
            with mmap.mmap(file.fileno(), end, access=mmap.ACCESS_READ) as beginning:
                try:
                    archive = zipfile.ZipFile(beginning)  # type: ignore[call-overload]
                    begin = min(info.header_offset for info in archive.infolist())
                except (zipfile.BadZipFile, ValueError) as error:
                    raise UnreadableError(f"{path.name}: other data before a ZIP archive") from error
                archive.close()
            parts.append((begin, end))
            end = begin
    return parts[::-1]


def _torch_or_pickle(path: Path, *, mapped: bool = False) -> Any:
    options: dict[str, Any] = {"map_location": "cpu", "mmap": mapped or None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.load(path, weights_only=True, **options)
        except (pickle.UnpicklingError, RuntimeError, ValueError, AttributeError, EOFError):
            pass
        try:
            return torch.load(path, weights_only=False, pickle_module=inert_pickle, **options)
        except (RuntimeError, ValueError, AttributeError, pickle.UnpicklingError):
            if mapped:
                raise
        with path.open("rb") as file:  # a pickle that torch.save did not write
            tree = inert_pickle.load(file)
            if file.read(1) or tree == _TORCH_MAGIC_NUMBER:  # what torch.save writes has several, one behind another
                raise UnreadableError(f"{path.name}: more data follows than one pickle, or torch.save's is torn")
            return tree


def step_in_content(tree: Any) -> int | None:
    """The step that a checkpoint says it was taken at, if it says so near the top."""
    if not isinstance(tree, Mapping):
        return None
    for name in _STEP_KEYS:
        value = tree.get(name)
        if isinstance(value, np.integer | torch.Tensor) and np.ndim(value) == 0:
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    inner = (step_in_content(value) for key, value in tree.items() if key not in ("args", "config", "optimizer"))
    return next((step for step in inner if step is not None), None)


def is_readable(artifact: Artifact) -> bool:
    """Whether the file is whole, as far as its form can tell."""
    try:
        read_tree(artifact.path)
    except UnreadableError:
        return False
    return True
