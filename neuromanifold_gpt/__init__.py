"""Training that stops and resumes exactly, from checkpoints separated into a model file and an optimizer file.

The names below are the front door. Each is imported when it is first asked for: a program that uses none of them, such
as a pytest that only loads this package's plugin, does not pay for torch, and the core does not pay for Lightning.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuromanifold_gpt.checkpoint.commit import Checkpoint
    from neuromanifold_gpt.checkpoint.discovery import latest_checkpoint, list_checkpoints, verify_checkpoint
    from neuromanifold_gpt.checkpoint.errors import CheckpointError
    from neuromanifold_gpt.checkpoint.lock import lock_directory
    from neuromanifold_gpt.checkpoint.retention import Retention, apply_retention
    from neuromanifold_gpt.data.loader import ResumableDataLoader
    from neuromanifold_gpt.data.resumable import resumable
    from neuromanifold_gpt.lightning_io import SeparatedCheckpoint, SeparatedCheckpointIO, StopOnSignal
    from neuromanifold_gpt.state.compare import compare_checkpoints
    from neuromanifold_gpt.state.load import load_checkpoint
    from neuromanifold_gpt.state.loaded_checkpoint import LoadedCheckpoint
    from neuromanifold_gpt.state.save import save_checkpoint

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "LoadedCheckpoint",
    "ResumableDataLoader",
    "Retention",
    "SeparatedCheckpoint",
    "SeparatedCheckpointIO",
    "StopOnSignal",
    "apply_retention",
    "compare_checkpoints",
    "latest_checkpoint",
    "list_checkpoints",
    "load_checkpoint",
    "lock_directory",
    "resumable",
    "save_checkpoint",
    "verify_checkpoint",
]

_HOMES = {
    "checkpoint.commit": ("Checkpoint",),
    "checkpoint.discovery": ("latest_checkpoint", "list_checkpoints", "verify_checkpoint"),
    "checkpoint.errors": ("CheckpointError",),
    "checkpoint.lock": ("lock_directory",),
    "checkpoint.retention": ("Retention", "apply_retention"),
    "data.loader": ("ResumableDataLoader",),
    "data.resumable": ("resumable",),
    "lightning_io": ("SeparatedCheckpoint", "SeparatedCheckpointIO", "StopOnSignal"),
    "state.compare": ("compare_checkpoints",),
    "state.load": ("load_checkpoint",),
    "state.loaded_checkpoint": ("LoadedCheckpoint",),
    "state.save": ("save_checkpoint",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value  # the next time it is found without a call
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
