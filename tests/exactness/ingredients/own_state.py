"""State that users keep in their own objects: curricula, data modules by epoch, generators of the validation."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Subset, default_collate

from neuromanifold_gpt import resumable

from ..cell import Cell
from ..trace import Trace
from .data import Augmented, OwnGenerator, make_loader
from .modules import Plain
from .odd_modules import CountsBatches


class RaisesDifficulty(Plain):
    """A curriculum: changes the dataset after each epoch."""

    def on_train_epoch_end(self) -> None:
        self.trainer.train_dataloader.dataset.difficulty += 1


class FollowsSteps(Plain):
    """A curriculum by step."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.trainer.train_dataloader.dataset.difficulty = self.global_step


class CollatesItself(LightningDataModule):
    """``collate_fn`` is a method: through it, a loader holds the data module and the trainer."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell
        self.batches = 0

    def collate(self, samples: list[Any]) -> Any:
        self.batches += 1
        return default_collate(samples)

    def train_dataloader(self) -> Any:
        loader = DataLoader(Augmented(self.cell.samples), 4, shuffle=True, collate_fn=self.collate)
        return resumable(loader) if self.cell.loader == "resumable" else loader

    def val_dataloader(self) -> Any:
        return DataLoader(Augmented(8), 4, collate_fn=self.collate)


class Collates(Plain):
    """``collate_fn`` is a method of the module that is trained, and changes with what it counts."""

    def __init__(self, cell: Cell, trace: Trace) -> None:
        super().__init__(cell, trace)
        self.collated = 0

    def collate(self, samples: list[Any]) -> Any:
        self.collated += 1
        batch = default_collate(samples)
        return {**batch, "x": batch["x"] + 0.01 * self.collated}


class CollatedByModule(LightningDataModule):
    """Through its ``collate_fn``, a loader holds the module, its optimizers and the trainer."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell

    def train_dataloader(self) -> Any:
        collate = self.trainer.lightning_module.collate
        loader = DataLoader(
            Augmented(self.cell.samples), 4, shuffle=True, num_workers=self.cell.workers, collate_fn=collate
        )
        return resumable(loader) if self.cell.loader == "resumable" else loader

    def val_dataloader(self) -> Any:
        return DataLoader(Augmented(8), 4)


class DataByEpoch(LightningDataModule):
    """Other samples each time that loaders are asked for."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell

    def _samples(self, count: int) -> Any:
        first = 2 * self.trainer.current_epoch
        return Subset(Augmented(100), range(first, first + count))

    def train_dataloader(self) -> Any:
        return make_loader(self.cell, dataset=self._samples(self.cell.samples + 2 * self.trainer.current_epoch))

    def val_dataloader(self) -> Any:
        return DataLoader(self._samples(8), 4)


class ShuffledValidation(LightningDataModule):
    """What validation draws goes on from one to the next: a sampler's and a dataset's own generator, and a seed."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell

    def train_dataloader(self) -> Any:
        return make_loader(self.cell)

    def val_dataloader(self) -> Any:
        return [
            DataLoader(Augmented(7), 4, shuffle=True, generator=torch.Generator().manual_seed(3)),
            DataLoader(OwnGenerator(7), 4),
            resumable(DataLoader(Augmented(7), 4, shuffle=True)),
        ]


class ValidatesOnAll(Plain):
    """For several validation loaders."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx)


DATA_MODULES: dict[str, type[LightningDataModule]] = {
    "collates itself": CollatesItself,
    "counts batches": CountsBatches,
    "collated by the module": CollatedByModule,
    "data by epoch": DataByEpoch,
    "shuffled validation": ShuffledValidation,
}
OWN_STATE_MODULES: dict[str, type[Plain]] = {
    "raises difficulty": RaisesDifficulty,
    "follows steps": FollowsSteps,
    "validates on all": ValidatesOnAll,
    "collates": Collates,
}
