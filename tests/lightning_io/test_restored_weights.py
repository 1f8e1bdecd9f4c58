"""Weights that hooks change behind their restore, before the first step."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from neuromanifold_gpt import SeparatedCheckpoint
from neuromanifold_gpt.checkpoint.errors import CheckpointWarning

from .toy import ToyModule, by_step, fit

_SAID = "hooks that are called when training begins .* have changed what was restored before: "


class Begins(Callback):
    def __init__(self, hook: str, change: Any) -> None:
        setattr(self, hook, lambda trainer, module: change(module))


def run(directory: Path, callback: Callback, path: Path | None = None) -> Any:
    saver = SeparatedCheckpoint(directory, every_n_train_steps=5, save_top_k=-1)
    fit(saver, callback, module=ToyModule(), validate=False, ckpt_path=path, max_steps=10 if path is None else 12)
    return by_step(directory)


def new_head(module: ToyModule) -> None:
    with torch.no_grad():
        module.net[4].weight.data.fill_(0.1)  # behind the back of version counters


def new_statistics(module: ToyModule) -> None:
    module.net[1].reset_running_stats()


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start"])
@pytest.mark.parametrize(
    ("change", "names"),
    [(new_head, "net.4.weight"), (new_statistics, "net.1.num_batches_tracked; net.1.running_mean; net.1.running_var")],
)
def test_what_a_hook_changes_is_named(hook: str, change: Any, names: str, tmp_path: Path) -> None:
    saved = run(tmp_path / "a", Begins(hook, change))
    with pytest.warns(CheckpointWarning, match=_SAID + names + r"\."):
        run(tmp_path / "b", Begins(hook, change), saved[5].model_path)


def rewrite(module: ToyModule) -> None:
    module.load_state_dict(module.state_dict())
    module.net[4].weight = torch.nn.Parameter(module.net[4].weight.detach().clone())


def test_the_same_values_once_more_are_nothing_to_say(tmp_path: Path) -> None:
    saved = run(tmp_path / "a", Begins("on_fit_start", rewrite))
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        run(tmp_path / "b", Begins("on_fit_start", rewrite), saved[5].model_path)
