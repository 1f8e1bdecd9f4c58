"""A small training that uses everything that a resume can lose."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from neuromanifold_gpt import Checkpoint, ResumableDataLoader, SeparatedCheckpoint, list_checkpoints

from ..record import Record

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class NoisySamples(torch.utils.data.Dataset):
    """Samples augmented with random numbers of all three generators; each batch tells its sample ids."""

    def __init__(self, size: int = 26) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        x = torch.linspace(-1, 1, 8) * (i + 1) / self.size
        noise = random.random() + np.random.rand() + torch.rand(8)
        return x + 0.1 * noise, x.sum()[None], i


class ToyModule(LightningModule):
    """Dropout, batch norm, random numbers in validation; remembers losses, learning rates and sample ids by step."""

    def __init__(self, width: int = 16, schedule: str = "step") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 1)
        )
        self._recorder = Record(rows=[])

    @property
    def history(self) -> list[tuple[int, float, float, list[int]]]:
        """What each step of this process has seen."""
        return self._recorder.rows

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        rate = self.optimizers().param_groups[0]["lr"]
        self.history.append((self.global_step, loss.item(), rate, batch[2].tolist()))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        noise = 0.1 * torch.randn(1)
        self.log("val_loss", nn.functional.mse_loss(self.net(batch[0]) + noise, batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return self.with_schedule(torch.optim.AdamW(self.parameters(), lr=1e-2))

    def with_schedule(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        schedulers = torch.optim.lr_scheduler
        config: dict[str, Any] = {
            "step": lambda: {"scheduler": schedulers.LambdaLR(optimizer, lambda s: 0.99**s), "interval": "step"},
            "epoch": lambda: {"scheduler": schedulers.StepLR(optimizer, 1, 0.5), "interval": "epoch"},
            "plateau": lambda: {
                "scheduler": schedulers.ReduceLROnPlateau(optimizer, patience=0, factor=0.5),
                "monitor": "val_loss",
                "interval": "epoch",
            },
            "plateau_step": lambda: {
                "scheduler": schedulers.ReduceLROnPlateau(optimizer, patience=2, factor=0.9),
                "monitor": "train_loss",
                "interval": "step",
            },
        }[self.hparams["schedule"]]()
        return {"optimizer": optimizer, "lr_scheduler": config}


def fit(
    *callbacks: Callback,
    ckpt_path: str | Path | None = None,
    module: ToyModule | None = None,
    workers: int = 0,
    validate: bool = True,
    loaders: bool = True,
    schedule: str = "step",
    before_fit: Callable[[Trainer], None] | None = None,
    **trainer_options: Any,
) -> tuple[Trainer, ToyModule]:
    """Fit in a fresh trainer; a resumed one starts from other weights and another random state."""
    seed_everything(1 if ckpt_path is None else 12345, verbose=False)
    module = module or ToyModule(schedule=schedule)
    train = ResumableDataLoader(NoisySamples(), batch_size=4, shuffle=True, seed=5, num_workers=workers)
    validation = ResumableDataLoader(NoisySamples(8), batch_size=4) if validate else None
    options: dict[str, Any] = {"max_steps": 20, "max_epochs": -1, "logger": False, **trainer_options}
    trainer = Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    if before_fit is not None:
        before_fit(trainer)
    given = (train, validation) if loaders else ()
    trainer.fit(module, *given, ckpt_path=None if ckpt_path is None else str(ckpt_path))
    return trainer, module


def fit_or_go_on(
    directory: Path, module: LightningModule, *callbacks: Callback, max_steps: int, every_n_train_steps: int = 2
) -> None:
    """Fit a module that has its own loaders, from the newest checkpoint of ``directory`` if there is one."""
    Trainer(
        callbacks=[*callbacks, SeparatedCheckpoint(directory, every_n_train_steps=every_n_train_steps)],
        max_steps=max_steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    ).fit(module, ckpt_path="last")


def contents(checkpoint: Checkpoint) -> tuple[bytes, bytes]:
    """The bytes of both files."""
    assert checkpoint.optimizer_path is not None
    return checkpoint.model_path.read_bytes(), checkpoint.optimizer_path.read_bytes()


def by_step(directory: Path) -> dict[int, Checkpoint]:
    """The complete checkpoints of a directory."""
    return {checkpoint.step: checkpoint for checkpoint in list_checkpoints(directory)}
