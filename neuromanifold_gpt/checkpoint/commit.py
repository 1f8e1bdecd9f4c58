"""The commit rule: what makes a checkpoint exist, and what becomes of one that was interrupted.

A checkpoint is **complete** when its manifest is there and both data files have the sizes that it names.
:func:`open_complete` decides this, for discovery, retention, resume and verify alike.

A save under a new name, each step durable before the next::

    X-optimizer.pt.nm-incomplete, X-model.pt.nm-incomplete, X.json.nm-incomplete     written and synced
    X-optimizer.pt, X-model.pt, X.json                                               renamed, in this order

A save over an existing name first moves the old checkpoint out of the way without a moment in which it could not be
loaded: its data files get a second name (``.nm-previous``), then its manifest is replaced by one that names those.
After the commit they are removed. A delete removes the manifest first.

Whatever a crash leaves behind, :func:`clear_leftovers` recognises by these suffixes: it removes files of a save that
was not committed, and puts a checkpoint that was being replaced back under its own name.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from neuromanifold_gpt.checkpoint.digest import file_digest
from neuromanifold_gpt.checkpoint.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CheckpointWriteError,
    DamagedCheckpointError,
    IncompleteCheckpointError,
)
from neuromanifold_gpt.checkpoint.manifest import MODEL, OPTIMIZER, Manifest, looks_like_manifest, read_manifest
from neuromanifold_gpt.checkpoint.naming import (
    MANIFEST_SUFFIX,
    PREVIOUS_SUFFIX,
    TEMPORARY_SUFFIX,
    CheckpointPaths,
    paths_of_name,
    previous,
    temporary,
)
from neuromanifold_gpt.checkpoint.storage import Storage


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    paths: CheckpointPaths
    manifest: Manifest

    @property
    def name(self) -> str:
        """What its file names have in common, ``checkpoint-step000050``."""
        return self.manifest.name

    @property
    def directory(self) -> Path:
        """The directory that holds it."""
        return self.paths.directory

    @property
    def step(self) -> int:
        """Global step: number of optimizer steps taken."""
        return self.manifest.step

    @property
    def epoch(self) -> int | None:
        """Epoch in which it was taken, if the training has epochs."""
        return self.manifest.epoch

    @property
    def metrics(self) -> dict[str, float]:
        """Numbers given at the save, such as ``val_loss``."""
        return self.manifest.metrics

    @property
    def model_only(self) -> bool:
        """Whether it has no optimizer file."""
        return self.manifest.model_only

    @property
    def model_path(self) -> Path:
        """Path of the model file."""
        return self.file(MODEL)

    @property
    def optimizer_path(self) -> Path | None:
        """Path of the optimizer file; ``None`` for a model-only checkpoint."""
        return None if self.model_only else self.file(OPTIMIZER)

    @property
    def size_bytes(self) -> int:
        """Bytes of both data files."""
        return sum(record.size_bytes for record in self.manifest.files.values())

    def file(self, role: str) -> Path:
        """Path of the ``"model"`` or ``"optimizer"`` file."""
        return self.directory / self.manifest.files[role].name


def open_complete(paths: CheckpointPaths) -> Checkpoint:
    """The checkpoint at ``paths``, if it is complete.

    Raises:
        CheckpointNotFoundError: none of its files is there.
        IncompleteCheckpointError: a file is missing, or has not the size that the manifest names.
        DamagedCheckpointError: the manifest cannot be trusted.
    """
    try:
        checkpoint = Checkpoint(paths, read_manifest(paths.manifest))
    except CheckpointNotFoundError:
        there = [path.name for path in (paths.model, paths.optimizer) if path.exists()]
        if not there:
            raise CheckpointNotFoundError(f"{paths.model}: there is no checkpoint of this name.") from None
        raise IncompleteCheckpointError(
            f"{paths.manifest}: the manifest is missing, so the save of {', '.join(there)} was not finished or the "
            "file was copied without it. Use another checkpoint; a model file alone loads with load_optimizer=False."
        ) from None
    for role, record in checkpoint.manifest.files.items():
        found = _size_of_regular_file(checkpoint.file(role))
        if found != record.size_bytes:
            raise IncompleteCheckpointError(
                f"{checkpoint.file(role)}: the {role} file of {checkpoint.name} is "
                f"{'missing' if found is None else 'not complete'}: expected a file of {record.size_bytes} bytes, "
                f"found {'none' if found is None else f'{found} bytes'}. Use another checkpoint of the directory."
            )
    return checkpoint


def _size_of_regular_file(path: Path) -> int | None:
    """Size, or ``None`` where there is no regular file: links are not followed out of the directory."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


