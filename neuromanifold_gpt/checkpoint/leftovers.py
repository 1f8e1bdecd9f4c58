"""Clear up after saves and removals that were interrupted.

:func:`clear_leftovers` recognises what they leave by its suffix: it removes files of a save that was not committed, and
puts a checkpoint that was being replaced back under its own name. ``commit.py`` has the order of a save.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from neuromanifold_gpt.checkpoint.commit import (
    names_of_files,
    open_complete,
    replace_manifest,
    size_of_regular_file,
    typed_errors,
)
from neuromanifold_gpt.checkpoint.digest import file_digest
from neuromanifold_gpt.checkpoint.errors import CheckpointError, DamagedCheckpointError, UnreadableFileError
from neuromanifold_gpt.checkpoint.manifest import MODEL, OPTIMIZER, read_manifest
from neuromanifold_gpt.checkpoint.naming import (
    MANIFEST_SUFFIX,
    PREVIOUS_SUFFIX,
    TEMPORARY_SUFFIX,
    CheckpointPaths,
    paths_of_any_file,
    paths_of_name,
    previous,
    temporary,
)
from neuromanifold_gpt.checkpoint.storage import Storage


@contextlib.contextmanager
def write_errors(directory: Path, doing: str, remedy: str, storage: Storage) -> Iterator[None]:
    """Clean up after a save or removal that failed, and say which file the system refused and what to do."""
    with typed_errors(directory, doing, remedy):
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError, UnreadableFileError):  # the next writer clears it
                clear_leftovers(directory, storage)
            raise


def clear_leftovers(directory: Path, storage: Storage) -> None:
    """Remove what interrupted saves left in ``directory``, and undo replacements that were not committed."""
    names = sorted(path.name for path in directory.iterdir() if _is_leftover(path))
    if not names:
        return
    # What the dead process did last may not be durable yet: the commit that makes a previous file superfluous, say.
    storage.sync_directory(directory)
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
    return path.name.endswith((TEMPORARY_SUFFIX, PREVIOUS_SUFFIX)) and size_of_regular_file(path) is not None


def _put_back(final: Path, storage: Storage) -> None:
    """Give a checkpoint that was moved aside its own name again, if its replacement was not committed."""
    paths = paths_of_any_file(final)
    try:
        manifest = open_complete(paths).manifest
    except UnreadableFileError:
        raise  # it may name the file, which must stay then
    except CheckpointError:
        return  # incomplete: nothing could be put back
    if previous(final).name not in names_of_files(manifest):
        return
    for record in manifest.files.values():
        target = paths.directory / record.name.removesuffix(PREVIOUS_SUFFIX)
        storage.keep_as(previous(target), temporary(target))
        storage.rename(temporary(target), target)
        storage.remove(temporary(target))  # renaming a link onto another one of the same file leaves both
    storage.sync_directory(paths.directory)
    files = {
        role: replace(record, name=record.name.removesuffix(PREVIOUS_SUFFIX)) for role, record in manifest.files.items()
    }
    replace_manifest(paths, replace(manifest, files=files), storage)


def _remove_uncommitted(paths: CheckpointPaths, storage: Storage) -> None:
    """Remove data files that got their names from a save whose manifest did not."""
    try:
        # Committed, or not begun to rename: the names belong to the manifest that is there.
        taken = names_of_files(read_manifest(paths.manifest)) if paths.manifest.exists() else set()
        interrupted = read_manifest(temporary(paths.manifest), paths)
    except UnreadableFileError:
        raise
    except DamagedCheckpointError:
        return  # torn: it was not synced, so no file had been renamed yet
    for role, target in ((MODEL, paths.model), (OPTIMIZER, paths.optimizer)):
        record = interrupted.files.get(role)
        if record is None or target.name in taken or size_of_regular_file(target) != record.size_bytes:
            continue
        if file_digest(target) == record.digest:  # else somebody put it under this name, and it is not ours to remove
            storage.remove(target)
