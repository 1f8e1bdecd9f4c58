"""Callbacks of Lightning whose state a stock resume loses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    EarlyStopping,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
)

from neuromanifold_gpt import SeparatedCheckpoint

from .toy import ToyModule, by_step, contents, fit


def saver(directory: Path) -> SeparatedCheckpoint:
    return SeparatedCheckpoint(directory, every_n_train_steps=1, save_top_k=-1)


def check(make_callbacks: Any, steps: tuple[int, ...], tmp_path: Path, **options: Any) -> None:
    """Resumed at each step, a run ends in the same bytes."""
    _, whole = fit(saver(tmp_path / "a"), *make_callbacks(), **options)
    expected = by_step(tmp_path / "a")
    for step in steps:
        directory = tmp_path / f"b{step}"
        _, resumed = fit(saver(directory), *make_callbacks(), ckpt_path=expected[step].model_path, **options)
        assert resumed.history == [entry for entry in whole.history if entry[0] >= step], f"from step {step}"
        found = by_step(directory)
        assert sorted(found) == [other for other in expected if other > step]
        for other, checkpoint in found.items():
            assert contents(checkpoint) == contents(expected[other]), f"from step {step}, at step {other}"


def test_gradient_accumulation_scheduler_keeps_its_factor_in_the_middle_of_an_epoch(tmp_path: Path):
    check(lambda: [GradientAccumulationScheduler({0: 2, 1: 3})], (1, 2, 4, 5, 7), tmp_path, max_steps=9)


def test_stochastic_weight_averaging_goes_on_averaging_and_annealing(tmp_path: Path):
    options = {"max_steps": -1, "max_epochs": 6, "schedule": "epoch"}

    def averaging() -> list[Any]:
        return [StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2, annealing_epochs=3)]

    check(averaging, (3, 9, 14, 16, 21, 27), tmp_path, **options)


class UnfreezeLater(BaseFinetuning):
    """Trains the head alone for an epoch."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.net[:2])

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[:2], optimizer, lr=1e-3)


class Headed(ToyModule):
    """Optimizes what is not frozen."""

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


def test_finetuning_keeps_what_it_has_unfrozen(tmp_path: Path):
    _, whole = fit(saver(tmp_path / "a"), UnfreezeLater(), module=Headed())
    expected = by_step(tmp_path / "a")
    for step in (3, 6, 7, 9, 15):
        directory = tmp_path / f"b{step}"
        path = expected[step].model_path
        _, resumed = fit(saver(directory), UnfreezeLater(), module=Headed(), ckpt_path=path)
        assert resumed.history == [entry for entry in whole.history if entry[0] >= step], f"from step {step}"
        assert contents(by_step(directory)[20]) == contents(expected[20]), f"from step {step}"


@pytest.mark.parametrize("step", [3, 7, 9])
def test_early_stopping_writes_the_same_bytes(step: int, tmp_path: Path):
    """Its best score is the very tensor that is logged, until a resume makes two of it."""
    check(lambda: [EarlyStopping("val_loss", patience=50)], (step,), tmp_path, val_check_interval=3)
