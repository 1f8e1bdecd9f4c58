"""One process of a run: what the runner asks of it, and what every program does around its training."""

from __future__ import annotations

import os
import random
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .cell import Cell
from .trace import Trace

_SEED_OF_FIRST_PROCESS = 1
CHECKPOINTS = "checkpoints"
BY_HAND = "by-hand-model.pt"


class StoppedError(RuntimeError):
    """The error in the user's code that ends a process."""


@dataclass(frozen=True)
class Phase:
    """A process of a run, or a part of one.

    Attributes:
        cell: name of the scenario.
        directory: of the run.
        process: number of the process in the run.
        stop: the step after which it ends; ``None``: at the end of training.
        resumed_at: the step that it resumes from.
        first: nothing is there to resume from.
        saves: ``False``: no checkpoints at all.
        interrupted: this is run B, which saves by hand where the cell says so.
        sabotage: what is dropped on restore, on purpose; see ``sabotage.py``.
        rank, ranks: of this process.
    """

    cell: str
    directory: str
    process: int = 0
    stop: int | None = None
    resumed_at: int = 0
    first: bool = True
    saves: bool = True
    interrupted: bool = False
    sabotage: str | None = None
    rank: int = 0
    ranks: int = 1

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return Path(self.directory) / CHECKPOINTS

    @property
    def by_hand(self) -> Path:
        """A checkpoint that the user saved in a hook."""
        return Path(self.directory) / BY_HAND

    def seed(self) -> None:
        """A resumed process starts from other random numbers, and so from other weights: nothing agrees by luck."""
        seed = _SEED_OF_FIRST_PROCESS if self.first else 1000 + self.process
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def kill_while_saving(self, trace: Trace) -> None:
        """Die at the first file operation of the save that follows the last step."""
        assert self.stop is not None
        steps, fsync = self.stop - self.resumed_at, os.fsync

        def fsync_or_die(descriptor: int) -> None:
            if trace.steps_begun >= steps:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(descriptor)

        os.fsync = fsync_or_die

    def end(self, cell: Cell) -> None:
        """End this process as the cell says, now; of several ranks, the last one is killed, and the others find out."""
        if self.rank < self.ranks - 1 and cell.ending == "kill":
            return
        if cell.ending == "kill at any moment":  # nobody handles SIGALRM: it is as good as SIGKILL
            signal.setitimer(signal.ITIMER_REAL, random.SystemRandom().uniform(0.0005, 0.025))
            return
        if cell.ending == "exception":
            raise StoppedError(f"stopped after step {self.stop}")
        os.kill(os.getpid(), signal.SIGTERM if cell.ending == "sigterm" else signal.SIGKILL)
