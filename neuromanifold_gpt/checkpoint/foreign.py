"""Read unified checkpoints, one file with everything, that other programs wrote.

The form is found by content, never by the file's name:

========== =================================================================================================
Lightning  ``pytorch-lightning_version`` and ``state_dict``
nanoGPT    ``model`` with ``model_args`` or ``iter_num``
plain      ``model_state_dict``, ``state_dict`` or ``model``, with ``optimizer...`` and so on; or a bare state dict
========== =================================================================================================
"""

from __future__ import annotations

import mmap
import re
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from neuromanifold_gpt.checkpoint.archive_check import check_archive
from neuromanifold_gpt.checkpoint.content_check import check_content
from neuromanifold_gpt.checkpoint.errors import (
    CheckpointNotFoundError,
    DamagedCheckpointError,
    UnknownFormatError,
)
from neuromanifold_gpt.checkpoint.pickle_check import check_pickle
from neuromanifold_gpt.checkpoint.reader import load_archive, load_errors
from neuromanifold_gpt.checkpoint.storage import open_regular, raise_if_refused

LIGHTNING_VERSION_KEY = "pytorch-lightning_version"

_MODEL_KEYS = ("model_state_dict", "state_dict", "model")
_OPTIMIZER_KEYS = ("optimizer_states", "optimizer_state_dict", "optimizer_state_dicts", "optimizer", "optimizers")
_SCHEDULER_KEYS = (
    "lr_scheduler_states",
    "lr_schedulers",
    "scheduler_state_dict",
    "lr_scheduler_state_dict",
    "lr_scheduler",
    "scheduler",
)
_STEP_KEYS = ("global_step", "step", "iter_num", "iteration", "iter")
_CONFIG_KEYS = ("config", "hyper_parameters", "model_args", "args")
_ZIP, _PICKLE = b"PK", b"\x80"  # how files begin that torch.save wrote, now and before 1.6
# torch.compile and DistributedDataParallel prepend these to every parameter's name.
_WRAPPER_PREFIX = re.compile(r"(^|\.)_orig_mod\.")


@dataclass
class UnifiedCheckpoint:
    """What a foreign file holds, under this package's names; ``raw`` is the file's own content."""

    form: str
    model_state: dict[str, Any]
    optimizer_states: list[dict[str, Any]] | None = None
    lr_scheduler_states: list[dict[str, Any]] = field(default_factory=list)
    global_step: int = 0
    epoch: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict)


def read_any_archive(path: Path, *, verify: bool = True, trusted: bool = False) -> Any:
    """Content of a file that ``torch.save`` wrote, zip or legacy, with no manifest beside it.

    With ``verify``, the CRC-32 of every zip record is compared.

    Raises:
        CheckpointNotFoundError, DamagedCheckpointError, UnknownFormatError, UntrustedPickleError
    """
    try:
        with open_regular(path, follow_links=True) as file:
            head = file.read(2)
            if head.startswith(_PICKLE) and not trusted:
                _check_legacy(path, file)
    except OSError as error:
        raise_if_refused(path, error)
        raise CheckpointNotFoundError(f"{path}: there is no such file: {error.strerror}.") from error
    if head != _ZIP:
        if head and not head.startswith(_PICKLE):
            raise _unknown(path, "neither a zip archive nor a pickle")
        with load_errors(path):  # written before torch 1.6, or not a checkpoint; it has no checksums
            content = torch.load(path, map_location="cpu", weights_only=not trusted)
            if not trusted:
                check_content(content, path.stat().st_size)
            return content
    if verify:
        _verify_crc32(path, trusted)
    return load_archive(path, trusted=trusted)


