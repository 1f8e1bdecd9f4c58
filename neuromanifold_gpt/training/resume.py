"""Find the checkpoint to continue from, and compare its settings with those of now."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuromanifold_gpt.checkpoint.discovery import latest_checkpoint, list_checkpoints
from neuromanifold_gpt.checkpoint.errors import CheckpointError, DamagedCheckpointWarning
from neuromanifold_gpt.state.load import load_checkpoint
from neuromanifold_gpt.state.loaded_checkpoint import LoadedCheckpoint
from neuromanifold_gpt.training.config import TrainConfig
from neuromanifold_gpt.training.errors import ConfigError

_UNIFIED_NAME = re.compile(r"checkpoint-step(\d{6,})\.ckpt")


@dataclass(frozen=True)
class ResumePoint:
    """Where to continue: the path that Lightning is given, the step, and the settings of then."""

    path: Path
    step: int
    model_settings: dict[str, Any]
    training_settings: dict[str, Any]


def find_resume_point(config: TrainConfig) -> ResumePoint | None:
    """The newest intact checkpoint in ``config.out_dir`` with everything that training needs.

    Raises:
        ConfigError: there are checkpoints, but none to continue from; starting over would mix two runs.
    """
    directory = Path(config.out_dir)
    point = _newest_separated(directory) if config.save_separate_optimizer else _newest_unified(directory)
    if point is None and directory.is_dir():
        _refuse_to_start_over(directory, config)
    return point


def _newest_separated(directory: Path) -> ResumePoint | None:
    checkpoint = latest_checkpoint(directory, resumable=True)
    if checkpoint is None:
        return None
    # Its bytes have just been verified.
    return _resume_point(checkpoint.model_path, load_checkpoint(checkpoint, load_optimizer=False, verify=False))


def _newest_unified(directory: Path) -> ResumePoint | None:
    for _, path in sorted(_unified_checkpoints(directory), reverse=True):
        try:
            return _resume_point(path, load_checkpoint(path))
        except CheckpointError as error:
            warnings.warn(f"passing over {path.name}: {error}", DamagedCheckpointWarning, stacklevel=2)
    return None


def _unified_checkpoints(directory: Path) -> list[tuple[int, Path]]:
    matches = ((_UNIFIED_NAME.fullmatch(path.name), path) for path in directory.glob("*.ckpt"))
    return [(int(match[1]), path) for match, path in matches if match]


def _resume_point(path: Path, loaded: LoadedCheckpoint) -> ResumePoint:
    try:
        settings = loaded.config["model"], loaded.config["training"]
    except KeyError as error:
        raise ConfigError(
            f"{path}: this checkpoint was not written by train.py: its configuration has no {error}. Choose another "
            "--out_dir."
        ) from None
    return ResumePoint(path, loaded.global_step, *settings)


def _refuse_to_start_over(directory: Path, config: TrainConfig) -> None:
    separated, unified = list_checkpoints(directory), _unified_checkpoints(directory)
    if separated and all(checkpoint.model_only for checkpoint in separated):
        raise ConfigError(
            f"{directory} holds model-only checkpoints (the newest is {separated[-1].name}), which cannot be resumed "
            "from. Choose another --out_dir, or remove them to start over."
        )
    other = unified if config.save_separate_optimizer else separated
    if other:
        kind, flag = ("unified", "False") if config.save_separate_optimizer else ("separated", "True")
        raise ConfigError(
            f"{directory} holds {kind} checkpoints. Continue with --save_separate_optimizer={flag}, or choose "
            "another --out_dir."
        )
    damaged = sorted(path.name for path in directory.glob("checkpoint-step*.*"))
    if damaged:
        raise ConfigError(
            f"{directory} holds no intact checkpoint, only {', '.join(damaged[:6])}. Choose another --out_dir, or "
            "remove these files to start over."
        )


def changed_settings(point: ResumePoint, model: dict[str, Any], training: dict[str, Any]) -> list[str]:
    """One line for each setting that changes the trajectory from here on.

    Raises:
        ConfigError: a setting that decides the shapes of the weights differs.
    """
    impossible = _differences(point.model_settings, {**point.model_settings, **model})
    if impossible:
        raise ConfigError(
            f"{point.path.parent} holds a run of another model: {'; '.join(impossible)}. Give the checkpoint's "
            "settings, or choose another --out_dir."
        )
    return _differences(point.training_settings, training)


def _differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [
        f"{name} was {then.get(name)!r} in the checkpoint and is {now.get(name)!r} now"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]
