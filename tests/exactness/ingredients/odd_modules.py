"""Lightning modules of users who do more by hand."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

from ..cell import Cell
from ..trace import Trace
from .data import make_loader, make_validation_loader
from .modules import Plain


class DrawsEverything(Plain):
    """Noise from all generators, with the normal numbers that Python and NumPy keep in hand."""

    def error(self, batch: Any) -> Tensor:
        return super().error(batch) * (1 + 0.01 * (random.gauss(0, 1) + np.random.randn() + torch.randn(1)[0]))


class OwnGenerator(Plain):
    """Noise from a generator that the module owns, and no checkpoint knows."""

    def __init__(self, cell: Cell, trace: Trace) -> None:
        super().__init__(cell, trace)
        self.generator = torch.Generator().manual_seed(9)

    def error(self, batch: Any) -> Tensor:
        return super().error(batch) * (1 + 0.1 * torch.randn(1, generator=self.generator)[0])


class WarmsUpByHand(Plain):
    """Sets the learning rate in optimizer_step, as Lightning's documentation shows."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.step(closure=optimizer_closure)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * min(1.0, (self.trainer.global_step + 1) / 15)


class AveragesByHand(Plain):
    """An average of the weights as a part of the module."""

    def __init__(self, cell: Cell, trace: Trace) -> None:
        super().__init__(cell, trace)
        self.average = copy.deepcopy(self.network).requires_grad_(False)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        for mean, value in zip(self.average.parameters(), self.network.parameters(), strict=True):
            mean.lerp_(value.detach(), 0.1)


class AddsGroup(Plain):
    """Another layer is trained from the second epoch on, in a group of its own."""

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([self.network.head.weight, self.network.head.bias], lr=0.01)

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.trainer.optimizers[0].add_param_group({"params": self.network.first.parameters(), "lr": 0.001})


class OwnLoaders(Plain):
    """The loaders come from the module."""

    def train_dataloader(self) -> Any:
        return make_loader(self.cell)

    def val_dataloader(self) -> Any:
        return [make_validation_loader(self.cell), make_validation_loader(self.cell)]

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx)


class PenalizesPast(Plain):
    """Keeps a buffer outside the state dict that is rebuilt in on_train_start, and one inside."""

    def __init__(self, cell: Cell, trace: Trace) -> None:
        super().__init__(cell, trace)
        self.register_buffer("past", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()), persistent=False)
        self.center = nn.Parameter(torch.zeros(()), requires_grad=False)

    def error(self, batch: Any) -> Tensor:
        loss = super().error(batch)
        if self.training:
            self.past.mul_(0.5).add_(loss.detach())
            self.center.data.add_(0.1 * loss.detach())
        return loss * self.scale + 0.01 * self.past + 0.01 * self.center


class CountsBatches(LightningDataModule):
    """Training depends on what it has counted, which it does not save."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell
        self.count = 0

    def train_dataloader(self) -> Any:
        return make_loader(self.cell)

    def val_dataloader(self) -> Any:
        return make_validation_loader(self.cell)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.trainer.training:
            self.count += 1
            return {**batch, "x": batch["x"] * (1 + 0.001 * self.count)}
        return batch


class Data(CountsBatches):
    """Saves what it has counted."""

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


ODD_MODULES: dict[str, type[Plain]] = {
    "draws everything": DrawsEverything,
    "own generator": OwnGenerator,
    "warms up by hand": WarmsUpByHand,
    "averages by hand": AveragesByHand,
    "adds a group": AddsGroup,
    "own loaders": OwnLoaders,
    "penalizes past": PenalizesPast,
}
