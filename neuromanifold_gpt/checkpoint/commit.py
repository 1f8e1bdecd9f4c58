"""The commit rule: what makes a checkpoint exist, and what becomes of one that was interrupted.

A checkpoint is **complete** when its manifest is there and both data files have the sizes that it names.
:func:`open_complete` decides this, for discovery, retention, resume and verify alike.

A save under a new name, each step durable before the next::

    X-optimizer.pt.nm-incomplete, X-model.pt.nm-incomplete, X.json.nm-incomplete     written and synced
    X-optimizer.pt, X-model.pt, X.json                                               renamed, in this order

A save over an existing name first moves the old checkpoint out of the way without a moment in which it could not be
loaded: its data files get a second name (``.nm-previous``), then its manifest is replaced by one that names those.
After the commit they are removed. A delete removes the manifest first.

What a crash leaves behind is recognised by these suffixes: see ``leftovers.py``.
"""

from __future__ import annotations

import contextlib
import errno
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from neuromanifold_gpt.checkpoint.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CheckpointWriteError,
    IncompleteCheckpointError,
    LeftoverWarning,
    UnreadableFileError,
)
from neuromanifold_gpt.checkpoint.manifest import MODEL, OPTIMIZER, Manifest, read_manifest, shown
from neuromanifold_gpt.checkpoint.naming import (
    PREVIOUS_SUFFIX,
    CheckpointPaths,
    previous,
    temporary,
)
from neuromanifold_gpt.checkpoint.storage import Storage, read_errors
from neuromanifold_gpt.checkpoint.user_warnings import warn_user


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
        UnreadableFileError: the system refused to read the manifest, or to tell the size of a file.
    """
    try:
        checkpoint = Checkpoint(paths, read_manifest(paths.manifest))
    except CheckpointNotFoundError:
        with read_errors(paths.model):
            there = [path.name for path in (paths.model, paths.optimizer) if path.exists()]
        if not there:
            raise CheckpointNotFoundError(f"{paths.model}: there is no checkpoint of this name.") from None
        raise IncompleteCheckpointError(
            f"{paths.manifest}: the manifest is missing, so the save of {', '.join(there)} was not finished or the "
            "file was copied without it. Use another checkpoint; a model file alone loads with load_optimizer=False."
        ) from None
    for role, record in checkpoint.manifest.files.items():
        with read_errors(checkpoint.file(role)):
            found = size_of_regular_file(checkpoint.file(role))
        if found != record.size_bytes:
            raise _not_complete(checkpoint, role, found)
    return checkpoint


def _not_complete(checkpoint: Checkpoint, role: str, found_bytes: int | None) -> IncompleteCheckpointError:
    wanted_bytes = checkpoint.manifest.files[role].size_bytes
    problem, found, cut = "not complete", f"{found_bytes} bytes", []
    if found_bytes is None:
        problem, found = "missing", "none"
    elif found_bytes < wanted_bytes:
        tensors = checkpoint.manifest.tensors[role]
        cut = [shown(tensor.path) for tensor in tensors if tensor.offset + tensor.size_bytes > found_bytes]
    lost = f" Cut off: tensor {cut[0]}{f' and {len(cut) - 1} more' if len(cut) > 1 else ''}." if cut else ""
    return IncompleteCheckpointError(
        f"{checkpoint.file(role)}: the {role} file of {checkpoint.name} is {problem}: expected a file of "
        f"{wanted_bytes} bytes, found {found}.{lost} Use another checkpoint of the directory."
    )


def size_of_regular_file(path: Path) -> int | None:
    """Size, or ``None`` where there is no regular file: links are not followed out of the directory."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


