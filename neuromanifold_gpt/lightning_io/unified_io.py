"""Unified ``.ckpt`` files, written as durably as the separated ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH

from neuromanifold_gpt.checkpoint.commit import created
from neuromanifold_gpt.checkpoint.errors import CheckpointWriteError
from neuromanifold_gpt.checkpoint.naming import temporary
from neuromanifold_gpt.checkpoint.storage import LocalStorage, make_directory


class DurableUnifiedIO(TorchCheckpointIO):
    """Lightning's own plugin, which stages files in TMPDIR and syncs nothing, but for how it writes.

    Where TMPDIR is another file system (it often is), Lightning copies from there over the name itself: a kill leaves
    half a file, and a full TMPDIR ends the run. Here the file is written beside its name, synced and renamed.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write one file.

        Raises:
            CheckpointWriteError: the file system refused; what has the name stays.
        """
        target, storage = Path(path), LocalStorage()
        aside = temporary(target)
        try:
            make_directory(target.parent)
            try:
                with created(aside, storage) as file:
                    torch.save(checkpoint, file)
                storage.rename(aside, target)
            except BaseException:
                storage.remove(aside)
                raise
            storage.sync_directory(target.parent)
        except (OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "inline_container" not in str(error):
                raise
            # torch's writer, when a file takes no more, says where it is and not why.
            reason = error.strerror if isinstance(error, OSError) else "the file takes no more, as when a disk is full"
            raise CheckpointWriteError(
                f"{target}: saving failed: {reason}. Free space or make the directory writable, or choose another one; "
                "older checkpoints are untouched."
            ) from error
