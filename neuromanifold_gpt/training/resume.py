"""Find the checkpoint to continue from, and compare its settings with those of now."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuromanifold_gpt.checkpoint.discovery import latest_checkpoint, list_checkpoints
from neuromanifold_gpt.checkpoint.errors import CheckpointError, DamagedCheckpointError, DamagedCheckpointWarning
from neuromanifold_gpt.checkpoint.manifest import shown
from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.data.errors import DatasetError
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
            warn_user(f"passing over {path.name}: {error}", DamagedCheckpointWarning)
    return None


def _unified_checkpoints(directory: Path) -> list[tuple[int, Path]]:
    matches = ((_UNIFIED_NAME.fullmatch(path.name), path) for path in directory.glob("*.ckpt"))
    return [(int(match[1]), path) for match, path in matches if match]


def _resume_point(path: Path, loaded: LoadedCheckpoint) -> ResumePoint:
    try:
        settings = loaded.config["model"], loaded.config["training"]
    except KeyError as error:
        raise _not_ours(path, f"its configuration has no {error}") from None
    for value in settings:
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise _not_ours(path, "its configuration has no names and values")
    if type(loaded.global_step) is not int or loaded.global_step < 0:
        raise _not_ours(path, f"its step is {_shortened(loaded.global_step)}")
    return ResumePoint(path, loaded.global_step, *settings)


def _not_ours(path: Path, reason: str) -> ConfigError:
    return ConfigError(f"{path}: this checkpoint was not written by train.py: {reason}. Choose another --out_dir.")


@contextlib.contextmanager
def restore_errors(point: ResumePoint | None, has_begun: Callable[[], bool]) -> Iterator[None]:
    """Until training has begun, an error is about what the checkpoint holds.

    Raises:
        DamagedCheckpointError: that cannot be restored; nothing was changed.
    """
    try:
        yield
    except (CheckpointError, ConfigError, DatasetError, OSError, MemoryError):
        raise
    except Exception as error:
        if point is None or has_begun():
            raise
        raise DamagedCheckpointError(
            f"{point.path}: what is in it cannot be restored: {type(error).__name__}: "
            f"{_shortened(str(error).partition(chr(10))[0])}. Remove this checkpoint to continue from the one before "
            "it, or choose another --out_dir."
        ) from error


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
        f"{shown(name)} was {_shortened(then.get(name))} in the checkpoint and is {_shortened(now.get(name))} now"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]


def _shortened(value: Any) -> str:
    """For a message: what stands in a file may be long, and must not reach a terminal as it is."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
