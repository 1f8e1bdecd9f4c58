"""Negative controls: each drops exactly one part of the state on restore, on purpose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from neuromanifold_gpt import ResumableDataLoader
from neuromanifold_gpt.state import rng

from .ingredients.callbacks import CountsHooks


def _ignore(*arguments: Any, **options: Any) -> None:
    """In place of what loads a state."""


def drop_rng() -> None:
    rng.restore_rng_state = _ignore


def drop_data_position() -> None:
    ResumableDataLoader.load_state_dict = _ignore  # type: ignore[method-assign]


def drop_scheduler() -> None:
    for kind in [LRScheduler, *LRScheduler.__subclasses__()]:
        kind.load_state_dict = _ignore  # type: ignore[method-assign]


def drop_momentum() -> None:
    load = torch.optim.Optimizer.load_state_dict

    def load_groups_only(self: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        load(self, {**state, "state": {}})

    torch.optim.Optimizer.load_state_dict = load_groups_only  # type: ignore[method-assign,assignment]


def drop_buffers() -> None:
    load = torch.nn.Module.load_state_dict

    def load_parameters_only(self: torch.nn.Module, *arguments: Any, **options: Any) -> Any:
        fresh = {name: buffer.clone() for name, buffer in self.named_buffers()}
        outcome = load(self, *arguments, **options)
        for name, buffer in self.named_buffers():
            buffer.data.copy_(fresh[name])
        return outcome

    torch.nn.Module.load_state_dict = load_parameters_only  # type: ignore[method-assign]


def drop_average() -> None:
    """The average starts anew from the weights that were restored."""
    load = torch.nn.Module.load_state_dict

    def load_all_but_averages(self: torch.nn.Module, *arguments: Any, **options: Any) -> Any:
        return None if isinstance(self, AveragedModel) else load(self, *arguments, **options)

    torch.nn.Module.load_state_dict = load_all_but_averages  # type: ignore[method-assign,assignment]


def drop_callback_state() -> None:
    for kind in (EarlyStopping, CountsHooks):
        kind.load_state_dict = _ignore  # type: ignore[method-assign]


SABOTAGES: dict[str, Callable[[], None]] = {
    "RNG": drop_rng,
    "data position": drop_data_position,
    "scheduler": drop_scheduler,
    "momentum": drop_momentum,
    "buffers": drop_buffers,
    "average": drop_average,
    "callback state": drop_callback_state,
}
