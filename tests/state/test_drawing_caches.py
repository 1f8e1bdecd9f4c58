"""Functions that remember what they have drawn: a resumed process draws it anew, so a changed count is said."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from neuromanifold_gpt import ResumableDataLoader, save_checkpoint
from neuromanifold_gpt.state.inspection.drawing_caches import times_drawn


@functools.lru_cache
def projection(size: int) -> Any:
    return torch.randn(size)


def noise(size: int) -> Any:
    return np.random.uniform(size=size)


@functools.cache
def by_another_function(size: int) -> Any:
    return noise(size) + 1


@functools.cache
def seeded(size: int) -> Any:
    return np.random.default_rng(size).normal(size=size)


@functools.cache
def computed(size: int) -> Any:
    return torch.arange(size).cos()


class Net(nn.Module):
    @functools.lru_cache(maxsize=8)  # noqa: B019 - as users write it
    def mask(self, size: int) -> Any:
        return torch.rand(size) > 0.5


@pytest.mark.parametrize("cache", [projection, by_another_function])
def test_calls_of_what_draws_are_counted(cache: Any) -> None:
    cache.cache_clear()
    assert times_drawn(cache) == 0
    cache(3), cache(3), cache(4)
    assert times_drawn(cache) == 2


@pytest.mark.parametrize("cache", [seeded, computed])
def test_what_is_the_same_in_every_process_is_not(cache: Any) -> None:
    cache(3)
    assert times_drawn(cache) is None


def nothing(_model: Net) -> None: ...


def of_a_module(_model: Net) -> None:
    projection(5)


def of_a_class(model: Net) -> None:
    model.mask(5)


@pytest.mark.parametrize(("drawing", "name"), [(of_a_module, "projection"), (of_a_class, "Net.mask"), (nothing, "")])
def test_a_plain_loop_is_told(
    drawing: Callable[[Net], None], name: str, tmp_path: Path, said: Callable[[], str]
) -> None:
    projection.cache_clear(), Net.mask.cache_clear()
    model = Net()
    loader = ResumableDataLoader(list(range(4)), batch_size=2)
    for step, _ in enumerate(loader):
        drawing(model)
        save_checkpoint(tmp_path, step=step, model=model, loaders=loader)
    assert name in said() if name else not said()
