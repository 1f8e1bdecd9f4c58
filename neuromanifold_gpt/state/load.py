"""Load a checkpoint of any known form."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neuromanifold_gpt.checkpoint.commit import Checkpoint, open_complete
from neuromanifold_gpt.checkpoint.discovery import latest_checkpoint, open_checkpoint
from neuromanifold_gpt.checkpoint.errors import (
    CheckpointNotFoundError,
    DamagedCheckpointError,
    IncompleteCheckpointError,
    MissingOptimizerError,
)
from neuromanifold_gpt.checkpoint.foreign import classify, read_any_archive
from neuromanifold_gpt.checkpoint.manifest import MODEL, OPTIMIZER, looks_like_manifest
from neuromanifold_gpt.checkpoint.naming import paths_of_any_file
from neuromanifold_gpt.checkpoint.reader import read_file
from neuromanifold_gpt.checkpoint.storage import read_errors
from neuromanifold_gpt.checkpoint.writer import STAMP_KEY
from neuromanifold_gpt.state.loaded_checkpoint import LoadedCheckpoint
from neuromanifold_gpt.state.rng import own_state


def load_checkpoint(
    path_or_checkpoint: str | Path | Checkpoint,
    *,
    load_optimizer: bool = True,
    verify: bool = True,
    trusted: bool = False,
) -> LoadedCheckpoint:
    """Load a checkpoint into CPU memory; the form of a file is found by its content.

    Args:
        path_or_checkpoint: a :class:`Checkpoint`, any of the three files of a separated checkpoint, a directory (its
            newest intact checkpoint), or a unified file: Lightning, nanoGPT, or a plain dict of state dicts.
        load_optimizer: ``False`` reads the model file only; a model file without the other two is then enough.
        verify: compare every byte with its digest (unified files: with the archive's CRC-32).
        trusted: let the pickle in the file run code. Only for files whose author you trust.

    Raises:
        CheckpointNotFoundError, IncompleteCheckpointError, DamagedCheckpointError, MismatchedPairError,
        UnknownFormatError, UntrustedPickleError: what the names say; see ``checkpoint/errors.py``.
        MissingOptimizerError: there is no optimizer state and ``load_optimizer`` is true.
    """
    if isinstance(path_or_checkpoint, Checkpoint):
        return _load_separated(open_complete(path_or_checkpoint.paths), load_optimizer, verify, trusted)
    path = Path(path_or_checkpoint)
    with read_errors(path):
        return _load_path(path, load_optimizer, verify, trusted)


def _load_path(path: Path, load_optimizer: bool, verify: bool, trusted: bool) -> LoadedCheckpoint:
    if path.is_dir():
        newest = latest_checkpoint(path)
        if newest is None:
            raise CheckpointNotFoundError(f"{path}: there is no intact checkpoint in this directory.")
        return _load_separated(newest, load_optimizer, verify=False, trusted=trusted)  # it has just been verified
    if _has_manifest(path):
        return _load_separated(open_checkpoint(path), load_optimizer, verify, trusted)
    return _load_file(path, load_optimizer, verify, trusted)


def _has_manifest(path: Path) -> bool:
    # A foreign JSON file beside a foreign model file is none.
    return any(
        looks_like_manifest(paths_of_any_file(candidate).manifest) for candidate in (path, Path(os.path.realpath(path)))
    )


def _load_separated(checkpoint: Checkpoint, load_optimizer: bool, verify: bool, trusted: bool) -> LoadedCheckpoint:
    if load_optimizer and checkpoint.model_only:
        raise MissingOptimizerError(
            f"{checkpoint.paths.model}: this checkpoint is model-only. Load it with load_optimizer=False."
        )
    model = read_file(checkpoint, MODEL, verify=verify, trusted=trusted)
    loaded = _from_model_content(checkpoint.file(MODEL), model, checkpoint)
    if load_optimizer:
        content = read_file(checkpoint, OPTIMIZER, verify=verify, trusted=trusted)
        loaded.optimizer_states = content.get("optimizer_states", [])
        loaded.lr_scheduler_states = content.get("lr_schedulers", [])
        loaded.lr_scheduler_classes = content.get("lr_scheduler_classes", [])
        loaded.rng_states = content.get("rng_states", [])
        loaded.loader_states = own_state(content.get("data") or [[]])
        loaded.own_generators = content.get("own_generators", [])
        loaded.stateful_generators = content.get("stateful_generators", [])
        loaded.metrics = content.get("metrics", [])
        loaded.modes = content.get("modes", {})
        loaded.pruned_weights = content.get("pruned_weights", {})
        loaded.gradients = content.get("gradients", [])
        loaded.stateful_states = content.get("stateful", {})
    return loaded


def _from_model_content(path: Path, model: dict[str, Any], checkpoint: Checkpoint | None) -> LoadedCheckpoint:
    if not isinstance(model.get("state_dict"), Mapping):  # only an unverified file can be like this
        raise DamagedCheckpointError(f"{path}: there is no state dict in this model file. Use another checkpoint.")
    configs = [model.get(key) for key in ("hyper_parameters", "config")]  # a user's hook may put anything there
    return LoadedCheckpoint(
        form="separated",
        global_step=model.get("global_step", 0),
        epoch=checkpoint.epoch if checkpoint else model.get("epoch"),
        model_state=model["state_dict"],
        config={key: value for config in configs if isinstance(config, Mapping) for key, value in config.items()},
        checkpoint=checkpoint,
    )


def _load_file(path: Path, load_optimizer: bool, verify: bool, trusted: bool) -> LoadedCheckpoint:
    paths = paths_of_any_file(path)
    if not path.is_file():
        open_complete(paths)  # raises: nothing is there, or another part of a separated checkpoint
    content = read_any_archive(path, verify=verify, trusted=trusted)
    stamp = content.pop(STAMP_KEY, None) if isinstance(content, dict) else None
    if isinstance(stamp, dict):
        if load_optimizer or stamp.get("file") != MODEL:
            raise IncompleteCheckpointError(
                f"{path}: this is the {stamp.get('file')} file of a separated checkpoint, but {paths.manifest.name} is "
                "missing or no manifest: the save was not finished, or the file was copied alone. A model file alone "
                "loads with load_optimizer=False."
            )
        return _from_model_content(path, content, None)
    unified = classify(path, content)
    if load_optimizer and unified.optimizer_states is None:
        raise MissingOptimizerError(
            f"{path}: this {unified.form} checkpoint has no optimizer state. Load it with load_optimizer=False."
        )
    return LoadedCheckpoint(
        form=unified.form,
        global_step=unified.global_step,
        epoch=unified.epoch,
        model_state=unified.model_state,
        optimizer_states=unified.optimizer_states if load_optimizer else None,
        lr_scheduler_states=unified.lr_scheduler_states,
        config=unified.config,
    )
