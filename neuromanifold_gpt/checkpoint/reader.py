"""Read and verify the data files of a complete checkpoint."""

from __future__ import annotations

import os
import pickle
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from neuromanifold_gpt.checkpoint.archive import TensorRecord
from neuromanifold_gpt.checkpoint.archive_check import check_archive
from neuromanifold_gpt.checkpoint.commit import Checkpoint
from neuromanifold_gpt.checkpoint.content_check import check_content
from neuromanifold_gpt.checkpoint.digest import open_file_digest
from neuromanifold_gpt.checkpoint.errors import (
    CheckpointNotFoundError,
    DamagedCheckpointError,
    IncompleteCheckpointError,
    MismatchedPairError,
    UntrustedPickleError,
)
from neuromanifold_gpt.checkpoint.manifest import shown
from neuromanifold_gpt.checkpoint.records import read_records
from neuromanifold_gpt.checkpoint.storage import is_refusal, open_regular, raise_if_refused, read_errors
from neuromanifold_gpt.checkpoint.writer import STAMP_KEY

_SHOWN_TENSORS = 5
_REPEATED_BYTES = 256 << 20  # what a tensor that repeats its elements, a mask say, may have beyond its file's size


@dataclass(frozen=True)
class VerificationReport:
    """What was compared with its digest, all of it found intact."""

    checkpoint: Checkpoint
    files: int
    tensors: int
    size_bytes: int
    duration_sec: float


def verify(checkpoint: Checkpoint) -> VerificationReport:
    """Compare every byte of a checkpoint with its digests.

    Raises:
        DamagedCheckpointError: names the file and the tensors that differ.
        MismatchedPairError: a file is intact in itself but of another save.
    """
    started = time.perf_counter()
    for role in checkpoint.manifest.files:
        with _opened(checkpoint.file(role)) as file:
            _verify_file(checkpoint, role, file)
    return VerificationReport(
        checkpoint=checkpoint,
        files=len(checkpoint.manifest.files),
        tensors=sum(map(len, checkpoint.manifest.tensors.values())),
        size_bytes=checkpoint.size_bytes,
        duration_sec=time.perf_counter() - started,
    )


def read_file(checkpoint: Checkpoint, role: str, *, verify: bool = True, trusted: bool = False) -> dict[str, Any]:
    """Content of the ``"model"`` or ``"optimizer"`` file, its tensors in fresh CPU memory.

    Raises:
        DamagedCheckpointError, MismatchedPairError: see :func:`verify`; the pair is compared even with
            ``verify=False``.
        UntrustedPickleError: it names a class that only running its pickle could make, and is not ``trusted``.
    """
    path = checkpoint.file(role)
    with _opened(path) as file:
        storages, digest = read_records(file, checkpoint.manifest.tensors[role], digest_all=verify)
        if verify and digest != checkpoint.manifest.files[role].digest:
            raise _difference(checkpoint, role, file, digest)
        payload = _load_around(path, storages, trusted)
        # torch opens the path anew: had it been replaced meanwhile, something else than the verified bytes was read.
        with load_errors(path):
            unchanged = os.path.samestat(os.fstat(file.fileno()), path.stat())
        if not unchanged:
            raise DamagedCheckpointError(f"{path}: the file was replaced while it was read. Load again.")
    stamp = payload.pop(STAMP_KEY, None)
    if not isinstance(stamp, dict) or stamp.get("pair") != checkpoint.manifest.pair or stamp.get("file") != role:
        raise _mismatched_pair(checkpoint, role, stamp)
    return payload


