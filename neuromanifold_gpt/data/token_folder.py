"""Folders that nanoGPT's ``prepare.py`` writes: ``train.bin`` and ``val.bin``, headerless uint16 token ids.

The vocabulary comes from ``meta.json``: an object with ``vocab_size``, and, where ids have texts, ``itos`` (a
list, or an object from id to text) and ``stoi`` (an object from text to id). nanoGPT's own ``meta.pkl`` is
never read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from neuromanifold_gpt.data.errors import DatasetError
from neuromanifold_gpt.data.splits import Split, open_split
from neuromanifold_gpt.data.vocabulary import IdVocabulary, TableVocabulary, Vocabulary

TOKEN_DTYPE = np.dtype("<u2")  # nanoGPT writes the machine's byte order, little-endian wherever it runs
TRAIN_NAME, VALIDATION_NAME = "train.bin", "val.bin"
META_NAME, PICKLED_META_NAME = "meta.json", "meta.pkl"

CONVERT_META = """\
import json, pathlib, pickle
folder = pathlib.Path({folder!r})
meta = pickle.loads((folder / "meta.pkl").read_bytes())
kept = {{key: meta[key] for key in ("vocab_size", "itos", "stoi") if key in meta}}
(folder / "meta.json").write_text(json.dumps(kept))
"""


def is_token_folder(folder: Path) -> bool:
    """Tell whether a folder is nanoGPT's; raises `DatasetError` if only one of its two files is there."""
    names = [name for name in (TRAIN_NAME, VALIDATION_NAME) if (folder / name).is_file()]
    if len(names) == 1:
        missing = VALIDATION_NAME if names == [TRAIN_NAME] else TRAIN_NAME
        raise DatasetError(
            f"{folder}: expected {TRAIN_NAME} and {VALIDATION_NAME}, found only {names[0]}; run its prepare.py again "
            f"to get {missing}, or remove {names[0]} if the folder is meant as text"
        )
    return len(names) == 2


def open_token_folder(folder: Path, vocab_size: int | None) -> tuple[Split, Split, Vocabulary]:
    """Map both files of a nanoGPT folder and check every token id.

    Args:
        folder: has ``train.bin`` and ``val.bin``.
        vocab_size: number of token ids; needed if there is no ``meta.json``.

    Raises:
        OSError: a file cannot be read.
        DatasetError: the vocabulary is unknown, or a file is not what it should be.
    """
    vocabulary = _read_vocabulary(folder, vocab_size)
    train, validation = (_open_tokens(folder / name, vocabulary.size) for name in (TRAIN_NAME, VALIDATION_NAME))
    return train, validation, vocabulary


def _open_tokens(path: Path, vocab_size: int) -> Split:
    size = path.stat().st_size
    if size == 0 or size % TOKEN_DTYPE.itemsize:
        raise DatasetError(
            f"{path}: expected uint16 tokens, an even number of bytes above 0, found {size} bytes; it was cut short "
            "or is no file of nanoGPT: run its prepare.py again"
        )
    split = open_split(path, TOKEN_DTYPE, count=size // TOKEN_DTYPE.itemsize)
    if split.largest >= vocab_size:
        raise DatasetError(
            f"{path}: expected token ids below vocab_size={vocab_size}, found the maximum {split.largest}; give the "
            f"vocabulary that the file was made with (at least {split.largest + 1})"
        )
    return split


def _read_vocabulary(folder: Path, vocab_size: int | None) -> Vocabulary:
    path = folder / META_NAME
    if not path.exists():
        if vocab_size is None:
            raise DatasetError(_unknown_vocabulary(folder))
        return IdVocabulary(vocab_size)
    vocabulary = _parse_meta(path)
    if vocab_size is not None and vocab_size != vocabulary.size:
        raise DatasetError(
            f"vocab_size: expected {vocabulary.size} as in {path}, found {vocab_size}; leave vocab_size away, or "
            "correct the file"
        )
    return vocabulary


def _unknown_vocabulary(folder: Path) -> str:
    if not (folder / PICKLED_META_NAME).exists():
        return (
            f"{folder}: expected a {META_NAME} with 'vocab_size' beside {TRAIN_NAME}, found none; give --vocab_size "
            "(50257 for the BPE of GPT-2)"
        )
    snippet = CONVERT_META.format(folder=str(folder.absolute()))
    return (
        f"{folder / PICKLED_META_NAME}: expected {META_NAME}, found only this pickle. Reading a pickle can run any "
        "code that its author put in, so it is not read. Give --vocab_size, or, if you trust the file, convert it "
        f"by running this with python:\n\n{snippet}"
    )


def _parse_meta(path: Path) -> Vocabulary:
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, or not JSON
        raise DatasetError(f"{path}: expected JSON, found something else ({error}); write it anew") from error
    size = meta.get("vocab_size") if isinstance(meta, dict) else None
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise DatasetError(
            f"{path}: expected an object whose 'vocab_size' is an integer of at least 1, found {_shortened(meta)}; "
            "add it"
        )
    if "itos" not in meta and "stoi" not in meta:
        return IdVocabulary(size)
    stoi = _parse_stoi(path, meta.get("stoi", {}))
    itos = _parse_itos(path, meta["itos"]) if "itos" in meta else {i: text for text, i in stoi.items()}
    try:
        return TableVocabulary(size, itos, stoi)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error


def _parse_itos(path: Path, itos: Any) -> dict[int, str]:
    if isinstance(itos, list):
        itos = {str(token_id): text for token_id, text in enumerate(itos)}
    if not isinstance(itos, dict):
        raise DatasetError(f"{path}: itos: expected a list or an object, found {_shortened(itos)}; correct it")
    for key, text in itos.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10) or not isinstance(text, str):
            raise DatasetError(
                f"{path}: itos: expected texts by token id, found {_shortened(key)}: {_shortened(text)}; correct it"
            )
    return {int(key): text for key, text in itos.items()}


def _parse_stoi(path: Path, stoi: Any) -> dict[str, int]:
    if not isinstance(stoi, dict):
        raise DatasetError(f"{path}: stoi: expected an object, found {_shortened(stoi)}; correct it")
    for text, token_id in stoi.items():
        if not isinstance(token_id, int) or isinstance(token_id, bool):
            raise DatasetError(
                f"{path}: stoi: expected token ids by text, found {_shortened(text)}: {_shortened(token_id)}; "
                "correct it"
            )
    return stoi


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