@contextlib.contextmanager
def write_errors(paths: CheckpointPaths, storage: Storage) -> Iterator[None]:
    """Clean up after a save that failed, and say which file the system refused and what to do."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(OSError):  # the directory may be what failed; the next writer clears it
            clear_leftovers(paths.directory, storage)
        if not isinstance(error, OSError):
            raise
        raise CheckpointWriteError(
            f"{error.filename or paths.directory}: saving {paths.name} failed: {error.strerror or error}. Free space "
            "or make the directory writable, or choose another one; older checkpoints are untouched."
        ) from error


def commit(paths: CheckpointPaths, new: Manifest, storage: Storage) -> Checkpoint:
    """Give the written and synced temporary files their names, the manifest last."""
    _move_aside(paths, storage)
    finals = {OPTIMIZER: paths.optimizer, MODEL: paths.model}
    for role, target in finals.items():
        if role in new.files:
            storage.rename(temporary(target), target)
        else:
            storage.remove(target)
        storage.sync_directory(paths.directory)
    storage.rename(temporary(paths.manifest), paths.manifest)
    storage.sync_directory(paths.directory)
    for target in finals.values():
        storage.remove(previous(target))
    return Checkpoint(paths, new)


def remove(paths: CheckpointPaths, storage: Storage) -> None:
    """Delete a checkpoint, the manifest first: from then on it does not exist."""
    if _size_of_regular_file(paths.manifest) is not None:
        # Under its temporary name it tells the next writer, should we be interrupted, which files are to be removed.
        storage.rename(paths.manifest, temporary(paths.manifest))
        storage.sync_directory(paths.directory)
    for path in (paths.model, paths.optimizer):
        storage.remove(path)
        storage.remove(previous(path))
    storage.sync_directory(paths.directory)
    storage.remove(temporary(paths.manifest))


def clear_leftovers(directory: Path, storage: Storage) -> None:
    """Remove what interrupted saves left in ``directory``, and undo replacements that were not committed."""
    names = sorted(path.name for path in directory.iterdir() if _is_leftover(path))
    if not names:
        return
    manifests = [name for name in names if name.endswith(MANIFEST_SUFFIX + TEMPORARY_SUFFIX)]
    for name in manifests:
        _remove_uncommitted(paths_of_name(directory, name[: -len(MANIFEST_SUFFIX + TEMPORARY_SUFFIX)]), storage)
    for name in names:
        if name.endswith(PREVIOUS_SUFFIX):
            _put_back(directory / name.removesuffix(PREVIOUS_SUFFIX), storage)
    # The temporary manifests tell which files belong to the interrupted save, so they go last.
    for some in ([name for name in names if name not in manifests], manifests):
        for name in some:
            storage.remove(directory / name)
        storage.sync_directory(directory)


def _is_leftover(path: Path) -> bool:
    return path.name.endswith((TEMPORARY_SUFFIX, PREVIOUS_SUFFIX)) and _size_of_regular_file(path) is not None


def _move_aside(paths: CheckpointPaths, storage: Storage) -> None:
    try:
        old = open_complete(paths).manifest
    except CheckpointError:
        # Nothing loadable is there. A manifest must not stay: it could seem to fit the files that come.
        storage.remove(paths.manifest)
        storage.sync_directory(paths.directory)
        return
    for record in old.files.values():
        storage.keep_as(paths.directory / record.name, previous(paths.directory / record.name))
    storage.sync_directory(paths.directory)
    files = {role: replace(record, name=record.name + PREVIOUS_SUFFIX) for role, record in old.files.items()}
    _replace_manifest(paths, replace(old, files=files), storage)


def _put_back(final: Path, storage: Storage) -> None:
    """Give a checkpoint that was moved aside its own name again, if its replacement was not committed."""
    for paths in _checkpoints_naming(previous(final)):
        manifest = read_manifest(paths.manifest)
        for record in manifest.files.values():
            target = paths.directory / record.name.removesuffix(PREVIOUS_SUFFIX)
            storage.keep_as(previous(target), temporary(target))
            storage.rename(temporary(target), target)
            storage.remove(temporary(target))  # renaming a link onto another one of the same file leaves both
        storage.sync_directory(paths.directory)
        files = {
            role: replace(record, name=record.name.removesuffix(PREVIOUS_SUFFIX))
            for role, record in manifest.files.items()
        }
        _replace_manifest(paths, replace(manifest, files=files), storage)


def _checkpoints_naming(file: Path) -> list[CheckpointPaths]:
    found = []
    for manifest_path in filter(looks_like_manifest, file.parent.glob("*" + MANIFEST_SUFFIX)):
        paths = paths_of_name(file.parent, manifest_path.name.removesuffix(MANIFEST_SUFFIX))
        with contextlib.suppress(CheckpointError):  # incomplete: nothing could be put back
            if file.name in _names(open_complete(paths).manifest):
                found.append(paths)
    return found


def _replace_manifest(paths: CheckpointPaths, manifest: Manifest, storage: Storage) -> None:
    aside = previous(paths.manifest)  # not the temporary name: that one may hold the manifest being committed
    write_file(aside, manifest.to_bytes(), storage)
    storage.rename(aside, paths.manifest)
    storage.sync_directory(paths.directory)


def _remove_uncommitted(paths: CheckpointPaths, storage: Storage) -> None:
    """Remove data files that got their names from a save whose manifest did not."""
    try:
        # Committed, or not begun to rename: the names belong to the manifest that is there.
        taken = _names(read_manifest(paths.manifest)) if paths.manifest.exists() else set()
        interrupted = read_manifest(temporary(paths.manifest), paths)
    except DamagedCheckpointError:
        return  # torn: it was not synced, so no file had been renamed yet
    for role, target in ((MODEL, paths.model), (OPTIMIZER, paths.optimizer)):
        record = interrupted.files.get(role)
        if record is None or target.name in taken or _size_of_regular_file(target) != record.size_bytes:
            continue
        if file_digest(target) == record.digest:  # else somebody put it under this name, and it is not ours to remove
            storage.remove(target)


def _names(manifest: Manifest) -> set[str]:
    return {record.name for record in manifest.files.values()}


@contextlib.contextmanager
def created(path: Path, storage: Storage) -> Iterator[BinaryIO]:
    """A new file, synced in the end; in an ``OSError`` on the way, its name, which ``write(2)`` does not give."""
    try:
        with storage.create(path) as file:
            yield file
            storage.sync_file(file)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_file(path: Path, content: bytes, storage: Storage) -> None:
    """Write a small file and sync it."""
    with created(path, storage) as file:
        rest = memoryview(content)
        while rest:
            rest = rest[file.write(rest) :]
