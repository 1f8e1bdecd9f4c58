"""A Lightning run that saves every fifth step, and ends by ``os._exit`` in the middle: what it trained since is lost.

::

    python losing_fit.py DIRECTORY OPTIONS      options as JSON, see main
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from neuromanifold_gpt import SeparatedCheckpoint, SeparatedCheckpointIO, latest_checkpoint
from tests.lightning_io.toy import ToyModule, fit

SAVE_EVERY_STEPS = 5


class Ends(Callback):
    def __init__(self, step: int, out: Path) -> None:
        self._step, self._out = step, out

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """End at once, as a kill does."""
        if trainer.global_step == self._step:
            while latest_checkpoint(self._out) is None:  # a thread writes it
                time.sleep(0.01)
            sys.stderr.flush()
            os._exit(0)


class Forgets(Callback):
    """Lets the learning rate depend on a file, of which nobody knows."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Set the rate of this step."""
        count = int(self._path.read_text()) if self._path.exists() else 1
        self._path.write_text(str(count + 1))
        trainer.optimizers[0].param_groups[0]["lr"] = 0.01 / count


def main(directory: Path, options: dict[str, Any]) -> None:
    """Train to step ``stop_at``, behind which it ends. Further options: ``forgets``, ``asynchronous``."""
    out = directory / "out"
    plugins = [AsyncCheckpointIO(SeparatedCheckpointIO())] if options.get("asynchronous") else []
    callbacks = [Forgets(directory / "count.txt")] if options.get("forgets") else []
    fit(
        SeparatedCheckpoint(out, every_n_train_steps=SAVE_EVERY_STEPS, save_last=True),
        *callbacks,
        Ends(options["stop_at"], out),
        module=ToyModule(),
        max_steps=1000,
        plugins=plugins,
        ckpt_path="last" if latest_checkpoint(out) else None,
        default_root_dir=directory,
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    warnings.simplefilter("always")
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
