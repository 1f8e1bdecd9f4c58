"""The same training state gives the same two files, whoever writes it: the run itself, or one that took it over."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from neuromanifold_gpt import Checkpoint, load_checkpoint, save_checkpoint

from .archives import same

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "AdamW amsgrad, a group each": lambda p: torch.optim.AdamW([{"params": [x], "lr": 0.01} for x in p], amsgrad=True),
    "AdamW with a tensor as its rate": lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-2), foreach=False),
    "SGD with momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "SGD without a state": lambda p: torch.optim.SGD(p, lr=1e-2),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, centered=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-2),
}
SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.1, step_size_up=4),
}


class Run:
    """A training that draws from every generator, on a model with tied weights, buffers and a channels-last filter."""

    def __init__(self, optimizer: str, scheduler: str) -> None:
        torch.manual_seed(3)
        self.model = nn.ModuleDict(
            {
                "filter": nn.Conv2d(2, 3, 3, padding=1).to(memory_format=torch.channels_last),
                "norm": nn.BatchNorm2d(3),
                "inner": nn.Linear(12, 12),
                "tied": nn.Linear(12, 12, bias=False),
            }
        )
        self.model["tied"].weight = self.model["inner"].weight
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.scheduler = SCHEDULERS[scheduler](self.optimizer)
        self.losses: list[float] = []

    def steps(self, count: int) -> Run:
        for _ in range(count):
            images = torch.randn(4, 2, 2, 2) + random.random() + np.random.rand()
            hidden = self.model["norm"](self.model["filter"](images)).flatten(1)
            loss = (self.model["tied"](self.model["inner"](hidden)) ** 2).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.losses.append(loss.item())
        return self

    def save(self, directory: Path, step: int) -> Checkpoint:
        return save_checkpoint(
            directory,
            step=step,
            model=self.model,
            optimizers=self.optimizer,
            schedulers=self.scheduler,
            config={"n": 12, "betas": (0.9, 0.999)},
        )

    def restore(self, checkpoint: Checkpoint) -> Run:
        load_checkpoint(checkpoint).restore(model=self.model, optimizers=self.optimizer, schedulers=self.scheduler)
        return self


def contents(checkpoint: Checkpoint) -> tuple[bytes, bytes]:
    return checkpoint.model_path.read_bytes(), checkpoint.optimizer_path.read_bytes()


@pytest.mark.parametrize(
    ("optimizer", "scheduler"),
    [(optimizer, "cosine") for optimizer in OPTIMIZERS] + [("AdamW", scheduler) for scheduler in SCHEDULERS],
)
@pytest.mark.filterwarnings("ignore:The epoch parameter")
def test_saved_loaded_and_saved_again_the_files_are_identical(optimizer, scheduler, tmp_path):
    """And so are those of the run that went on and of the one that was interrupted, ten steps later."""
    random.seed(1)
    np.random.seed(1)
    uninterrupted = Run(optimizer, scheduler).steps(5)
    first = uninterrupted.save(tmp_path / "a", 5)
    expected = contents(uninterrupted.steps(5).save(tmp_path / "a", 10))

    random.seed(99)
    resumed = Run(optimizer, scheduler).restore(first)
    assert contents(resumed.save(tmp_path / "b", 5)) == contents(first)
    assert contents(resumed.steps(5).save(tmp_path / "b", 10)) == expected
    assert resumed.losses == uninterrupted.losses[5:]


def test_saving_changes_nothing_and_twice_gives_the_same(tmp_path):
    run = Run("AdamW", "cosine").steps(3)
    before = copy.deepcopy((run.model.state_dict(), run.optimizer.state_dict(), torch.get_rng_state()))
    first, second = run.save(tmp_path / "a", 3), run.save(tmp_path / "b", 3)
    assert contents(first) == contents(second)
    after = run.model.state_dict(), run.optimizer.state_dict(), torch.get_rng_state()
    assert same(after, before)


def test_one_bit_of_the_state_changes_the_files(tmp_path):
    """The comparison of these tests would notice: a weight, a moment, a rate, a random number."""
    run = Run("AdamW", "cosine").steps(3)
    seen = {contents(run.save(tmp_path / "0", 3))}
    weight = run.model["inner"].bias.data

    def touch_weight() -> None:
        weight.view(torch.int32)[0] ^= 1

    def touch_moment() -> None:
        next(iter(run.optimizer.state.values()))["exp_avg"].view(torch.int32)[0] ^= 1

    def touch_rate() -> None:
        run.optimizer.param_groups[0]["lr"] = np.nextafter(run.optimizer.param_groups[0]["lr"], 1).item()

    for number, touch in enumerate(
        (touch_weight, touch_moment, touch_rate, lambda: torch.rand(1), random.random, np.random.rand), 1
    ):
        touch()
        seen.add(contents(run.save(tmp_path / str(number), 3)))
        assert len(seen) == number + 1
