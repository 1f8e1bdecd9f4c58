"""Checkpoints of a few bytes, each with a version number in every tensor, so that a mixture of two would show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from neuromanifold_gpt import Checkpoint, list_checkpoints, load_checkpoint
from neuromanifold_gpt.checkpoint.commit import open_complete
from neuromanifold_gpt.checkpoint.naming import PREVIOUS_SUFFIX, TEMPORARY_SUFFIX, paths_of_name
from neuromanifold_gpt.checkpoint.storage import Storage
from neuromanifold_gpt.checkpoint.writer import stage_checkpoint, write_checkpoint

from ..faults.storages import ObservedStorage


@dataclass(frozen=True)
class Save:
    """One save: its name, the number in its tensors, and whether it is model-only."""

    name: str
    version: int
    model_only: bool = False

    @property
    def step(self) -> int:
        return int("0" + "".join(filter(str.isdigit, self.name)))

    def write(self, directory: Path, storage: Storage | None = None) -> Checkpoint:
        value = torch.full((3,), float(self.version))
        model = {"global_step": self.step, "state_dict": {"weight": value}, "config": {"version": self.version}}
        optimizer = {"optimizer_states": [{"moment": value + 0.5}], "lr_schedulers": [{"version": self.version}]}
        staged = stage_checkpoint(self.step, model, None if self.model_only else optimizer)
        return write_checkpoint(paths_of_name(directory, self.name), staged, storage or ObservedStorage())


def found(directory: Path, name: str) -> Save:
    """The save that is found under a name; every byte verified, every part of the same version."""
    checkpoint = open_complete(paths_of_name(directory, name))
    loaded = load_checkpoint(checkpoint, load_optimizer=not checkpoint.model_only)
    version = loaded.config["version"]
    assert loaded.model_state["weight"].tolist() == [version] * 3
    if not checkpoint.model_only:
        assert loaded.optimizer_states[0]["moment"].tolist() == [version + 0.5] * 3
        assert loaded.lr_scheduler_states == [{"version": version}]
    return Save(name, version, checkpoint.model_only)


def files_of_checkpoints(directory: Path) -> set[str]:
    """Names of all files that the complete checkpoints of a directory consist of."""
    return {
        path.name
        for checkpoint in list_checkpoints(directory)
        for path in (checkpoint.paths.manifest, checkpoint.model_path, checkpoint.optimizer_path)
        if path is not None
    }


def names_in(directory: Path) -> set[str]:
    """What ``ls`` shows."""
    return {path.name for path in directory.iterdir()}


def temporary_files(directory: Path) -> list[str]:
    """Names that only an unfinished save leaves."""
    return sorted(name for name in names_in(directory) if name.endswith((TEMPORARY_SUFFIX, PREVIOUS_SUFFIX)))
