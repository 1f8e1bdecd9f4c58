"""Callbacks by name: Lightning's own, and what users write."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    Timer,
    TQDMProgressBar,
    WeightAveraging,
)

from neuromanifold_gpt import SeparatedCheckpoint


class CountsHooks(Callback):
    """Counts, and draws, in many hooks; its state is in the checkpoint."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.drawn = torch.zeros(1)

    def _count(self, hook: str, trainer: Trainer) -> None:
        if not trainer.sanity_checking:
            self.counts[hook] = self.counts.get(hook, 0) + 1

    def on_train_batch_start(self, trainer: Trainer, *arguments: Any) -> None:
        self._count("batch_start", trainer)

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        self._count("batch_end", trainer)
        self.drawn = self.drawn + torch.rand(1)

    def on_before_optimizer_step(self, trainer: Trainer, *arguments: Any) -> None:
        self._count("optimizer_step", trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._count("validation_end", trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._count("epoch_end", trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"counts": dict(self.counts), "drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts, self.drawn = dict(state["counts"]), state["drawn"].clone()


class ScalesByCount(Callback):
    """Training depends on what it has counted, which it does not save."""

    def __init__(self) -> None:
        self.count = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.count += 1
        batch["x"] *= 1 + 0.01 * self.count


class ScalesByChance(Callback):
    """Training depends on what it draws from a generator of its own."""

    def __init__(self) -> None:
        self.rng = random.Random(4)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        batch["x"] *= 1 + 0.1 * self.rng.random()


class DrawsEverywhere(Callback):
    """Draws random numbers wherever Lightning lets it, and keeps none."""

    def on_train_start(self, *arguments: Any) -> None:
        torch.rand(5)

    def on_train_batch_start(self, *arguments: Any) -> None:
        torch.rand(1)

    def on_train_batch_end(self, *arguments: Any) -> None:
        torch.rand(2)

    def on_validation_start(self, *arguments: Any) -> None:
        torch.rand(3)

    def on_train_epoch_end(self, *arguments: Any) -> None:
        torch.rand(4)


class UnfreezeLater(BaseFinetuning):
    """Trains without the first layer for an epoch."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze([pl_module.network.first, pl_module.network.norm])

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group([pl_module.network.first, pl_module.network.norm], optimizer, lr=1e-3)


class StopsLater(Callback):
    """A user who sets should_stop."""

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        if trainer.global_step == 17:
            trainer.should_stop = True


class NewLearningRate(Callback):
    """A user who changes the learning rate by hand in the middle."""

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        if trainer.global_step == 5:
            trainer.optimizers[0].param_groups[0]["lr"] *= 0.5
            trainer.optimizers[0].param_groups[0]["weight_decay"] = 0.3


CALLBACKS: dict[str, Callable[[Path], list[Callback]]] = {
    "EarlyStopping": lambda d: [EarlyStopping("val_loss", patience=3, min_delta=10.0)],
    "EarlyStopping, patient": lambda d: [EarlyStopping("val_loss", patience=50)],
    "EarlyStopping, training loss": lambda d: [
        EarlyStopping("train_loss", patience=2, min_delta=10.0, check_on_train_epoch_end=True)
    ],
    "EarlyStopping, threshold": lambda d: [EarlyStopping("val_loss", stopping_threshold=-0.05, patience=100)],
    "best": lambda d: [SeparatedCheckpoint(d / "best", monitor="val_loss", save_top_k=2)],
    "best of training": lambda d: [
        SeparatedCheckpoint(d / "best", monitor="train_loss", save_top_k=2, every_n_train_steps=3)
    ],
    "weights beside": lambda d: [
        SeparatedCheckpoint(
            d / "checkpoints", "weights-{step}", save_weights_only=True, every_n_train_steps=2, save_top_k=-1
        )
    ],
    "stock best": lambda d: [ModelCheckpoint(d / "best", monitor="val_loss", save_top_k=2)],
    "EMA": lambda d: [EMAWeightAveraging(decay=0.9)],
    "EMA of buffers": lambda d: [EMAWeightAveraging(decay=0.9, use_buffers=True)],
    "EMA, later": lambda d: [EMAWeightAveraging(decay=0.9, update_every_n_steps=2, update_starting_at_step=5)],
    "EMA by epoch": lambda d: [EMAWeightAveraging(decay=0.5, update_every_n_steps=100, update_starting_at_epoch=0)],
    "WeightAveraging": lambda d: [WeightAveraging()],
    "SWA": lambda d: [StochasticWeightAveraging(swa_lrs=0.005, swa_epoch_start=1, annealing_epochs=2)],
    "SWA, linear": lambda d: [
        StochasticWeightAveraging(0.005, swa_epoch_start=1, annealing_epochs=3, annealing_strategy="linear")
    ],
    "unfreeze later": lambda d: [UnfreezeLater()],
    "BackboneFinetuning": lambda d: [BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=1e-3)],
    "accumulation schedule": lambda d: [GradientAccumulationScheduler({0: 2, 1: 3})],
    "counts hooks": lambda d: [CountsHooks()],
    "scales by count": lambda d: [ScalesByCount()],
    "scales by chance": lambda d: [ScalesByChance()],
    "draws everywhere": lambda d: [DrawsEverywhere()],
    "LearningRateMonitor": lambda d: [LearningRateMonitor("step")],
    "Timer": lambda d: [Timer(timedelta(hours=1))],
    "progress bar": lambda d: [TQDMProgressBar()],
    "pruning": lambda d: [ModelPruning("l1_unstructured", amount=0.2)],
    "LearningRateFinder": lambda d: [LearningRateFinder(num_training_steps=5, max_lr=0.1)],
    "stops later": lambda d: [StopsLater()],
    "changes the rate": lambda d: [NewLearningRate()],
}
