"""Optimizers, learning-rate schedules and averages of weights, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn

from ..cell import Cell
from .own_optimizers import Decay, HandMade, Noisy, OddState, Remembers, drawn

# Total of what schedules are made for: the end of every scenario, wherever a process of it ends.
_TOTAL_STEPS = 60


@dataclass(frozen=True)
class Schedule:
    """A scheduler, and when it steps.

    Attributes:
        make: from the optimizer.
        interval: ``"step"`` or ``"epoch"``.
        monitor: metric that ``ReduceLROnPlateau`` is given.
        frequency: steps or epochs between two of its steps.
    """

    make: Callable[[Optimizer], Any]
    interval: str = "step"
    monitor: str | None = None
    frequency: int = 1


def _sequential(optimizer: Optimizer) -> lr_scheduler.SequentialLR:
    parts = [
        lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4),
        lr_scheduler.CosineAnnealingLR(optimizer, 12),
        lr_scheduler.ExponentialLR(optimizer, 0.95),
    ]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[4, 16])


def _chained(optimizer: Optimizer) -> lr_scheduler.ChainedScheduler:
    parts = [lr_scheduler.ConstantLR(optimizer, 0.5, total_iters=12), lr_scheduler.ExponentialLR(optimizer, 0.97)]
    return lr_scheduler.ChainedScheduler(parts, optimizer)


def _plateau(optimizer: Optimizer, **options: Any) -> lr_scheduler.ReduceLROnPlateau:
    return lr_scheduler.ReduceLROnPlateau(optimizer, **{"patience": 0, "factor": 0.5, **options})


SCHEDULES: dict[str, Schedule] = {
    "warm-up": Schedule(lambda o: lr_scheduler.LambdaLR(o, lambda step: min(1.0, (step + 1) / 12) * 0.995**step)),
    "warm-up by epoch": Schedule(lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1 / (epoch + 1)), "epoch"),
    "one cycle": Schedule(lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.05, total_steps=_TOTAL_STEPS)),
    "warm restarts": Schedule(lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=5, T_mult=2)),
    "warm restarts by epoch": Schedule(lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=2), "epoch"),
    "plateau, validation loss": Schedule(_plateau, "epoch", "val_loss"),
    "plateau, patient": Schedule(lambda o: _plateau(o, patience=1, cooldown=1), "epoch", "val_loss"),
    "plateau, training loss": Schedule(lambda o: _plateau(o, patience=2, factor=0.9), "step", "train_loss"),
    "plateau, mean training loss": Schedule(_plateau, "epoch", "train_loss_epoch"),
    "sequential": Schedule(_sequential),
    "chained": Schedule(_chained),
    "steps": Schedule(lambda o: lr_scheduler.StepLR(o, 3, 0.9)),
    "steps by epoch": Schedule(lambda o: lr_scheduler.StepLR(o, 1, 0.5), "epoch"),
    "milestones": Schedule(lambda o: lr_scheduler.MultiStepLR(o, [3, 9, 14], 0.7)),
    "multiplicative": Schedule(lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.97 + 0.01 * (step % 3))),
    "constant": Schedule(lambda o: lr_scheduler.ConstantLR(o, 0.3, total_iters=12)),
    "linear": Schedule(lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=15)),
    "exponential": Schedule(lambda o: lr_scheduler.ExponentialLR(o, 0.97)),
    "polynomial": Schedule(lambda o: lr_scheduler.PolynomialLR(o, total_iters=_TOTAL_STEPS, power=2.0)),
    "cosine": Schedule(lambda o: lr_scheduler.CosineAnnealingLR(o, _TOTAL_STEPS)),
    "cyclic": Schedule(lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.02, step_size_up=4, cycle_momentum=False)),
    "cyclic with momentum": Schedule(lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.02, step_size_up=4)),
    "every other epoch": Schedule(lambda o: lr_scheduler.ExponentialLR(o, 0.5), "epoch", frequency=2),
    "every third step": Schedule(lambda o: lr_scheduler.ExponentialLR(o, 0.9), frequency=3),
    "own scheduler": Schedule(Remembers),
    "object that counts": Schedule(lambda o: lr_scheduler.LambdaLR(o, Decay())),
    "hand-made": Schedule(HandMade),
    "drawn": Schedule(drawn),
    "SWA annealing": Schedule(lambda o: SWALR(o, 0.005, anneal_epochs=10)),
}

# Every class of torch.optim, and what it is tried with beside its defaults. A test holds that none is missing.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "ASGD": {"lr": 0.01, "t0": 4},
    "Adadelta": {"lr": 1.0},
    "Adafactor": {"lr": 0.01},
    "Adagrad": {"lr": 0.05},
    "Adam": {"lr": 0.01},
    "AdamW": {"lr": 0.01},
    "Adamax": {"lr": 0.01},
    "LBFGS": {"lr": 0.1, "max_iter": 4, "history_size": 5},
    "Muon": {"lr": 0.01},
    "NAdam": {"lr": 0.01},
    "RAdam": {"lr": 0.01},
    "RMSprop": {"lr": 0.01},
    "Rprop": {"lr": 0.01},
    "SGD": {"lr": 0.05, "momentum": 0.9},
    "SparseAdam": {"lr": 0.01},
}


def make_optimizers(cell: Cell, network: nn.Module) -> list[Optimizer]:
    """The optimizers of a cell; several names are joined by ``+``."""
    parameters = list(network.parameters())
    options = dict(cell.optimizer_options)
    if options.pop("tensor_lr", False):
        options["lr"] = torch.tensor(options["lr"])
    if cell.optimizer == "head and body":
        head = {id(parameter) for parameter in network.head.parameters()}
        groups: Any = [
            {"params": [p for p in parameters if id(p) in head], "lr": 0.02},
            {"params": [p for p in parameters if id(p) not in head], "weight_decay": 0.1},
        ]
        if options.pop("reversed", False):
            groups.reverse()
        return [torch.optim.AdamW(groups, **options)]
    if cell.optimizer == "own":
        return [OddState(parameters, lr=0.003)]
    if cell.optimizer == "noisy":
        return [Noisy(parameters, lr=0.003)]
    if cell.optimizer == "named AdamW":
        return [torch.optim.AdamW(network.named_parameters(), **options)]
    if cell.optimizer == "AdamW of trained":
        return [torch.optim.AdamW([p for p in parameters if p.requires_grad], **options)]
    if cell.optimizer == "Muon+AdamW":
        matrices = [p for p in parameters if p.ndim == 2]
        others = [p for p in parameters if p.ndim != 2]
        return [torch.optim.Muon(matrices, lr=0.01), torch.optim.AdamW(others, **options)]
    if cell.optimizer == "SparseAdam+AdamW":
        sparse = list(network.embedding.parameters())
        dense = list(network.rest.parameters())
        return [torch.optim.SparseAdam(sparse, lr=0.01), torch.optim.AdamW(dense, **options)]
    if cell.optimizer == "SparseAdam":
        return [torch.optim.SparseAdam(list(network.embedding.parameters()), **options)]
    return [getattr(torch.optim, cell.optimizer)(parameters, **options)]


def make_schedules(cell: Cell, optimizers: list[Optimizer]) -> Iterator[tuple[Schedule, Any]]:
    """The scheduler of each optimizer."""
    if cell.schedule is not None:
        schedule = SCHEDULES[cell.schedule]
        for optimizer in optimizers:
            yield schedule, schedule.make(optimizer)


AVERAGES: dict[str, Callable[[nn.Module], AveragedModel]] = {
    "EMA": lambda network: AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9)),
    "EMA of buffers": lambda network: AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True),
    "SWA": lambda network: AveragedModel(network),
}
