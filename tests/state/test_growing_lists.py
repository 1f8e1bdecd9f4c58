"""Lists of numbers in attributes: what only grows is a record; by others, training goes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from neuromanifold_gpt import ResumableDataLoader, latest_checkpoint, load_checkpoint, save_checkpoint


class Clips:
    """By a percentile of all norms so far, as AutoClip does."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def __call__(self, model: nn.Module) -> None:
        norm = float(nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()]))
        self.norms.append(norm)
        nn.utils.clip_grad_norm_(model.parameters(), float(np.percentile(self.norms, 10)))


class Notes:
    """A record."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def __call__(self, model: nn.Module) -> None:
        self.norms.append(float(model.weight.sum()))

    def __str__(self) -> str:
        return str(self.norms)


@pytest.mark.parametrize("kind", [Clips, Notes])
def test_a_list_by_which_the_function_goes_that_adds_to_it(kind: Any, tmp_path: Path, said: Callable[[], str]) -> None:
    def train(steps: int) -> None:
        model, watch = nn.Linear(1, 1), kind()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        loader = ResumableDataLoader(torch.arange(40.0).view(20, 2)[:, :1], 2)
        if newest := latest_checkpoint(tmp_path):
            load_checkpoint(newest).restore(model=model, optimizers=optimizer, loaders=loader)
        for _, batch in zip(range(steps), loader, strict=False):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            watch(model)
            optimizer.step()
        save_checkpoint(tmp_path, step=steps, model=model, optimizers=optimizer, loaders=loader)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "zip counts from 0")
        train(3)
        assert said() == ""
        train(4)
    assert ("were others at the save: Clips.norms. If" in said()) is (kind is Clips)
