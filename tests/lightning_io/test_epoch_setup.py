"""A resume in the middle of an epoch does not call on_train_epoch_start again: said, unless a checkpoint has it all."""

from __future__ import annotations

import math
import random
import time
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning

from .test_constants import Learns
from .toy import fit_or_go_on


class SetsNumbers(Learns):
    strength, losses = 0.0, 0.0

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.losses = 0.0
        self.strength = min(1.0, self.current_epoch / 4) * math.cos(1)
        self.log("strength", self.strength)


class SetsNumbersToo(SetsNumbers):
    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.strength = 2 * self.strength


class CountsEpochs(Learns):
    begun, strength = 0, 1.0

    def on_train_epoch_start(self) -> None:
        self.begun += 1
        self.strength -= self.strength / 4


class Tells(Callback):
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        print(f"epoch {trainer.current_epoch}")


class SetsATime(Learns):
    def on_train_epoch_start(self) -> None:
        self.began_time = time.time()


class WithPoints(Learns):
    is_persistent = True

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("points", torch.zeros(4), persistent=self.is_persistent)


class SetsABuffer(WithPoints):
    def on_train_epoch_start(self) -> None:
        self.points = 6.28 * torch.rand(4)


class FillsABuffer(WithPoints):
    def on_train_epoch_start(self) -> None:
        self.points.uniform_(0, 6.28)
        self.points += torch.nn.functional.relu(torch.randn(4))


class FillsATemporaryBuffer(FillsABuffer):
    is_persistent = False


class UnfreezesALayer(Learns):
    def on_train_epoch_start(self) -> None:
        self.layer.requires_grad_(True)


class SeedsTorch(WithPoints):
    def on_train_epoch_start(self) -> None:
        torch.manual_seed(self.current_epoch)


class SetsAList(SetsNumbers):
    def on_train_epoch_start(self) -> None:
        self.values = [1.0]


class InheritsThat(SetsAList):
    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.losses = 0.0


class SetsAFlag(Learns):
    def on_train_epoch_start(self) -> None:
        self.is_late = self.current_epoch > 1


class SetsOfAnother(Learns):
    def on_train_epoch_start(self) -> None:
        self.layer.scale = 1.0


class ChangesInPlace(Learns):
    values = ()

    def on_train_epoch_start(self) -> None:
        values = self.values
        values += (1,)


class CountsInALayer(Learns):
    begun = 0

    def on_train_epoch_start(self) -> None:
        self.begun += 1
        self.layer.begun += 1

    def on_train_start(self) -> None:
        self.layer.begun = 0  # type: ignore[assignment]


class AddsToAList(Learns):
    values = ()

    def on_train_epoch_start(self) -> None:
        self.values += (1,)


class Calls(Learns):
    def on_train_epoch_start(self) -> None:
        random.seed(self.current_epoch)


class CountsInCallback(Callback):
    count = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.count = trainer.current_epoch


def said_in_the_middle(directory: Path, *kinds: type) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for max_steps in (3, 5):
            module, *callbacks = (kind() for kind in kinds)
            fit_or_go_on(directory, module, *callbacks, max_steps=max_steps)
    texts = [str(warning.message) for warning in caught if warning.category is InexactResumeWarning]
    return "\n".join(text for text in texts if text.startswith("on_train_epoch_start"))


@pytest.mark.parametrize(
    "kinds",
    [
        (SetsNumbers,),
        (SetsNumbersToo,),
        (CountsEpochs,),
        (SetsATime,),
        (SetsABuffer,),
        (FillsABuffer,),
        (Learns, Tells),
    ],
)
def test_numbers_and_buffers_of_the_module_are_restored(kinds: tuple[type, ...], tmp_path: Path) -> None:
    assert said_in_the_middle(tmp_path, *kinds) == ""


@pytest.mark.parametrize(
    "kinds",
    [
        (SetsAList,),
        (InheritsThat,),
        (SetsAFlag,),
        (SetsOfAnother,),
        (ChangesInPlace,),
        (CountsInALayer,),
        (AddsToAList,),
        (FillsATemporaryBuffer,),
        (UnfreezesALayer,),
        (SeedsTorch,),
        (Calls,),
        (Learns, CountsInCallback),
    ],
)
def test_what_else_a_hook_does_is_unknown(kinds: tuple[type, ...], tmp_path: Path) -> None:
    assert f"of {kinds[-1].__name__} is not called again" in said_in_the_middle(tmp_path, *kinds)
