"""Which files of a folder are text, and which of them are for validation."""

from __future__ import annotations

import os
import stat
import sysconfig
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import xxhash

from neuromanifold_gpt.data.errors import DatasetError

# In any letter case.
TEXT_SUFFIXES = frozenset(
    {".txt", ".md", ".rst", ".tex", ".html", ".csv", ".json"}
    | {".py", ".c", ".h", ".cpp", ".rs", ".go", ".java", ".js", ".ts"}
)
# Tests repeat themselves, and installed packages are not the standard library.
SKIPPED_IN_STDLIB = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})
VALIDATION_ONE_IN = 10


@dataclass(frozen=True)
class TextFile:
    """A text file of a corpus.

    Args:
        relative: POSIX path below the folder of the corpus. Order and split depend on it and on nothing else.
        path: where the file lies.
        size: in bytes, never 0.
    """

    relative: str
    path: Path
    size: int


def is_validation(relative: str) -> bool:
    """Tell whether the file with this POSIX path is one of the about 10 % that are for validation.

    The path alone decides, so that files that come or go move no other file to the other side.
    """
    # surrogateescape: file names are bytes, and need not be UTF-8
    digest = xxhash.xxh3_64_intdigest(relative.encode("utf-8", errors="surrogateescape"))
    return digest % VALIDATION_ONE_IN == 0


def stdlib_files() -> list[TextFile]:
    """List the Python source of this interpreter's standard library, without its tests, sorted by path."""
    root = Path(sysconfig.get_path("stdlib"))
    return find_text_files(root, suffixes={".py"}, skipped_folders=SKIPPED_IN_STDLIB)


def find_text_files(
    root: Path, *, suffixes: Set[str] = TEXT_SUFFIXES, skipped_folders: Set[str] = frozenset()
) -> list[TextFile]:
    """List the files under a folder that have one of the suffixes, sorted by relative POSIX path.

    Hidden files and folders are left out, and so are empty files. So are links: what they point to is outside
    the corpus, or already in it.

    Raises:
        OSError: a folder cannot be read.
        DatasetError: nothing was found; the message lists what there is instead.
    """
    files: list[TextFile] = []
    others: Counter[str] = Counter()
    for folder, subfolders, names in os.walk(root, onerror=_raise):
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name not in skipped_folders]
        for path in (Path(folder, name) for name in names):
            status = path.lstat()
            kind = _kind(path, status, suffixes)
            if kind is None:
                files.append(TextFile(path.relative_to(root).as_posix(), path, status.st_size))
            else:
                others[kind] += 1
    if not files:
        listing = ", ".join(f"{count} {kind}" for kind, count in others.most_common(8)) or "no files at all"
        raise DatasetError(
            f"{root}: expected text files ({' '.join(sorted(suffixes))}), found {listing}; give a folder that has "
            "some, a single text file, or a nanoGPT folder with train.bin and val.bin"
        )
    return sorted(files, key=lambda file: file.relative)


def _kind(path: Path, status: os.stat_result, suffixes: Set[str]) -> str | None:
    """Say why a file is left out, as a noun for a listing; None if it belongs to the corpus."""
    if path.name.startswith("."):
        return "hidden"
    if stat.S_ISLNK(status.st_mode):
        return "linked"
    if not stat.S_ISREG(status.st_mode):
        return "special (pipe, socket or device)"
    if path.suffix.lower() not in suffixes:
        return path.suffix or "without suffix"
    return "empty" if status.st_size == 0 else None


def _raise(error: OSError) -> NoReturn:
    raise error  # os.walk would pass over the folder in silence
