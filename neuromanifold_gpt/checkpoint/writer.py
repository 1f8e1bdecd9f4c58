"""Write one checkpoint: stage, write the files aside, commit.

The order of steps and their durability is in ``commit.py``; the bytes of a data file in ``archive.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from neuromanifold_gpt.checkpoint.archive import (
    ArchiveWriter,
    DigestingSink,
    WrittenArchive,
    content_digest,
    storage_digests,
)
from neuromanifold_gpt.checkpoint.commit import Checkpoint, commit, created, write_file
from neuromanifold_gpt.checkpoint.environment import save_details
from neuromanifold_gpt.checkpoint.errors import CheckpointWriteError
from neuromanifold_gpt.checkpoint.leftovers import clear_leftovers, write_errors
from neuromanifold_gpt.checkpoint.lock import writing
from neuromanifold_gpt.checkpoint.manifest import FORMAT_VERSION, MAXIMUM_BYTES, MODEL, OPTIMIZER, FileRecord, Manifest
from neuromanifold_gpt.checkpoint.naming import CheckpointPaths, paths_of_any_file, paths_of_name, temporary
from neuromanifold_gpt.checkpoint.staging import StagedTree, stage
from neuromanifold_gpt.checkpoint.storage import LocalStorage, Storage

# Key that both data files carry, so that each knows what it is and which other file it belongs to.
STAMP_KEY = "separated_checkpoint"
_REMEDY = "Free space or make the directory writable, or choose another one; older checkpoints are untouched."


@dataclass(frozen=True)
class StagedCheckpoint:
    """Everything a save needs, captured and checked: what is handed from the training loop to the writer.

    ``optimizer`` is ``None`` for a model-only checkpoint. The trees refer to live tensors; see ``staging.py``.
    """

    step: int
    model: StagedTree
    optimizer: StagedTree | None
    epoch: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


def stage_checkpoint(
    step: int, model: dict[str, Any], optimizer: dict[str, Any] | None, **descriptions: Any
) -> StagedCheckpoint:
    """Stage the content of both files. ``descriptions`` are the other fields of :class:`StagedCheckpoint`.

    Raises:
        UnsupportedObjectError: something in the state could not be read back safely.
    """
    staged_optimizer = None if optimizer is None else stage(optimizer, tied_parts={"optimizer_states"})
    return StagedCheckpoint(step, stage(model), staged_optimizer, **descriptions)


def write_checkpoint(paths: CheckpointPaths, staged: StagedCheckpoint, storage: Storage | None = None) -> Checkpoint:
    """Write both files and the manifest, durably; on return the checkpoint survives a power loss.

    Raises:
        CheckpointLockedError: another process trains in the directory; nothing is changed there.
        CheckpointWriteError: the file system refused, a tensor changed while it was written, or ``paths`` have a name
            that does not lead back to them. Nothing of the save stays; older checkpoints are untouched, the one of the
            same name included.

    Warns:
        LeftoverWarning: see :func:`commit.commit`.
    """
    if not paths == paths_of_name(paths.directory, paths.name) == paths_of_any_file(paths.model):
        raise CheckpointWriteError(
            f"{paths.model}: no reader could tell which files belong to a model file of this name. Let it end in "
            "-model.pt, or in .ckpt, .pt or .pth and not in -optimizer.pt."
        )
    storage = storage or LocalStorage()
    # The lock first: what seems to be left over might be what another process writes just now.
    with writing(paths.directory), write_errors(paths.directory, f"saving {paths.name}", _REMEDY, storage):
        clear_leftovers(paths.directory, storage)
        manifest = _write_aside(paths, staged, storage)
        write_file(temporary(paths.manifest), _checked_size(paths, manifest.to_bytes()), storage)
        return commit(paths, manifest, storage)


def _write_aside(paths: CheckpointPaths, staged: StagedCheckpoint, storage: Storage) -> Manifest:
    # The pair digest covers the model's content, so the model is digested once before the optimizer file is finished,
    # and once more while it is written: a difference means that somebody trains on while we save.
    model_digests = storage_digests(staged.model)
    model_content = content_digest(staged.model, model_digests)
    pair = _pair_digest(staged.step, model_content, "none")
    written: dict[str, WrittenArchive] = {}

    def stamp(role: str) -> dict[str, Any]:
        return {"format_version": FORMAT_VERSION, "file": role, "pair": pair, "global_step": staged.step}

    def optimizer_stamp(optimizer: StagedTree, digests: dict[str, str]) -> dict[str, Any]:
        nonlocal pair
        pair = _pair_digest(staged.step, model_content, content_digest(optimizer, digests))
        return stamp(OPTIMIZER)

    def model_stamp(_: StagedTree, digests: dict[str, str]) -> dict[str, Any]:
        if digests != model_digests:
            raise CheckpointWriteError(
                f"{paths.model}: the model changed while it was saved. Do not train, or move the model, during a save."
            )
        return stamp(MODEL)

    if staged.optimizer is not None:
        written[OPTIMIZER] = _write_archive(paths.optimizer, staged.optimizer, optimizer_stamp, storage)
    written[MODEL] = _write_archive(paths.model, staged.model, model_stamp, storage)
    names = {MODEL: paths.model.name, OPTIMIZER: paths.optimizer.name}
    return Manifest(
        name=paths.name,
        step=staged.step,
        epoch=staged.epoch,
        pair=pair,
        files={role: FileRecord(names[role], file.size_bytes, file.digest) for role, file in sorted(written.items())},
        tensors={role: file.tensors for role, file in sorted(written.items())},
        metrics=staged.metrics,
        environment=staged.environment,
        details={**save_details(), **staged.details},
    )


def _checked_size(paths: CheckpointPaths, content: bytes) -> bytes:
    if len(content) > MAXIMUM_BYTES:
        raise CheckpointWriteError(
            f"{paths.manifest}: the manifest would have {len(content)} bytes, and no reader takes more than "
            f"{MAXIMUM_BYTES}. Save fewer tensors: join small ones."
        )
    return content


def _write_archive(
    path: Path, tree: StagedTree, stamp: Callable[[StagedTree, dict[str, str]], dict[str, Any]], storage: Storage
) -> WrittenArchive:
    """Write and sync the temporary file of ``path``; ``stamp`` is asked when the digests of the tensors are known."""
    with created(temporary(path), storage) as file, DigestingSink(file) as sink:
        archive = ArchiveWriter(sink, tree)
        return archive.finish({STAMP_KEY: stamp(tree, archive.write_tensors())})


def _pair_digest(step: int, model_content: str, optimizer_content: str) -> str:
    return xxhash.xxh3_128_hexdigest(f"{step} {model_content} {optimizer_content}".encode())


def resolve_directory(directory: str | Path) -> Path:
    """The directory as a path; a URL is refused, since the commit rule needs a POSIX file system."""
    if "://" in str(directory):
        raise CheckpointWriteError(f"{directory}: only local directories can be written. Give a mounted path.")
    return Path(directory)
