"""The table is complete in what can be counted, and its sample covers every group."""

from __future__ import annotations

import torch

from .cells import CELLS, SAMPLE
from .ingredients.optimization import SCHEDULES

_SCHEDULERS_BY_HAND = {"LRScheduler", "_LRScheduler"}  # the base classes


def test_every_optimizer_of_torch_is_in_the_table_for_both_drivers():
    optimizers = {
        name
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    }
    for driver in ("lightning", "loop"):
        assert optimizers <= {name for cell in CELLS if cell.driver == driver for name in cell.optimizer.split("+")}


def test_every_scheduler_of_torch_is_in_the_table_for_both_drivers():
    module = torch.optim.lr_scheduler
    schedulers = {
        name
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, module.LRScheduler) and name not in _SCHEDULERS_BY_HAND
    }
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    for driver in ("lightning", "loop"):
        used = {cell.schedule for cell in CELLS if cell.driver == driver} - {None}
        made = {type(SCHEDULES[name].make(optimizer)).__name__ for name in used}
        assert schedulers <= made | {"LRScheduler"}


def test_the_sample_covers_every_group_with_every_driver():
    assert {(cell.group, cell.driver) for cell in CELLS if cell.name in SAMPLE} == {
        (cell.group, cell.driver) for cell in CELLS
    }


def test_every_stop_is_inside_the_training():
    for cell in CELLS:
        assert all(0 <= stop < cell.steps or "max_epochs" in cell.trainer for stop in cell.stops), cell.name
        assert list(cell.stops) == sorted(cell.stops), cell.name
