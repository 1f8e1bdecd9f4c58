"""What a first batch sets, or is taken from the weights when training begins, is compared on a resume."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from neuromanifold_gpt import ResumableDataLoader
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning

from .toy import fit_or_go_on

OTHERS = "were others at the save, and stay as they are now: "


class Learns(LightningModule):
    def __init__(self, probability: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(1, 1), nn.Dropout(probability))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)

    def train_dataloader(self) -> DataLoader[Tensor]:
        return ResumableDataLoader(torch.arange(1.0, 9.0).unsqueeze(1))


class SetsAScale(Learns):
    """By its first loss, as in GradNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first_loss: float | None = None

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.first_loss is None:
            self.first_loss = loss.item()
        return loss / self.first_loss


class SetsScales(Learns):
    """By its first batch, in a dict; what another one has from the beginning are settings, which may be others."""

    settings = 0

    def __init__(self) -> None:
        super().__init__()
        SetsScales.settings += 1
        self.scales: dict[str, float] = {}
        self.options = {"run": SetsScales.settings}

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if not self.scales:
            self.scales["mean"] = self.layer(batch).mean().item()
        return super().training_step(batch, batch_idx) / self.scales["mean"]


class PullsToWeights(Learns):
    def on_fit_start(self) -> None:
        self.anchors = [parameter.detach().clone() for parameter in self.parameters()]


class HasATeacher(Learns):
    def on_train_start(self) -> None:
        self.teachers = [copy.deepcopy(self.layer)]


class KeepsAMean(Callback):
    mean: float | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Tensor, *_: Any) -> None:
        self.mean = batch.mean().item() if self.mean is None else self.mean


class StopsAt(Callback):
    """As programs have it that are stopped: where differs from process to process."""

    def __init__(self, step: int) -> None:
        self.step = step


class NotesWhereItBegan(Callback):
    started_at_step: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started_at_step = trainer.global_step


class BuildsTables(Learns):
    """Which are the same in each process; and a buffer that begins as None, and is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Tensor | None = None
        self.cache: dict[int, Tensor] = {}
        self.steps_seen, self.loaded_from = 0, "a path"
        self.register_buffer("first", None, persistent=False)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.table = torch.arange(3.0) if self.table is None else self.table
        self.cache.setdefault(len(batch), torch.ones(len(batch)))
        self.steps_seen += 1
        self.first = batch.clone() if self.first is None else self.first
        return super().training_step(batch, batch_idx) + self.first.mean()


class Anneals(Learns):
    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"temperature": 1.0})

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.hparams["temperature"] *= 0.9
        return super().training_step(batch, batch_idx) * self.hparams["temperature"]


class OfClasses(Learns):
    """By weights of classes, if some are given; and by a table that the first batch makes."""

    def __init__(self, weights: Tensor | None = None) -> None:
        super().__init__()
        self.weights, self.table = weights, None

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.table = torch.ones(1) if self.table is None else self.table
        loss = super().training_step(batch, batch_idx)
        return loss if self.weights is None else loss * self.weights[0]


def fit(directory: Path, module: LightningModule, *callbacks: Callback, max_steps: int = 4) -> LightningModule:
    fit_or_go_on(directory, module, *callbacks, max_steps=max_steps)
    return module


def resumed(directory: Path, *parts: Any) -> str:
    """What a run says that goes on from where another one of the same parts has ended."""
    for number, max_steps in enumerate((3, 6)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            module, *callbacks = (part(number) if part is StopsAt else part() for part in parts)
            fit(directory, module, *callbacks, max_steps=max_steps)
    return "\n".join(str(warning.message) for warning in caught if warning.category is InexactResumeWarning)


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ((PullsToWeights,), "anchors"),
        ((HasATeacher,), "teachers"),
        ((Learns, KeepsAMean), "KeepsAMean.mean"),
        ((SetsScales,), "scales"),
    ],
)
def test_what_is_another_thing_after_a_resume_is_said_once(parts: Any, name: str, tmp_path: Path) -> None:
    said = resumed(tmp_path, *parts)
    assert f"{OTHERS}{name}. " in said
    assert said.count(OTHERS) == 1


@pytest.mark.parametrize(
    "parts", [(Learns,), (OfClasses,), (SetsAScale,), (BuildsTables,), (Learns, StopsAt), (Learns, NotesWhereItBegan)]
)
def test_what_is_the_same_is_not(parts: Any, tmp_path: Path) -> None:
    assert resumed(tmp_path, *parts) == ""


@pytest.mark.parametrize(("before", "now"), [(None, torch.ones(2)), (torch.ones(2), torch.zeros(2))])
def test_weights_that_are_others_on_the_resume_are_said(before: Tensor | None, now: Tensor, tmp_path: Path) -> None:
    fit(tmp_path, OfClasses(before), max_steps=2)
    with pytest.warns(InexactResumeWarning, match=f"{OTHERS}weights. "):
        fit(tmp_path, OfClasses(now), max_steps=4)


def test_settings_of_layers(tmp_path: Path) -> None:
    fit(tmp_path, Learns(0.1), max_steps=2)
    with pytest.warns(InexactResumeWarning, match=f"{OTHERS}settings of Dropout. "):
        fit(tmp_path, Learns(0.2), max_steps=4)


def test_which_layers_there_are(tmp_path: Path) -> None:
    fit(tmp_path, Learns(), max_steps=2)
    other = Learns()
    other.layer[1] = nn.Tanh()
    with pytest.warns(InexactResumeWarning, match=f"{OTHERS}which layers there are. "):
        fit(tmp_path, other, max_steps=4)


def test_a_lazily_set_buffer_goes_on(tmp_path: Path) -> None:
    fit(tmp_path, BuildsTables(), max_steps=2)
    module = fit(tmp_path, BuildsTables(), max_steps=4)
    assert module.first.equal(fit(tmp_path / "whole", BuildsTables(), max_steps=4).first)


def test_hyper_parameters_that_training_changes_are_said(tmp_path: Path) -> None:
    with pytest.warns(InexactResumeWarning, match="no checkpoint has: _hparams. If"):
        fit(tmp_path, Anneals())


class Weighs(Learns):
    def __init__(self, weight: float = 1.0, width: int = 4, threads: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * self._weight()

    def _weight(self) -> float:
        return float(self.hparams["weight"] * self.hparams.width)

    def setup(self, stage: str) -> None:
        self._build()

    def _build(self) -> None:
        self.is_parallel = self.hparams.threads > 0


def test_hyper_parameters_that_are_others_on_the_resume_are_said_if_training_reads_them(tmp_path: Path) -> None:
    fit(tmp_path, Weighs(), max_steps=3)
    with pytest.warns(InexactResumeWarning) as said:
        fit(tmp_path, Weighs(0.5, 2, 2), max_steps=6)
    [text] = [str(warning.message) for warning in said if "hparams" in str(warning.message)]
    assert "hparams.weight" in text
    assert "hparams.width" in text
    assert "threads" not in text


def test_hyper_parameters_that_are_the_same_are_nothing_to_say(tmp_path: Path) -> None:
    fit(tmp_path, Weighs(), max_steps=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", InexactResumeWarning)
        fit(tmp_path, Weighs(threads=2), max_steps=6)
