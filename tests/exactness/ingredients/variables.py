"""What users keep in variables of their Python modules and in attributes of their classes, and draw from there."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler
from torchmetrics import MeanMetric, MetricCollection

from ..cell import Cell
from .callbacks import CALLBACKS
from .data import DATASETS, FEATURES, Augmented, Still, make_loader
from .networks import NETWORKS, Network, plain
from .own_state import DATA_MODULES
from .samplers import SAMPLERS, EveryThird

rng = np.random.default_rng(3)
shared = torch.Generator().manual_seed(4)
calls = 0


class DrawsFromVariable(Still):
    """A dataset."""

    def noise(self, index: int) -> Any:
        return rng.normal()


class OrderFromVariable(EveryThird):
    """A user's own order, of random numbers that are drawn while it goes on."""

    def __iter__(self) -> Iterator[int]:
        left = list(range(self.samples))
        while left:
            yield left.pop(int(rng.integers(len(left))))


class OrderFromShared(EveryThird):
    """A user's own order, from a generator that others draw from."""

    def __init__(self, samples: int) -> None:
        super().__init__(samples)
        self.generator = shared

    def __iter__(self) -> Iterator[int]:
        left = list(range(self.samples))
        while left:
            yield left.pop(int(torch.randint(len(left), (), generator=self.generator)))


class NoiseFromVariables(Network):
    """Draws from a variable, from an attribute of its class, and from what a sampler has too."""

    rng: ClassVar[random.Random] = random.Random(5)

    def __init__(self) -> None:
        super().__init__(rest=plain())

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        if self.training:
            noise = torch.rand(x.shape, generator=shared) + float(rng.normal()) + self.rng.gauss(0, 1)
            x = x + 0.1 * noise.to(x.dtype)
        return self.rest(x, ids)


class CountsInVariable(Network):
    """Depends on how often it was called."""

    def __init__(self) -> None:
        super().__init__(rest=plain())

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        global calls
        if self.training:
            calls += 1
        return self.rest(x * (1 + 0.01 * calls), ids)


class CountsInClass(CountsInVariable):
    """As well, in another place."""

    seen: ClassVar[list[float]] = []

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        if self.training:
            self.seen.append(float(x.detach().mean()))
        return self.rest(x - 0.1 * sum(self.seen), ids)


class ScaledByMetric(Network):
    """Depends on what a metric has accumulated, which nobody resets."""

    def __init__(self) -> None:
        super().__init__(rest=plain())
        self.seen = MetricCollection({"mean": MeanMetric()})

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        if self.training:
            self.seen.update(x.detach())
        return self.rest(x * (1 + self.seen["mean"].compute()), ids)


class ScalesByMetric(Callback):
    """Training depends on what a metric has accumulated, which a callback keeps."""

    def __init__(self) -> None:
        self.mean = MeanMetric()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.mean.update(batch["x"])
        batch["x"] *= 1 + self.mean.compute()


class ScalesByShared(Callback):
    """Draws from what a sampler has too."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        batch["x"] *= 1 + 0.1 * torch.rand(FEATURES, generator=shared)


class OneForAllLoaders(LightningDataModule):
    """The orders of training and of both validations come from one generator."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell

    def train_dataloader(self) -> Any:
        return make_loader(self.cell)

    def val_dataloader(self) -> Any:
        return [DataLoader(Augmented(7), 4, shuffle=True, generator=shared) for _ in range(2)]


DATA_MODULES["one generator for all loaders"] = OneForAllLoaders
DATASETS["draws from a variable"] = DrawsFromVariable
SAMPLERS.update(
    {
        "own, from a variable": lambda data, size: {"sampler": OrderFromVariable(len(data))},
        "own, from what others draw from": lambda data, size: {"sampler": OrderFromShared(len(data))},
        "shuffle, from what others draw from": lambda data, size: {"shuffle": True, "generator": shared},
        "with replacement, from what others draw from": lambda data, size: {
            "sampler": RandomSampler(data, replacement=True, num_samples=len(data), generator=shared)
        },
    }
)
NETWORKS.update(
    {
        "noise from variables": NoiseFromVariables,
        "counts in a variable": CountsInVariable,
        "counts in its class": CountsInClass,
        "scaled by a metric": ScaledByMetric,
    }
)
CALLBACKS.update(
    {
        "scales by a metric": lambda d: [ScalesByMetric()],
        "scales by what others draw from": lambda d: [ScalesByShared()],
    }
)
