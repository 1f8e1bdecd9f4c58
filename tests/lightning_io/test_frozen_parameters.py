"""Gradual unfreezing is restored, and silent; a program that begins otherwise than that of the save is told."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import BaseFinetuning
from torch import Tensor, nn
from torch.utils.data import DataLoader

from neuromanifold_gpt import ResumableDataLoader
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning

from .toy import fit_or_go_on

SAID = "this run had set otherwise: "


class Unfreezes(LightningModule):
    """The first layer is frozen until a step, and by the program perhaps another one."""

    def __init__(self, step: int, also: str = "") -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1))
        self.step = step
        self.layers[0].requires_grad_(False)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name != also)

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        self.layers[0].requires_grad_(self.global_step >= self.step)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layers(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)

    def train_dataloader(self) -> DataLoader[Tensor]:
        return ResumableDataLoader(torch.arange(1.0, 9.0).unsqueeze(1))


def fit(directory: Path, module: LightningModule, max_steps: int) -> list[str]:
    """What is said of frozen parameters."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit_or_go_on(directory, module, max_steps=max_steps)
    texts = [str(warning.message) for warning in caught if SAID in str(warning.message)]
    return [text.partition(SAID)[2] for text in texts]


def test_what_training_has_unfrozen_is_not_said(tmp_path: Path) -> None:
    fit(tmp_path, Unfreezes(3), 4)
    for max_steps in (6, 8):  # the second resume is from a save of a resumed run
        module = Unfreezes(3)
        assert fit(tmp_path, module, max_steps) == []
        assert module.layers[0].weight.requires_grad


def test_what_the_program_freezes_otherwise_is_said(tmp_path: Path) -> None:
    fit(tmp_path, Unfreezes(3), 4)
    fit(tmp_path, Unfreezes(3), 6)
    module = Unfreezes(3, also="layers.2.weight")
    assert fit(tmp_path, module, 8) == ["layers.2.weight."]
    assert module.layers[2].weight.requires_grad
    assert fit(tmp_path, Unfreezes(3, also="layers.2.weight"), 10) == ["layers.2.weight."]
    assert fit(tmp_path, Unfreezes(3), 12) == []


class WithANorm(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(3), nn.Linear(3, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.head(self.norm(batch)).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.head.parameters(), 0.01)

    def train_dataloader(self) -> DataLoader[Tensor]:
        data = torch.arange(24.0).reshape(8, 3).square()
        return ResumableDataLoader(data, batch_size=2, shuffle=True, seed=1)


class UnfreezesTheNorm(BaseFinetuning):
    """Lightning lets frozen norms count no batches, in ``track_running_stats``."""

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        self.freeze(pl_module.norm, train_bn=False)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.norm, optimizer)


@pytest.mark.parametrize("end", [2, 4, 6, 8])
def test_a_norm_counts_the_batches_that_it_would_have_counted(end: int, tmp_path: Path) -> None:
    statistics = []
    for name, ends in (("whole", (12,)), ("resumed", (end, 12))):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for max_steps in ends:
                torch.manual_seed(1)
                module = WithANorm()
                fit_or_go_on(tmp_path / name, module, UnfreezesTheNorm(), max_steps=max_steps)
        assert not [warning for warning in caught if warning.category is InexactResumeWarning]
        statistics.append(module.state_dict())
    assert statistics[0]["norm.num_batches_tracked"] == 8
    assert all(torch.equal(value, statistics[1][name]) for name, value in statistics[0].items())
