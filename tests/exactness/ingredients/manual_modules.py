"""Lightning modules with manual optimization."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..cell import Cell
from ..trace import Trace
from .data import FEATURES
from .modules import Plain
from .optimization import make_schedules


class ByHand(Plain):
    """Several optimizers, manual optimization."""

    def __init__(self, cell: Cell, trace: Trace) -> None:
        super().__init__(cell, trace)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = self.error(batch)
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        self.record(batch, loss)
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()
        schedulers = self.lr_schedulers() or []
        for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
            scheduler.step()
        self.log("train_loss", loss)


class AccumulatesByHand(ByHand):
    """Manual optimization with a window of three batches."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = self.error(batch)
        optimizer = self.optimizers()
        self.record(batch, loss)
        self.manual_backward(loss / 3)
        self.log("train_loss", loss)
        if (batch_idx + 1) % 3 == 0:
            optimizer.step()
            optimizer.zero_grad()


class Adversarial(ByHand):
    """A GAN: two networks, two optimizers, the second every other batch; noise from the global generator."""

    def __init__(self, cell: Cell, trace: Trace) -> None:
        super().__init__(cell, trace)
        self.network = nn.ModuleDict(
            {
                "generator": nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, FEATURES)),
                "judge": nn.Sequential(nn.Linear(FEATURES, 16), nn.LeakyReLU(0.2), nn.Dropout(0.2), nn.Linear(16, 1)),
            }
        )

    def configure_optimizers(self) -> Any:
        rates = {"generator": 0.01, "judge": 0.02}
        optimizers = [torch.optim.Adam(self.network[name].parameters(), lr=rate) for name, rate in rates.items()]
        return optimizers, [scheduler for _, scheduler in make_schedules(self.cell, optimizers)]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.network["judge"](batch["x"]).mean())

    def training_step(self, batch: Any, batch_idx: int) -> None:
        generator, judge = self.optimizers()
        real, count = batch["x"], len(batch["x"])
        judged, loss_of = self.network["judge"], nn.functional.binary_cross_entropy_with_logits
        self.toggle_optimizer(judge)
        fake = self.network["generator"](torch.randn(count, 4)).detach()
        judge_loss = loss_of(judged(real), torch.ones(count, 1)) + loss_of(judged(fake), torch.zeros(count, 1))
        self.record(batch, judge_loss)
        judge.zero_grad()
        self.manual_backward(judge_loss)
        judge.step()
        self.untoggle_optimizer(judge)
        if batch_idx % 2 == 1:
            self.toggle_optimizer(generator)
            generator_loss = loss_of(judged(self.network["generator"](torch.randn(count, 4))), torch.ones(count, 1))
            generator.zero_grad()
            self.manual_backward(generator_loss)
            generator.step()
            self.untoggle_optimizer(generator)
        for scheduler in self.lr_schedulers() or []:
            scheduler.step()


MANUAL_MODULES: dict[str, type[Plain]] = {
    "by hand": ByHand,
    "accumulates by hand": AccumulatesByHand,
    "GAN": Adversarial,
}
