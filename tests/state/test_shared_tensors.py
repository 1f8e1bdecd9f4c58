"""Tensors of an optimizer's state that something else keeps as well: a file for each cannot say that."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from neuromanifold_gpt import save_checkpoint


class Best:
    """The state of an optimizer, to which a loop goes back."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state["state"]


@pytest.mark.parametrize("is_copied", [False, True])
def test_a_kept_state_whose_tensors_an_optimizer_has_taken(
    is_copied: bool, tmp_path: Path, said: Callable[[], str]
) -> None:
    model, best = nn.Linear(1, 1), Best()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(1, 1)).mean().backward()
    optimizer.step()
    best.state = copy.deepcopy(optimizer.state_dict())
    parts: dict[str, Any] = {"model": model, "optimizers": optimizer, "stateful": {"best": best}}
    save_checkpoint(tmp_path, step=1, **parts)
    assert said() == ""
    optimizer.load_state_dict(copy.deepcopy(best.state) if is_copied else best.state)
    for step in (2, 3):
        save_checkpoint(tmp_path, step=step, **parts)
    assert said().count("best in stateful= keeps tensors that are also in the state of an optimizer") == (not is_copied)
