"""Modules beside the one that is saved: what they keep, a plain loop is told."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from neuromanifold_gpt import load_checkpoint, save_checkpoint
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning


class Training:
    """A model that is saved, and one who says how training has changed what is beside it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1)
        self.stateful: dict[str, Any] = {}

    def save(self) -> None:
        parts: dict[str, Any] = {"model": self.model, "optimizers": self.optimizer, "stateful": self.stateful}
        save_checkpoint(self.directory, step=1, name="a", **parts)

    def restore(self) -> None:
        parts: dict[str, Any] = {"model": self.model, "optimizers": self.optimizer, "stateful": self.stateful}
        load_checkpoint(self.directory).restore(**parts)


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training(tmp_path)


@pytest.fixture
def said() -> Iterator[Callable[[], str]]:
    """What was said since it was asked last."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        def text() -> str:
            found = [str(warning.message) for warning in caught if warning.category is InexactResumeWarning]
            caught.clear()
            return "\n".join(found)

        yield text


def changed(network: nn.Module) -> None:
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.add_(1)


LAYER_CHANGES: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], nn.Module]]] = {
    "label smoothing": (
        lambda: nn.CrossEntropyLoss(label_smoothing=0.5),
        lambda loss: setattr(loss, "label_smoothing", 0.4) or loss,
    ),
    "a margin": (lambda: nn.MultiMarginLoss(margin=0.5), lambda loss: setattr(loss, "margin", 0.6) or loss),
    "a dropout": (lambda: nn.Dropout(0.5), lambda layer: setattr(layer, "p", 0.6) or layer),
    "another loss": (nn.L1Loss, lambda loss: nn.MSELoss()),
    "one in a network of many tensors": (
        lambda: nn.Sequential(*(nn.Linear(1, 1) for _ in range(60)), nn.Dropout(0.5)),
        lambda network: setattr(network[-1], "p", 0.6) or network,
    ),
}


class TestSettingsOfLayersBesideTheModel:
    @pytest.mark.parametrize("kind", LAYER_CHANGES)
    def test_that_training_changes(self, kind: str, training: Training, said: Callable[[], str]) -> None:
        make, change = LAYER_CHANGES[kind]
        layer = make()
        training.save()
        layer = change(layer)
        training.save()
        assert ".layer. If" in said()

    def test_that_are_others_behind_a_restore(self, training: Training, said: Callable[[], str]) -> None:
        layer = nn.CrossEntropyLoss(label_smoothing=0.5)
        training.save()
        layer = nn.CrossEntropyLoss(label_smoothing=0.4)
        training.restore()
        training.save()
        assert "were others at the save" in said()
        assert layer.label_smoothing == 0.4

    def test_but_not_those_that_stay(self, training: Training, said: Callable[[], str]) -> None:
        layers = [nn.CrossEntropyLoss(label_smoothing=0.5), nn.Dropout(0.5)]
        training.save()
        layers = [nn.CrossEntropyLoss(label_smoothing=0.5), nn.Dropout(0.5).eval()]
        training.restore()
        training.save()
        assert said() == ""
        assert not layers[1].training
