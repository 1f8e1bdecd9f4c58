"""What is fuzzed: each target takes any bytes, and raises nothing.

A finding is an exception that is no ``CheckpointError``, or a manifest that is accepted and is not, to the letter, what
this package writes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import xxhash

from neuromanifold_gpt.checkpoint.errors import CheckpointError
from neuromanifold_gpt.checkpoint.manifest import looks_like_manifest, read_manifest
from neuromanifold_gpt.checkpoint.naming import paths_of_name, step_name
from neuromanifold_gpt.state.load import load_checkpoint

from . import hostile
from .tiny_training import TinyTraining

NAME = step_name(3)


def try_manifest(content: bytes, directory: Path) -> None:
    """Read it as a manifest; and as one whose digest matches, which only a program would get right."""
    for text in (content, _with_its_digest(content)):
        paths = paths_of_name(directory, NAME)
        paths.manifest.write_bytes(text)
        looks_like_manifest(paths.manifest)
        try:
            manifest = read_manifest(paths.manifest)
        except CheckpointError:
            continue
        assert manifest.to_bytes() == text
        assert {record.name for record in manifest.files.values()} <= {
            f"{path.name}{suffix}" for path in (paths.model, paths.optimizer) for suffix in ("", ".nm-previous")
        }


def try_archive(content: bytes, directory: Path) -> None:
    """Load it as a unified file, with and without checksums."""
    path = directory / "unified.ckpt"
    path.write_bytes(content)
    for verify in (True, False):
        try:
            load_checkpoint(path, load_optimizer=False, verify=verify)
        except CheckpointError:
            continue


TARGETS: dict[str, Callable[[bytes, Path], None]] = {"manifest": try_manifest, "archive": try_archive}


def _with_its_digest(content: bytes) -> bytes:
    body, _, _ = content.rpartition(b',\n "digest"')
    if not body:
        return content
    digest = xxhash.xxh3_128_hexdigest(body + b"\n}").encode()
    return body + b',\n "digest": "' + digest + b'"\n}\n'


def seeds() -> dict[str, list[bytes]]:
    """Files to begin with: those of a real checkpoint, and unified ones of each form."""
    with tempfile.TemporaryDirectory() as name:
        checkpoint = TinyTraining().train_until(3).save(Path(name))
        manifest, model = checkpoint.paths.manifest.read_bytes(), checkpoint.model_path.read_bytes()
    forms: list[dict[str, object]] = [
        {"model": {}, "iter_num": 3},
        {"state_dict": {}, "pytorch-lightning_version": "2.6.0", "epoch": 1},
        {"model_state_dict": {}, "optimizer_states": [{}], "config": {"a": [1, 2.0, None, True, "x", b"y", (1,)]}},
    ]
    archives = [hostile.saved(form, zipped=zipped) for form in forms for zipped in (True, False)]
    bombs = [hostile.archive(pickled) for pickled in hostile.memory_bombs().values() if len(pickled) < 1000]
    return {"manifest": [manifest], "archive": [model, *archives, *bombs]}
