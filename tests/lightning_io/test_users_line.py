"""Warnings name the line of the program that trains, not one of Lightning or of this package."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from neuromanifold_gpt import ResumableDataLoader
from neuromanifold_gpt.checkpoint.errors import CheckpointWarning
from neuromanifold_gpt.data.errors import DataOrderWarning

from . import toy
from .test_constants import Learns


class Remembers(Dataset[Tensor]):
    def __init__(self) -> None:
        self.seen = [0] * 8

    def __len__(self) -> int:
        return 8

    def __getitem__(self, number: int) -> Tensor:
        self.seen[number] += 1
        return torch.ones(1) / self.seen[number]


class SetsAFlag(Learns):
    is_late = False

    def __init__(self, loader: type[DataLoader[Tensor]]) -> None:
        super().__init__()
        self.loader = loader

    def train_dataloader(self) -> DataLoader[Tensor]:
        return self.loader(Remembers())

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.is_late = self.global_step > 1
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("loader", [ResumableDataLoader, DataLoader])
def test_of_values_that_change(loader: type[DataLoader[Tensor]], tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for max_steps in (11, 13):
            toy.fit_or_go_on(tmp_path, SetsAFlag(loader), max_steps=max_steps)
    changes = [warning for warning in caught if issubclass(warning.category, CheckpointWarning | DataOrderWarning)]
    said = {text for text in ("dataset.seen", "is_late") if any(text in str(warning.message) for warning in changes)}
    assert said == {"dataset.seen", "is_late"}
    for warning in changes:
        if any(text in str(warning.message) for text in said):
            assert warning.filename == toy.__file__
