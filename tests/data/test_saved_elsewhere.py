"""What training changes in a dataset, and an object beside the loader saves, is not said to be in no position."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from neuromanifold_gpt import ResumableDataLoader, save_checkpoint
from neuromanifold_gpt.data.errors import DataOrderWarning


class Negatives(Dataset[list[int]]):
    """Pairs that each epoch draws anew, as recommenders do."""

    def __init__(self) -> None:
        self.pairs = [(i, 0) for i in range(8)]
        self.losses = torch.zeros(8)
        self.counts = np.zeros(8)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> list[int]:
        return [*self.pairs[i]]


class Saves:
    """Some attributes of a dataset, arrays as tensors, tuples as lists."""

    def __init__(self, dataset: Negatives, names: list[str]) -> None:
        self.dataset, self.names = dataset, names

    def state_dict(self) -> dict[str, Any]:
        state = {name: getattr(self.dataset, name) for name in self.names}
        state = {name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in state.items()}
        return {name: [[*pair] for pair in x] if name == "pairs" else x for name, x in state.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


def changed(dataset: Negatives, loader: Any) -> Iterator[int]:
    for step, _ in enumerate(loader):
        dataset.pairs[step] = (step, step + 1)
        dataset.losses[step] = step + 1
        dataset.counts[step] += 1
        yield step


NAMES = ["pairs", "losses", "counts"]


@pytest.mark.parametrize("left_out", [None, *NAMES])
def test_in_a_plain_loop(left_out: str | None, tmp_path: Path) -> None:
    dataset, model = Negatives(), nn.Linear(1, 1)
    loader: Any = ResumableDataLoader(dataset, 2)
    saves = Saves(dataset, [name for name in NAMES if name != left_out])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in changed(dataset, loader):
            save_checkpoint(tmp_path, step=step, model=model, loaders=loader, stateful={"negatives": saves})
    said = [str(warning.message) for warning in caught if warning.category is DataOrderWarning]
    if left_out is None:
        assert said == []
    else:
        (text,) = said
        assert text.startswith(f"dataset.{left_out}: training changes it, and no position has it")