def _load_around(path: Path, storages: list[torch.UntypedStorage], trusted: bool) -> dict[str, Any]:
    """Unpickle a file of ours around tensor data that has been read already.

    ``torch.load`` maps the file and asks ``map_location`` for each storage, in the order in which the pickle, and so
    our writer, numbers them. The map itself is never touched.
    """
    ready = iter(storages)

    def take_next(mapped: torch.UntypedStorage, _location: str) -> torch.UntypedStorage:
        storage = next(ready)
        if storage.nbytes() != mapped.nbytes():
            raise ValueError(f"a storage of {mapped.nbytes()} bytes where the manifest has {storage.nbytes()}")
        return storage

    sizes = [storage.nbytes() for storage in storages]
    check_archive(path, trusted=trusted)
    with load_errors(path):
        content = torch.load(path, map_location=cast(Any, take_next), weights_only=not trusted, mmap=True)
        if not isinstance(content, dict):
            raise TypeError(f"a {type(content).__name__} where a dict was written")
        if not trusted:
            if [storage.nbytes() for storage in storages] != sizes:  # torch makes room for a tensor that ends behind
                raise ValueError("a tensor that ends behind its data")
            check_content(content, path.stat().st_size)
        return content


def map_archive(path: Path, *, trusted: bool = False) -> Any:
    """``torch.load`` to CPU, its tensors in a memory map of the file; no code is run unless ``trusted``."""
    check_archive(path, trusted=trusted)
    with load_errors(path):
        # The map is what makes this fast: torch.load without it reads record by record at a tenth of the speed.
        content = torch.load(path, map_location="cpu", weights_only=not trusted, mmap=True)
        if not trusted:
            check_content(content, max(path.stat().st_size, _REPEATED_BYTES))
        return content


def load_archive(path: Path, *, trusted: bool = False) -> Any:
    """:func:`map_archive`, its tensors copied out of the map."""
    content = map_archive(path, trusted=trusted)
    with load_errors(path):
        return _Copier(None if trusted else path.stat().st_size).copied(content)


@contextmanager
def load_errors(path: Path) -> Iterator[None]:
    """Turn what ``torch.load`` raises on malformed or untrusted files into typed errors."""
    try:
        # An index of a sparse tensor that lies outside of it would be followed out of its memory.
        with torch.sparse.check_sparse_tensor_invariants():
            yield
    except pickle.UnpicklingError as error:
        lines = str(error).strip().splitlines() or [""]
        reason = next((line for line in lines if "GLOBAL" in line), lines[0]).strip()
        raise UntrustedPickleError(
            f"{path}: reading it would need more than plain data: {reason} Allow "
            "the class with torch.serialization.add_safe_globals, or pass trusted=True if you trust whoever wrote "
            "the file: its pickle can then run any code."
        ) from error
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise_if_refused(path, error)
        raise DamagedCheckpointError(
            f"{path}: torch.load cannot read it: {type(error).__name__}: {str(error).strip().splitlines()[:1]}. Use "
            "another checkpoint."
        ) from error


