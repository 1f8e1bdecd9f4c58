"""Tensors with a graph that the next step reads, dicts that an epoch's end fills, and what only seems to be lost."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning

from .test_constants import Learns
from .toy import fit_or_go_on

STEPS_OF_EPOCH = 8


class CarriesFeatures(Learns):
    """Detached where they are used, as recurrent models do."""

    last: tuple[Tensor, ...] | None = None

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        features = self.layer(batch)
        before = features if self.last is None else self.last[0].detach()
        self.last = (features,)
        return (features - 0.5 * before).square().mean()


class BeginsAnewByEpochs(Learns):
    last: Tensor | None = None

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if batch_idx == 0:
            self.last = None
        before = 0.0 if self.last is None else self.last.detach()
        self.last = self.layer(batch)
        return (self.last - 0.5 * before).square().mean()


class KeepsALeaf(Learns):
    def __init__(self) -> None:
        super().__init__()
        self.delta = torch.zeros(1, requires_grad=True)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return super().training_step(batch + self.delta, batch_idx)

    def on_train_batch_end(self, *_: Any) -> None:
        self.delta.data = self.delta.data + 0.1


class ShowsFeatures(Learns):
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.features = self.layer(batch)
        return self.features.square().mean()


class KeepsFeatures(Callback):
    last: Tensor | None = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.last = pl_module.features


class Reports(Callback):
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert pl_module.features.requires_grad


class PullsToTasks(Learns):
    """By what each task, which is an epoch, has left, as in elastic weight consolidation."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: dict[str, Tensor] = {}
        self.report: dict[str, Tensor] = {}

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + self.penalty()

    def penalty(self) -> Any:
        named = dict(self.layer.named_parameters())
        return sum((named[name] - anchor).square().sum() for name, anchor in self.anchors.items())

    def on_train_epoch_end(self) -> None:
        for name, parameter in self.layer.named_parameters():
            self.anchors[name] = self.report[name] = parameter.detach().flatten().expand(2).clone()


class Averages(Learns):
    """Numbers that are restored: one that begins with ``None``, one that changes late."""

    def __init__(self) -> None:
        super().__init__()
        self.mean: float | None = None
        self.best = 10.0

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.mean = loss.item() if self.mean is None else 0.9 * self.mean + 0.1 * loss.item()
        self.best = self.best if self.global_step < 5 else min(self.best, loss.item())
        return loss


def said(directory: Path, kinds: tuple[type, ...], *ends: int) -> list[str]:
    """By the process that goes up to each step."""
    texts = []
    for max_steps in ends:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            module, *callbacks = (kind() for kind in kinds)
            fit_or_go_on(directory, module, *callbacks, max_steps=max_steps)
        of_values = (str(w.message) for w in caught if w.category is InexactResumeWarning)
        texts.append("\n".join(text.partition(". If")[0] for text in of_values if text.startswith("values ")))
    return texts


CHANGE = "values change in training that no checkpoint has: "


@pytest.mark.parametrize(
    ("kinds", "name"),
    [
        ((CarriesFeatures,), "last"),
        ((BeginsAnewByEpochs,), "last"),
        ((KeepsALeaf,), "delta"),
        ((ShowsFeatures, KeepsFeatures), "KeepsFeatures.last"),
    ],
)
def test_what_the_next_step_may_read(kinds: tuple[type, ...], name: str, tmp_path: Path) -> None:
    assert f"{CHANGE}{name}" in said(tmp_path, kinds, 6)[0]


def test_results_are_none_of_it(tmp_path: Path) -> None:
    assert said(tmp_path, (ShowsFeatures, Reports), 6, 10) == ["", ""]


def test_a_dict_that_steps_read_is_missed_at_the_first_save(tmp_path: Path) -> None:
    texts = said(tmp_path, (PullsToTasks,), STEPS_OF_EPOCH + 2, STEPS_OF_EPOCH + 4)
    assert texts == ["", "values that no checkpoint has were there at the save, and are not here: anchors"]


def test_numbers_that_are_restored_are_not_said_to_be_lost(tmp_path: Path) -> None:
    assert said(tmp_path, (Averages,), 4, 8, 12) == ["", "", ""]
