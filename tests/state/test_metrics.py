"""Metrics of torchmetrics in plain loops: in the model, or given to stateful=, they go on accumulating."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import CatMetric, MaxMetric, MeanMetric, MetricCollection, MinMaxMetric, SumMetric
from torchmetrics.wrappers import Running

from neuromanifold_gpt import load_checkpoint, save_checkpoint


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.mean, self.seen = MeanMetric(), CatMetric()
        # Those of one kind share their state from the first update on.
        self.all = MetricCollection({"sum": SumMetric(), "sum_too": SumMetric(), "max": MaxMetric()})
        self.running, self.range = Running(SumMetric(), window=3), MinMaxMetric(MeanMetric())

    def update(self, value: float) -> None:
        for metric in (self.mean, self.seen, self.all, self.running, self.range):
            metric.update(torch.tensor(value))
        self.range.compute()

    def computed(self) -> dict[str, Any]:
        metrics = {"mean": self.mean, "seen": self.seen, "all": self.all, "running": self.running, "range": self.range}
        return {name: metric.compute() for name, metric in metrics.items()}


def plain(computed: Any) -> Any:
    if isinstance(computed, dict):
        return {name: plain(value) for name, value in computed.items()}
    return computed.tolist() if isinstance(computed, Tensor) else computed


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1)


@pytest.mark.parametrize("updates", [1, 2, 5])
def test_go_on_in_the_model_and_beside_it(updates: int, tmp_path: Path) -> None:
    model, beside = Model(), MeanMetric()
    for value in range(updates):
        model.update(float(value))
        beside.update(float(value))
    save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer_of(model), stateful={"beside": beside})
    resumed, resumed_beside = Model(), MeanMetric()
    restore = load_checkpoint(tmp_path).restore
    restore(model=resumed, optimizers=optimizer_of(resumed), stateful={"beside": resumed_beside})
    for each, other in ((model, beside), (resumed, resumed_beside)):
        for value in (7.0, 9.0):
            each.update(value)
            other.update(value)
    assert plain(resumed.computed()) == plain(model.computed())
    assert resumed_beside.compute() == beside.compute()


def test_that_have_been_reset_begin_again(tmp_path: Path) -> None:
    model = Model()
    save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer_of(model))
    model.update(1.0)
    load_checkpoint(tmp_path).restore(model=model, optimizers=optimizer_of(model))
    model.update(5.0)
    assert model.mean.compute() == 5.0
    assert plain(model.computed()) == {
        "mean": 5.0,
        "seen": 5.0,
        "all": {"sum": 5.0, "sum_too": 5.0, "max": 5.0},
        "running": 5.0,
        "range": {"raw": 5.0, "max": 5.0, "min": 5.0},
    }


def test_that_are_restored_do_not_share_memory_with_the_checkpoint(tmp_path: Path) -> None:
    model = Model()
    model.update(1.0)
    save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer_of(model))
    loaded = load_checkpoint(tmp_path)
    for _ in range(2):
        loaded.restore(model=model, optimizers=optimizer_of(model))
        model.update(3.0)
        assert model.mean.compute() == 2.0