class _Copier:
    """Copies tensors out of the memory map: later changes of the file must not reach the model.

    Tensors that share a storage (tied weights) share its copy. What stands in several places is looked into once: a
    hostile pickle may refer to itself, or hold two references to what holds two references, and so on.
    """

    def __init__(self, maximum_bytes: int | None) -> None:
        self._left_bytes = maximum_bytes
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._done: dict[int, tuple[Any, Any]] = {}  # the original too, so that its id is not used again

    def copied(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value)
        if id(value) in self._done:
            return self._done[id(value)][1]
        if type(value) is tuple:
            copy = tuple(map(self.copied, value))
            self._done[id(value)] = value, copy
            return copy
        if isinstance(value, dict):
            self._done[id(value)] = value, value
            for key in value:
                value[key] = self.copied(value[key])
        elif isinstance(value, list):
            self._done[id(value)] = value, value
            value[:] = map(self.copied, value)
        return value

    def _tensor(self, tensor: Tensor) -> Tensor:
        if type(tensor) not in (Tensor, torch.nn.Parameter) or not _is_plain(tensor):
            return deepcopy(tensor)
        storage = tensor.untyped_storage()
        copy = self._storages.get(storage.data_ptr()) if storage.nbytes() else None
        if copy is None:
            self._count(storage.nbytes())
            copy = self._storages[storage.data_ptr()] = storage.clone()
        moved = torch.empty(0, dtype=tensor.dtype).set_(copy, tensor.storage_offset(), tensor.shape, tensor.stride())
        if isinstance(tensor, torch.nn.Parameter):
            return torch.nn.Parameter(moved, requires_grad=tensor.requires_grad)
        return moved.requires_grad_(tensor.requires_grad)

    def _count(self, size_bytes: int) -> None:
        if self._left_bytes is None:
            return
        self._left_bytes -= size_bytes
        if self._left_bytes < 0:
            raise ValueError("its tensors have more bytes than the file")


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is its memory, shape and strides, and nothing more."""
    return tensor.layout is torch.strided and not (
        tensor.is_quantized or tensor.is_nested or tensor.is_conj() or tensor.is_neg() or tensor.is_meta
    )


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with read_errors(path):
        try:
            file = open_regular(path)
        except FileNotFoundError:
            raise CheckpointNotFoundError(f"{path}: there is no such file.") from None
        with file:
            try:
                yield file
            except EOFError as error:
                raise IncompleteCheckpointError(
                    f"{path}: {error}: it was cut off while it was read. Load again."
                ) from error


def _verify_file(checkpoint: Checkpoint, role: str, file: BinaryIO) -> None:
    found = open_file_digest(file)
    if found != checkpoint.manifest.files[role].digest:
        raise _difference(checkpoint, role, file, found)


def _difference(checkpoint: Checkpoint, role: str, file: BinaryIO, found: str) -> DamagedCheckpointError:
    """Find out what differs in a file whose digest is not the manifest's."""
    path = checkpoint.file(role)
    stamp = _stamp_of(path)
    if isinstance(stamp, dict) and stamp.get("pair") not in (None, checkpoint.manifest.pair):
        return _mismatched_pair(checkpoint, role, stamp)
    damaged = [tensor for tensor in checkpoint.manifest.tensors[role] if _differs(file, tensor)]
    names = ", ".join(shown(tensor.path) for tensor in damaged[:_SHOWN_TENSORS])
    more = f" and {len(damaged) - _SHOWN_TENSORS} more" if len(damaged) > _SHOWN_TENSORS else ""
    where = f"tensor {names}{more}" if damaged else "the archive's structure (no tensor)"
    return DamagedCheckpointError(
        f"{path}: the {role} file is damaged in {where}: expected digest {checkpoint.manifest.files[role].digest}, "
        f"found {found}. Use an older checkpoint of the same directory (latest_checkpoint finds the newest intact "
        "one)."
    )


def _differs(file: BinaryIO, tensor: TensorRecord) -> bool:
    return open_file_digest(file, tensor.offset, tensor.size_bytes) != tensor.digest


def is_data_file(path: Path) -> bool:
    """Whether a file says that it is part of a separated checkpoint."""
    try:
        open_regular(path).close()
    except OSError as error:
        return is_refusal(error)
    return isinstance(_stamp_of(path), dict)


def _stamp_of(path: Path) -> Any:
    """The stamp of a file that does not match its manifest, if enough of it is readable to tell."""
    try:
        check_archive(path)
        with load_errors(path), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a damaged pickle: what is wrong is said by who asked
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            return content.get(STAMP_KEY) if isinstance(content, dict) else None
    except (DamagedCheckpointError, UntrustedPickleError):
        return None


def _mismatched_pair(checkpoint: Checkpoint, role: str, stamp: Any) -> MismatchedPairError:
    stamp = stamp if isinstance(stamp, dict) else {}
    return MismatchedPairError(
        f"{checkpoint.file(role)}: this {role} file does not belong to {checkpoint.paths.manifest.name}: expected the "
        f"{role} file of pair {checkpoint.manifest.pair}, found {stamp.get('file')} file of pair {stamp.get('pair')} "
        f"(step {stamp.get('global_step')}). Put the right file back, or use another checkpoint."
    )