@contextlib.contextmanager
def typed_errors(directory: Path, doing: str, remedy: str) -> Iterator[None]:
    """Turn an ``OSError`` into one that says which file the system refused, and what to do."""
    try:
        yield
    except (OSError, UnreadableFileError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        assert isinstance(cause, OSError)
        if cause.errno == errno.EISDIR:
            remedy = "A directory has the name of a file of this checkpoint: move it away, and save again."
        raise CheckpointWriteError(
            f"{cause.filename or directory}: {doing} failed: {cause.strerror or cause}. {remedy}"
        ) from error


def commit(paths: CheckpointPaths, new: Manifest, storage: Storage) -> Checkpoint:
    """Give the written and synced temporary files their names, the manifest last.

    Warns:
        LeftoverWarning: the checkpoint is saved, but a file of the one that it replaces could not be removed.
    """
    aside = _move_aside(paths, storage)
    finals = {OPTIMIZER: paths.optimizer, MODEL: paths.model}
    for role, target in finals.items():
        if role in new.files:
            storage.rename(temporary(target), target)
        else:
            storage.remove(target)
        storage.sync_directory(paths.directory)
    storage.rename(temporary(paths.manifest), paths.manifest)
    try:
        storage.sync_directory(paths.directory)
    except OSError:
        _take_back(paths, aside, storage)
        raise
    try:
        for target in finals.values():
            storage.remove(previous(target))
    except OSError as error:
        warn_user(
            f"{error.filename}: {new.name} is saved, but this file of the checkpoint that it replaces could not be "
            f"removed: {error.strerror}. The next save tries again.",
            LeftoverWarning,
        )
    return Checkpoint(paths, new)


def _take_back(paths: CheckpointPaths, aside: Manifest | None, storage: Storage) -> None:
    """Undo a commit that could not be made durable, so that no checkpoint stays of a save that failed."""
    if aside is None:
        storage.rename(paths.manifest, temporary(paths.manifest))
    else:
        storage.keep_as(paths.manifest, temporary(paths.manifest))  # tells which files are to be removed
        replace_manifest(paths, aside, storage)


def remove(paths: CheckpointPaths, storage: Storage) -> None:
    """Delete a checkpoint, the manifest first: from then on it does not exist.

    Raises:
        CheckpointWriteError: the file system refused. The checkpoint is whole or gone.
    """
    remedy = "Free space or make the directory writable; the next save removes what is left of it."
    with typed_errors(paths.directory, f"removing {paths.name}", remedy):
        _remove(paths, storage)


def _remove(paths: CheckpointPaths, storage: Storage) -> None:
    if size_of_regular_file(paths.manifest) is not None:
        # Under its temporary name it tells the next writer, should we be interrupted, which files are to be removed.
        storage.rename(paths.manifest, temporary(paths.manifest))
        storage.sync_directory(paths.directory)
    for path in (paths.model, paths.optimizer):
        storage.remove(path)
        storage.remove(previous(path))
    storage.sync_directory(paths.directory)
    storage.remove(temporary(paths.manifest))


def _move_aside(paths: CheckpointPaths, storage: Storage) -> Manifest | None:
    """Keep the old checkpoint of this name under other names; return its manifest as it is then."""
    try:
        old = open_complete(paths).manifest
    except UnreadableFileError:
        raise  # it may be intact
    except CheckpointError:
        # Nothing loadable is there. A manifest must not stay: it could seem to fit the files that come.
        storage.remove(paths.manifest)
        storage.sync_directory(paths.directory)
        return None
    for record in old.files.values():
        storage.keep_as(paths.directory / record.name, previous(paths.directory / record.name))
    storage.sync_directory(paths.directory)
    files = {role: replace(record, name=record.name + PREVIOUS_SUFFIX) for role, record in old.files.items()}
    aside = replace(old, files=files)
    replace_manifest(paths, aside, storage)
    return aside


def replace_manifest(paths: CheckpointPaths, manifest: Manifest, storage: Storage) -> None:
    """Put another manifest in the place of the one that is there, durably."""
    aside = previous(paths.manifest)  # not the temporary name: that one may hold the manifest being committed
    write_file(aside, manifest.to_bytes(), storage)
    storage.rename(aside, paths.manifest)
    storage.sync_directory(paths.directory)


def names_of_files(manifest: Manifest) -> set[str]:
    """Names of the data files."""
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
