"""Find the checkpoints of a directory."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from neuromanifold_gpt.checkpoint.commit import Checkpoint, open_complete
from neuromanifold_gpt.checkpoint.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    DamagedCheckpointError,
    DamagedCheckpointWarning,
    IncompleteCheckpointError,
    UnreadableFileError,
)
from neuromanifold_gpt.checkpoint.manifest import looks_like_manifest, read_manifest
from neuromanifold_gpt.checkpoint.naming import (
    MANIFEST_SUFFIX,
    OPTIMIZER_SUFFIX,
    CheckpointPaths,
    paths_of_any_file,
    paths_of_name,
    temporary,
)
from neuromanifold_gpt.checkpoint.reader import VerificationReport, is_data_file, verify
from neuromanifold_gpt.checkpoint.storage import read_errors
from neuromanifold_gpt.checkpoint.user_warnings import warn_user


def list_checkpoints(directory: str | Path) -> list[Checkpoint]:
    """The complete checkpoints of a directory, oldest (lowest step) first; empty if there is none.

    Their content is not read: :func:`verify_checkpoint` does that.
    """
    return complete_checkpoints(Path(directory), lambda *_: None)  # latest_checkpoint and verify say what others miss


def complete_checkpoints(
    directory: Path, pass_over: Callable[[CheckpointPaths, CheckpointError], object]
) -> list[Checkpoint]:
    """:func:`list_checkpoints`; ``pass_over`` is told what is not complete, and why."""
    found = []
    for paths in candidates(directory):
        try:
            found.append(open_complete(paths))
        except (CheckpointNotFoundError, IncompleteCheckpointError, DamagedCheckpointError) as error:
            pass_over(paths, error)
    return sorted(found, key=_age)


def latest_checkpoint(directory: str | Path, *, resumable: bool = False) -> Checkpoint | None:
    """The newest intact checkpoint of a directory, every byte of it verified; ``None`` if there is none.

    Args:
        directory: where to look; it need not exist.
        resumable: leave out model-only checkpoints, from which training cannot continue.

    Warns:
        DamagedCheckpointWarning: for each newer one that was passed over, with the reason.
    """
    return newest_of([Path(directory)], resumable=resumable)


def newest_of(directories: Iterable[Path], *, resumable: bool = False) -> Checkpoint | None:
    """:func:`latest_checkpoint` of several directories."""
    found = (paths for directory in directories for paths in candidates(directory))
    for paths in sorted(found, key=_claimed_age, reverse=True):
        try:
            checkpoint = open_complete(paths)
            if not (resumable and checkpoint.model_only):
                return verify(checkpoint).checkpoint
        except CheckpointError as error:
            warn_user(f"passing over {paths.name}: {error}", DamagedCheckpointWarning)
    return None


def verify_checkpoint(path_or_checkpoint: str | Path | Checkpoint) -> VerificationReport:
    """Compare every byte of a checkpoint (any file of it, or a :class:`Checkpoint`) with its digests.

    Raises:
        CheckpointNotFoundError, IncompleteCheckpointError: it is not complete.
        DamagedCheckpointError: names the file and the tensors that differ.
    """
    if isinstance(path_or_checkpoint, Checkpoint):
        return verify(open_complete(path_or_checkpoint.paths))
    return verify(open_checkpoint(path_or_checkpoint))


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The complete checkpoint that ``path``, any of its three files or a link to one, belongs to.

    Raises:
        CheckpointNotFoundError, IncompleteCheckpointError, DamagedCheckpointError: see :func:`commit.open_complete`.
    """
    path = Path(path)
    paths = paths_of_any_file(path)
    with read_errors(path):
        is_link = path.is_symlink() and not os.path.lexists(paths.manifest)
    if is_link and path == paths.model:
        paths = paths_of_any_file(Path(os.path.realpath(path)))  # Lightning's save_last="link"
    return open_complete(paths)


def candidates(directory: Path) -> Iterator[CheckpointPaths]:
    """What is, or was, a checkpoint: its manifest is there, complete or not, or its data files miss one.

    Raises:
        UnreadableFileError: the directory cannot be listed.
    """
    with read_errors(directory):  # not glob(), to which a directory that cannot be listed is an empty one
        try:
            files = {path.name for path in directory.iterdir()}
        except (FileNotFoundError, NotADirectoryError):
            files = set()
    names = {name.removesuffix(MANIFEST_SUFFIX) for name in files if name.endswith(MANIFEST_SUFFIX)}
    alone = {name.removesuffix(OPTIMIZER_SUFFIX) for name in files if name.endswith(OPTIMIZER_SUFFIX)} - names
    for name in sorted(names):
        paths = paths_of_name(directory, name)
        # A manifest that nothing can be read of, or somebody else's JSON file: the files beside it tell.
        if _claims_to_be_manifest(paths.manifest) or is_data_file(paths.optimizer) or is_data_file(paths.model):
            yield paths
    for name in sorted(alone):
        paths = paths_of_name(directory, name)
        # After a crash there is a temporary manifest, and nothing to be said: the save did not happen.
        if temporary(paths.manifest).name not in files and is_data_file(paths.optimizer):
            yield paths


def _claims_to_be_manifest(path: Path) -> bool:
    try:
        return looks_like_manifest(path)
    except UnreadableFileError:  # ours or not: the files beside it tell
        return False


def _age(checkpoint: Checkpoint) -> tuple[int, str, str]:
    return checkpoint.step, str(checkpoint.manifest.details.get("saved_at", "")), checkpoint.name


def _claimed_age(paths: CheckpointPaths) -> tuple[int, str, str]:
    """Age of a checkpoint that may be incomplete; where its manifest cannot be read, its name may tell the step."""
    try:
        return _age(Checkpoint(paths, read_manifest(paths.manifest)))
    except CheckpointError:
        step = re.search(r"step=?(\d+)", paths.name)
        return int(step[1]) if step else sys.maxsize, "", paths.name
