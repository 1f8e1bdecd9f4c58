"""A training small enough to be run thousands of times, with everything in it that a resume can lose.

Its checkpoints are canonical, so the checkpoint of a step has the same bytes in every run that is exact: those of
:func:`undisturbed`. A byte that differs after a fault is a loss.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from neuromanifold_gpt import Checkpoint, ResumableDataLoader, Retention, load_checkpoint, save_checkpoint
from neuromanifold_gpt.checkpoint.naming import step_name

LAST_STEP = 6


class Noisy(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        x = torch.full((16,), i / 10) + 0.1 * torch.randn(16) + random.gauss(0, 0.1) + np.random.randn() * 0.1
        return x, x.sum()[None]


class TinyTraining:
    """One process' life of a run: dropout, augmentation, momentum, a schedule; some 30 kB, so several blocks."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.model = nn.Sequential(nn.Linear(16, 40), nn.Dropout(0.3), nn.Tanh(), nn.Linear(40, 1))
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.02)
        self.parts = {
            "model": self.model,
            "optimizers": optimizer,
            "schedulers": torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5),
            "loaders": ResumableDataLoader(Noisy(), batch_size=3, shuffle=True, seed=5, drop_last=True),
        }
        self.step = 0
        self._batches = self._endless()  # one pass must not be left for another in the middle

    def _endless(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from self.parts["loaders"]

    def resume(self, checkpoint: Checkpoint) -> TinyTraining:
        self.step = load_checkpoint(checkpoint).restore(**self.parts).global_step
        return self

    def train_until(self, step: int) -> TinyTraining:
        while self.step < step:
            x, y = next(self._batches)
            self.parts["optimizers"].zero_grad()
            nn.functional.mse_loss(self.model(x), y).backward()
            self.parts["optimizers"].step()
            self.parts["schedulers"].step()
            self.step += 1
        return self

    def save(
        self,
        directory: Path,
        name: str | None = None,
        *,
        model_only: bool = False,
        retention: Retention | None = None,
    ) -> Checkpoint:
        return save_checkpoint(
            directory,
            step=self.step,
            name=name,
            save_model_only=model_only,
            config={"width": 40},
            retention=retention,
            **self.parts,
        )


@dataclass(frozen=True)
class Bytes:
    """Content of the data files of one checkpoint."""

    model: bytes
    optimizer: bytes | None


def bytes_of(checkpoint: Checkpoint) -> Bytes:
    optimizer = checkpoint.optimizer_path
    return Bytes(checkpoint.model_path.read_bytes(), None if optimizer is None else optimizer.read_bytes())


@cache
def undisturbed() -> dict[tuple[int, bool], Bytes]:
    """Of a run that nothing happened to: the bytes of each step, by (step, model-only)."""
    found = {}
    with TemporaryDirectory() as directory:
        training = TinyTraining()
        for step in range(LAST_STEP + 1):
            training.train_until(step)
            for model_only in (False, True):
                name = f"{step_name(step)}-{model_only}"
                found[step, model_only] = bytes_of(training.save(Path(directory), name, model_only=model_only))
    return found