def _check_legacy(path: Path, file: BinaryIO) -> None:
    """Before torch 1.6, a file was five pickles and then the data."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        check_pickle(path, content, count=5)


def classify(path: Path, content: Any) -> UnifiedCheckpoint:
    """Find out which program's checkpoint ``content`` is, and bring it under this package's names.

    Raises:
        UnknownFormatError: it is none of the known forms; the message lists what is in it.
    """
    if not isinstance(content, Mapping):
        raise _unknown(path, f"a {type(content).__name__}")
    if content and all(isinstance(value, Tensor) for value in content.values()):
        _check_names(path, content)
        return UnifiedCheckpoint("plain", clean_names(content), raw=dict(content))
    content = dict(content)
    model = next((content[key] for key in _MODEL_KEYS if isinstance(content.get(key), Mapping)), None)
    if model is None:
        raise _unknown(path, f"a dict with the keys {sorted(map(str, content))[:12]}")
    _check_names(path, model)
    form = "plain"
    if LIGHTNING_VERSION_KEY in content:
        form = "lightning"
        if not isinstance(content.get("global_step", 0), int):
            raise _unknown(path, f"a global_step that is a {type(content['global_step']).__name__}")
    elif "model" in content and ("model_args" in content or "iter_num" in content):
        form = "nanogpt"
    configs = [content[key] for key in _CONFIG_KEYS if isinstance(content.get(key), Mapping)]
    return UnifiedCheckpoint(
        form=form,
        model_state=clean_names(model, wrapped=form != "lightning"),  # Lightning saves the module inside its wrappers
        optimizer_states=_states(content, _OPTIMIZER_KEYS),
        lr_scheduler_states=_states(content, _SCHEDULER_KEYS) or [],
        global_step=next((content[key] for key in _STEP_KEYS if isinstance(content.get(key), int)), 0),
        epoch=content.get("epoch") if isinstance(content.get("epoch"), int) else None,
        config={key: value for config in configs for key, value in config.items()},
        raw=content,
    )


def _check_names(path: Path, state: Mapping[Any, Any]) -> None:
    odd = next((name for name in state if not isinstance(name, str)), None)
    if odd is not None:
        raise _unknown(path, f"a state dict with a name that is a {type(odd).__name__}")


def clean_name(name: str) -> str:
    """A parameter's name without what ``torch.compile`` put into it."""
    return _WRAPPER_PREFIX.sub(r"\1", name)


def clean_names(state: Mapping[str, Any], *, wrapped: bool = True) -> dict[str, Any]:
    """A state dict, with its ``_metadata``, without the prefixes of ``torch.compile`` and data-parallel wrappers.

    ``wrapped`` says that a ``module.`` before every name comes from such a wrapper.
    """
    names = [clean_name(name) for name in state]
    prefix = "module." if wrapped and names and all(name.startswith("module.") for name in names) else ""
    cleaned: Any = OrderedDict(zip((name.removeprefix(prefix) for name in names), state.values(), strict=True))
    if hasattr(state, "_metadata"):
        of_modules = ((clean_name(f"{name}."), value) for name, value in state._metadata.items())
        cleaned._metadata = OrderedDict(
            (name.removeprefix(prefix)[:-1], value) for name, value in of_modules if name.startswith(prefix)
        )
    return cleaned


def _states(content: Mapping[str, Any], keys: tuple[str, ...]) -> list[dict[str, Any]] | None:
    for key in keys:
        value = content.get(key)
        if isinstance(value, Mapping):
            return [dict(value)]
        if isinstance(value, list | tuple) and all(isinstance(item, Mapping) for item in value):
            return [dict(item) for item in value]
    return None


def _verify_crc32(path: Path, trusted: bool) -> None:
    check_archive(path, trusted=trusted)  # zipfile would unpack what is compressed, whatever comes of it
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            if not any(record.CRC for record in records):
                return  # written with torch.utils.serialization.config.save.compute_crc32 = False
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise_if_refused(path, error)
        raise DamagedCheckpointError(f"{path}: the archive is damaged: {error}. Use another checkpoint.") from error
    if damaged is not None:
        raise DamagedCheckpointError(
            f"{path}: the archive is damaged in record {damaged}: its CRC-32 does not match. Use another checkpoint."
        )


def _unknown(path: Path, found: str) -> UnknownFormatError:
    return UnknownFormatError(
        f"{path}: this is not a checkpoint of a known form: expected a Lightning, nanoGPT or plain state dict "
        f"checkpoint, found {found}. Load it with torch.load and pass its parts to your objects yourself."
    )
