"""Layers and functions that a plain loop changes in the module that it saves."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from neuromanifold_gpt import load_checkpoint, save_checkpoint

CHANGES = "values change in training that no checkpoint has: "


class Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.criterion = nn.Sequential(nn.Linear(1, 1), nn.ReLU()), nn.MSELoss()
        self.weigh: Any = torch.relu
        self.made: Any = None

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.made = self.made or torch.tanh
        return self.made(self.layer(batch))


def change(module: Any) -> None:
    module.criterion, module.layer[1], module.weigh = nn.L1Loss(), nn.GELU(), functional.relu


def make_anew(module: Any) -> None:
    module.criterion, module.layer[1] = nn.MSELoss(), nn.ReLU()


def said(directory: Path, step: int, module: nn.Module) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        save_checkpoint(directory, step=step, model=module, optimizers=torch.optim.SGD(module.parameters()))
    texts = [str(warning.message) for warning in caught if CHANGES in str(warning.message)]
    return [text.partition(CHANGES)[2].partition(". ")[0] for text in texts]


@pytest.mark.parametrize("is_restored", [False, True])
def test_what_changes_between_saves_or_behind_a_restore(tmp_path: Path, is_restored: bool) -> None:
    module = Module()
    assert said(tmp_path, 1, module) == []
    if is_restored:
        module = Module()
        loaded = load_checkpoint(tmp_path / "checkpoint-step000001.json")
        loaded.restore(model=module, optimizers=torch.optim.SGD(module.parameters()))
        module(torch.ones(1))
    make_anew(module)
    assert said(tmp_path, 2, module) == []
    change(module)
    assert said(tmp_path, 3, module) == ["criterion; layer.1; weigh"]
    assert said(tmp_path, 4, module) == []
