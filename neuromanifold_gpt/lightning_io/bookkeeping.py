"""What Lightning's ``ModelCheckpoint`` believes about its files: noted, put back, corrected, and made portable."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from neuromanifold_gpt.checkpoint.naming import paths_of_model_file

_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")
_FIELDS = (
    *_PATHS,
    "current_score",
    "best_k_models",
    "kth_value",
    "best_model_score",
    "_last_global_step_saved",
    "_last_checkpoint_saved",
)


def noted(callback: ModelCheckpoint) -> dict[str, Any]:
    """All that a decision to save changes, before the decision."""
    fields = {name: getattr(callback, name) for name in _FIELDS}
    fields["best_k_models"] = dict(callback.best_k_models)
    return fields


def put_back(callback: ModelCheckpoint, fields: dict[str, Any]) -> None:
    """As if the decision had not been taken."""
    for name, value in fields.items():
        setattr(callback, name, value)


def believed_paths(callback: ModelCheckpoint) -> set[str]:
    """The files that a callback counts on."""
    return {getattr(callback, name) for name in _PATHS} | set(callback.best_k_models)


def names_in(directory: Path, paths: Collection[str]) -> set[str]:
    """Names of the checkpoints in ``directory`` among model files, or links to them."""
    both = [other for path in paths if path for other in (Path(path).absolute(), Path(path).resolve())]
    return {paths_of_model_file(path).name for path in both if path.parent in (directory, directory.resolve())}


def forget(callback: ModelCheckpoint, removed: Collection[Path]) -> None:
    """Correct a callback whose files were removed. The best of all must not be among them."""
    for path in [path for path in callback.best_k_models if Path(path).absolute() in removed]:
        del callback.best_k_models[path]
    if callback.best_k_models and callback.kth_best_model_path not in callback.best_k_models:
        worst: Callable[..., str] = max if callback.mode == "min" else min
        callback.kth_best_model_path = worst(callback.best_k_models, key=callback.best_k_models.__getitem__)
        callback.kth_value = callback.best_k_models[callback.kth_best_model_path]


def only_the_best(state: dict[str, Any], mode: str) -> None:
    """Of a ``state_dict``, leave out what depends on which checkpoints happen to be still there."""
    best = state["best_model_path"]
    state["best_k_models"] = {path: score for path, score in state["best_k_models"].items() if path == best}
    state["kth_best_model_path"] = ""
    state["kth_value"] = torch.tensor(torch.inf if mode == "min" else -torch.inf)


def make_relative(state: dict[str, Any], directory: str) -> None:
    """Put file names in place of paths: a ``state_dict`` must be the same wherever the run lies."""

    def relative(path: str) -> str:
        return os.path.relpath(path, directory) if path else ""

    del state["dirpath"]
    for key in (*_PATHS, "last_checkpoint_saved"):
        state[key] = relative(state[key])
    state["best_k_models"] = {relative(path): score for path, score in state["best_k_models"].items()}


def make_absolute(state: dict[str, Any], directory: str) -> None:
    """Undo :func:`make_relative`; best checkpoints that are no longer there are forgotten."""

    def absolute(path: str) -> str:
        return os.path.normpath(Path(directory) / path) if path else ""

    state["dirpath"] = directory
    for key in (*_PATHS, "last_checkpoint_saved"):
        state[key] = absolute(state.get(key, ""))
    best = {absolute(path): score for path, score in state["best_k_models"].items()}
    state["best_k_models"] = {path: score for path, score in best.items() if Path(path).exists()}
