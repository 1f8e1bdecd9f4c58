"""Settings of the trainer that are others on a resume than at the save, and what they decide."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from neuromanifold_gpt import SeparatedCheckpoint
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning

from .toy import fit

CHANGED = "settings of the trainer have changed since the save: "
BATCHES_OF_EPOCH = 7


class SetsAtEpochEnd(Callback):
    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, value in self.settings.items():
            setattr(trainer, name, value)


class SetsAtEpochStart(Callback):
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.check_val_every_n_epoch = 3 if trainer.current_epoch == 0 else 1


def said_on_resume(
    directory: Path, *, steps: int, made: Callable[[], Callback] = Callback, then: dict[str, Any], **options: Any
) -> list[str]:
    """What is said of settings by a fit that resumes behind ``steps``, with ``then`` in place of some options."""
    fit(made(), SeparatedCheckpoint(directory, every_n_train_steps=steps), max_steps=steps, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(
            made(),
            SeparatedCheckpoint(directory, every_n_train_steps=steps),
            ckpt_path="last",
            **{"max_steps": steps + 2, **options, **then},
        )
    return [str(w.message) for w in caught if w.category is InexactResumeWarning and CHANGED in str(w.message)]


@pytest.mark.parametrize(
    ("options", "then", "said"),
    [
        ({"check_val_every_n_epoch": 1}, {"check_val_every_n_epoch": 2}, "check_val_every_n_epoch was 1 and is 2"),
        ({"val_check_interval": 2}, {"val_check_interval": 1.0}, "val_check_interval was 2 and is 1.0"),
        ({"limit_train_batches": 6}, {}, None),
        ({"limit_train_batches": 6}, {"limit_train_batches": 1.0}, "limit_train_batches was 6 and is 1.0"),
        ({"limit_train_batches": 0.9}, {"limit_train_batches": 6}, None),
        ({}, {"limit_train_batches": BATCHES_OF_EPOCH, "val_check_interval": BATCHES_OF_EPOCH}, None),
        ({"limit_val_batches": 0}, {"check_val_every_n_epoch": 2}, None),
        ({"val_check_interval": "00:01:00:00"}, {"val_check_interval": "00:02:00:00"}, None),
        ({}, {"max_steps": 12, "max_epochs": 3, "log_every_n_steps": 1, "num_sanity_val_steps": 1}, None),
    ],
)
def test_those_that_change_the_training_are_said(
    tmp_path: Path, options: dict[str, Any], then: dict[str, Any], said: str | None
) -> None:
    found = said_on_resume(tmp_path, steps=4, then=then, **options)
    assert len(found) == (said is not None)
    assert said is None or said in found[0]


@pytest.mark.parametrize(
    ("settings", "options", "said"),
    [
        ({"check_val_every_n_epoch": 1}, {"check_val_every_n_epoch": 3}, "check_val_every_n_epoch was 1 and is 3"),
        ({"val_check_batch": 3}, {}, "val_check_interval was 3 and is 1.0"),
        ({"limit_train_batches": 5}, {"reload_dataloaders_every_n_epochs": 1}, "limit_train_batches was 5 and is 1.0"),
        ({"limit_train_batches": 5}, {}, None),  # without reloading, it has no effect
    ],
)
def test_what_a_callback_has_changed_is_said(
    tmp_path: Path, settings: dict[str, Any], options: dict[str, Any], said: str | None
) -> None:
    found = said_on_resume(
        tmp_path, steps=BATCHES_OF_EPOCH + 2, made=lambda: SetsAtEpochEnd(**settings), then={}, **options
    )
    assert len(found) == (said is not None)
    assert said is None or said in found[0]


def test_what_callbacks_set_again_when_an_epoch_begins_is_not_said(tmp_path: Path) -> None:
    options: dict[str, Any] = {"check_val_every_n_epoch": 3}
    assert said_on_resume(tmp_path, steps=2 * BATCHES_OF_EPOCH, made=SetsAtEpochStart, then={}, **options) == []
