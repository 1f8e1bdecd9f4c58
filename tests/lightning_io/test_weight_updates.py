"""Optimizers that are stepped past Lightning, which counts no steps then and saves nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from neuromanifold_gpt import ResumableDataLoader, SeparatedCheckpoint
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning


class SharpnessAware(torch.optim.Optimizer):
    """SAM as it is mostly written: its second step is that of the optimizer within it."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})
        self.base = torch.optim.SGD(self.param_groups, 0.1)

    @torch.no_grad()
    def first_step(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["before"] = parameter.clone()
            parameter.add_(parameter.grad, alpha=0.05)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.copy_(self.state[parameter]["before"])
        self.base.step()
        self.zero_grad()

    def step(self, closure: Any = None) -> Any:
        return self.second_step()


class ByHand(LightningModule):
    def __init__(self, *, is_counted: bool) -> None:
        super().__init__()
        self.layer, self.automatic_optimization, self.is_counted = nn.Linear(2, 1), False, is_counted

    def training_step(self, batch: Tensor) -> None:
        optimizer: Any = self.optimizers()
        self.manual_backward(self.layer(batch).square().mean())
        optimizer.first_step()
        self.manual_backward(self.layer(batch).square().mean())
        optimizer.step() if self.is_counted else optimizer.second_step()

    def configure_optimizers(self) -> Any:
        return SharpnessAware(self.parameters())


class Accumulating(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.probe = nn.Linear(2, 1), nn.Linear(1, 1)

    def training_step(self, batch: Tensor) -> Tensor:
        return self.layer(batch).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.layer.parameters(), 0.1)


class Probing(Callback):
    """Trains a part of the module beside it, with each batch."""

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.optimizer = torch.optim.SGD(pl_module.probe.parameters(), 0.1)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Tensor, batch_idx: int) -> None:
        pl_module.probe(pl_module.layer(batch).detach()).mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def trained(directory: Path, module: LightningModule, callbacks: Any = (), **options: Any) -> list[str]:
    saver = SeparatedCheckpoint(directory, every_n_train_steps=2)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=2, callbacks=[saver, *callbacks], accelerator="cpu", **quiet, **options)
    trainer.fit(module, ResumableDataLoader(torch.arange(16.0).view(8, 2), 2))
    return [path.name for path in directory.iterdir()] if directory.exists() else []


def test_are_said_once(tmp_path: Path) -> None:
    with pytest.warns(InexactResumeWarning, match="so of this training none is") as caught:
        assert not [name for name in trained(tmp_path, ByHand(is_counted=False)) if name.endswith(".json")]
    assert sum(warning.category is InexactResumeWarning for warning in caught) == 1


def test_but_not_what_lightning_counts(tmp_path: Path) -> None:
    assert "checkpoint-step000008.json" in trained(tmp_path, ByHand(is_counted=True))  # here, a warning is an error


def test_nor_what_a_callback_trains_within_a_window(tmp_path: Path) -> None:
    assert "checkpoint-step000004.json" in trained(tmp_path, Accumulating(), [Probing()], accumulate_grad_batches=2)
