"""Training that stops and resumes exactly, from checkpoints separated into a model file and an optimizer file.

The names below are the front door. Lightning is imported only when one of its classes is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from neuromanifold_gpt.checkpoint.commit import Checkpoint
from neuromanifold_gpt.checkpoint.discovery import latest_checkpoint, list_checkpoints, verify_checkpoint
from neuromanifold_gpt.checkpoint.errors import CheckpointError
from neuromanifold_gpt.checkpoint.lock import lock_directory
from neuromanifold_gpt.checkpoint.retention import Retention, apply_retention
from neuromanifold_gpt.data.loader import ResumableDataLoader
from neuromanifold_gpt.data.resumable import resumable
from neuromanifold_gpt.state.compare import compare_checkpoints
from neuromanifold_gpt.state.load import load_checkpoint
from neuromanifold_gpt.state.loaded_checkpoint import LoadedCheckpoint
from neuromanifold_gpt.state.save import save_checkpoint

if TYPE_CHECKING:
    from neuromanifold_gpt.lightning_io import SeparatedCheckpoint, SeparatedCheckpointIO, StopOnSignal

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


def __getattr__(name: str) -> Any:
    if name in ("SeparatedCheckpoint", "SeparatedCheckpointIO", "StopOnSignal"):
        from neuromanifold_gpt import lightning_io

        return getattr(lightning_io, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
