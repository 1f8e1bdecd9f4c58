"""A Lightning run that overwrites ``last`` and removes what is no longer the best, as a task and by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from neuromanifold_gpt import SeparatedCheckpoint

from ..lightning_io.toy import fit

STEPS = 12


def run(directory: str) -> Callable[[], object]:
    """Start, or continue from the newest intact checkpoint of a directory."""

    def observed() -> None:
        saver = SeparatedCheckpoint(
            directory, every_n_train_steps=3, save_top_k=1, monitor="train_loss", save_last=True, filename="best"
        )
        fit(saver, ckpt_path="last" if Path(directory).exists() else None, max_steps=STEPS, validate=False)

    return observed
