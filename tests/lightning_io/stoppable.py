"""A Lightning run to be stopped: a process of its own.

::

    python stoppable.py DIRECTORY OPTIONS      options as JSON, see main
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from neuromanifold_gpt import SeparatedCheckpoint, StopOnSignal
from neuromanifold_gpt.checkpoint import writer
from neuromanifold_gpt.checkpoint.storage import LocalStorage
from tests.lightning_io.toy import fit


class SaysSteps(Callback):
    """Says each step, and takes its time; hangs in one, in C code, where no Python signal handler ever runs."""

    def __init__(self, hang_at: int | None) -> None:
        self._hang_at = hang_at

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Say the step that begins."""
        print("step", trainer.global_step, flush=True)
        time.sleep(0.05)
        if trainer.global_step == self._hang_at:
            library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
            library.pthread_mutex_lock(mutex)
            library.pthread_mutex_lock(mutex)


class SlowStorage(LocalStorage):
    """Says that a save is half done, and waits for a file "go"."""

    directory = Path()

    def rename(self, source: Path, target: Path) -> None:
        """Rename when told to."""
        print("half", target.name, flush=True)
        while not (self.directory / "go").exists():
            time.sleep(0.01)
        super().rename(source, target)


def main(directory: Path, options: dict[str, Any]) -> None:
    """Train for a thousand steps."""
    if options.get("slow"):
        SlowStorage.directory = directory
        writer.LocalStorage = SlowStorage
    out = directory / "out"
    saver = SeparatedCheckpoint(out, every_n_train_steps=options.get("every", 5), save_top_k=-1, save_on_exception=True)
    fit(
        saver,
        SaysSteps(options.get("hang_at")),
        StopOnSignal(deadline_sec=options.get("deadline_sec")),
        max_steps=1000,
        default_root_dir=directory,
        workers=options.get("workers", 0),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
