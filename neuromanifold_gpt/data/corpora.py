"""Open a corpus by the name that ``--dataset`` takes."""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from neuromanifold_gpt.data.errors import DatasetError
from neuromanifold_gpt.data.joined_text import default_cache_dir, open_joined, validation_size
from neuromanifold_gpt.data.splits import Split, open_split
from neuromanifold_gpt.data.text_files import find_text_files, stdlib_files
from neuromanifold_gpt.data.token_folder import is_token_folder, open_token_folder
from neuromanifold_gpt.data.vocabulary import ByteVocabulary, Vocabulary

STDLIB = "stdlib"
FORMS = f"'{STDLIB}', a text file, a folder of text, or a nanoGPT folder (train.bin and val.bin)"

SNIFFED_BYTES = 8192  # a NUL among the first bytes tells binary from text, as for git
BINARY_FORMATS = {
    b"PK\x03\x04": "a zip archive, such as torch.save writes",
    b"PK\x05\x06": "an empty zip archive",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"\x1f\x8b": "a gzip file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ\x00": "an xz file",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"%PDF-": "a PDF document",
}


@dataclass(frozen=True, eq=False)
class Corpus:
    """Text to train on, as token ids.

    Args:
        name: what `open_corpus` was asked for.
        train: (N,) uint8 or uint16, read-only memory map.
        validation: (M,) of the same type, read-only memory map.
        vocabulary: what the ids stand for.
        digest: xxh3-128, 32 hexadecimal digits, of the token type, both splits and the vocabulary. It does
            not depend on where the corpus lies: equal digests mean the same training data.
    """

    name: str
    train: np.memmap
    validation: np.memmap
    vocabulary: Vocabulary
    digest: str


def open_corpus(dataset: str, *, vocab_size: int | None = None, cache_dir: Path | None = None) -> Corpus:
    """Open a corpus, read it through once to check and digest it, and map it into memory.

    Args:
        dataset: what to open:

            * ``"stdlib"``: the source of the Python standard library on this machine, without its tests.
              About one file in ten, chosen by a hash of its path, is for validation.
            * a text file: taken where it lies; its last tenth is for validation.
            * a folder of text: its files with a suffix of `text_files.TEXT_SUFFIXES`, at any depth. Split
              like the standard library, or like a single file where that would leave a side empty.
            * a folder with nanoGPT's ``train.bin`` and ``val.bin``: uint16 token ids. `token_folder` says
              where its vocabulary comes from.

            All but the last are byte-level: a token is a byte, 0 .. 255. A folder of the name "stdlib" is
            reached as ``"./stdlib"``.
        vocab_size: number of token ids. Needed for a nanoGPT folder without ``meta.json``. For bytes, one
            above 256 pads the vocabulary.
        cache_dir: where the joined files of "stdlib" and of folders of text are kept; by default
            ``$XDG_CACHE_HOME/neuromanifold_gpt``, or ``~/.cache/neuromanifold_gpt``.

    Raises:
        DatasetError: the data set cannot be used; the message says which item, why, and what to do.
    """
    _check_vocab_size(vocab_size)
    path = None if dataset == STDLIB else _locate(dataset)
    try:
        if path is not None and path.is_dir() and is_token_folder(path):
            train, validation, vocabulary = open_token_folder(path, vocab_size)
        else:
            vocabulary = ByteVocabulary() if vocab_size is None else ByteVocabulary(vocab_size)
            train, validation = _open_bytes(path, cache_dir)
    except OSError as error:
        raise DatasetError(
            f"{error.filename or dataset}: expected to read it, found an error ({error.strerror or error}); check "
            "that it is there and its permissions"
        ) from error
    digest = _digest(train, validation, vocabulary)
    return Corpus(dataset, train.tokens, validation.tokens, vocabulary, digest)


def _check_vocab_size(vocab_size: int | None) -> None:
    is_integer = isinstance(vocab_size, int) and not isinstance(vocab_size, bool)
    if vocab_size is not None and not (is_integer and vocab_size >= 1):
        raise DatasetError(f"vocab_size: expected an integer of at least 1, found {vocab_size!r}; correct it")


def _locate(dataset: str) -> Path:
    """Find the file or folder that the user means."""
    try:
        path = Path(dataset).expanduser()
        kind = path.stat().st_mode
    except (OSError, RuntimeError, ValueError) as error:  # ~unknown_user, or a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise DatasetError(f"dataset {dataset!r}: expected {FORMS}, found none ({reason}); check the path") from error
    if not dataset or not (stat.S_ISDIR(kind) or stat.S_ISREG(kind)):
        found = "a pipe, socket or device" if dataset else "an empty name"
        raise DatasetError(f"dataset {dataset!r}: expected {FORMS}, found {found}; give one of these")
    return path


def _open_bytes(path: Path | None, cache_dir: Path | None) -> tuple[Split, Split]:
    """Open a byte-level corpus; no path means the standard library."""
    if path is not None and not path.is_dir():
        return _open_text_file(path)
    name, files = (STDLIB, stdlib_files()) if path is None else ("folder", find_text_files(path))
    return open_joined(files, name=name, cache_dir=cache_dir or default_cache_dir())


def _open_text_file(path: Path) -> tuple[Split, Split]:
    size = path.stat().st_size
    if size < 2:
        raise DatasetError(f"{path}: expected at least 2 bytes of text, found {size}; give a longer file")
    _refuse_binary(path)
    end_of_train = size - validation_size(size)
    return (
        open_split(path, np.uint8, count=end_of_train),
        open_split(path, np.uint8, offset=end_of_train, count=size - end_of_train),
    )


def _refuse_binary(path: Path) -> None:
    """Refuse what was hardly meant as text, above all checkpoints: told by content, not by name."""
    with path.open("rb") as file:
        head = file.read(SNIFFED_BYTES)
    found = next((name for magic, name in BINARY_FORMATS.items() if head.startswith(magic)), None)
    if found is None and b"\x00" in head:
        found = f"binary data (a NUL at byte {head.index(0)})"
    if found is not None:
        raise DatasetError(
            f"{path}: expected text in UTF-8 or another encoding without NUL bytes, found {found}; extract or "
            "convert it first, or, if it is a token file of nanoGPT, give the folder that it is in"
        )


def _digest(train: Split, validation: Split, vocabulary: Vocabulary) -> str:
    description = {
        "dtype": train.tokens.dtype.name,
        "train": [train.tokens.size, train.digest],
        "validation": [validation.tokens.size, validation.digest],
        "vocabulary": vocabulary.description(),
    }
    return xxhash.xxh3_128_hexdigest(json.dumps(description, sort_keys=True).encode())
