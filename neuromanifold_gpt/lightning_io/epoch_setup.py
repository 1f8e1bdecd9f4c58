"""Callbacks of Lightning that set up each epoch in a hook which a resume in the epoch's middle leaves out."""

from __future__ import annotations

import warnings
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, GradientAccumulationScheduler, StochasticWeightAveraging

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning


def set_up_epoch_again(trainer: Trainer) -> None:
    """Let them do what they did at the beginning of the epoch, where it is not in their state.

    Hooks of other callbacks, and of the module, are not called twice: they may count.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            callback.on_train_epoch_start(trainer)
        elif isinstance(callback, StochasticWeightAveraging) and trainer.current_epoch <= callback.swa_end:
            groups = trainer.optimizers[0].param_groups
            restored = [dict(group) for group in groups]
            callback.on_train_epoch_start(
                trainer, trainer.lightning_module
            )  # makes its scheduler, and averages nothing
            for group, values in zip(groups, restored, strict=True):
                group.update(values)  # a new scheduler sets learning rates anew


def warn_of_epoch_hooks(trainer: Trainer) -> None:
    """Say whose hook is not called again: what it sets up for the epoch is unknown here.

    Warns:
        InexactResumeWarning: names the classes.
    """
    users: list[Any] = [trainer.lightning_module, *trainer.callbacks]  # type: ignore[attr-defined]
    stock = (LightningModule.on_train_epoch_start, Callback.on_train_epoch_start)
    names = [
        type(user).__name__
        for user in users
        if type(user).on_train_epoch_start not in stock
        and not type(user).__module__.startswith("lightning.")
        and not isinstance(user, BaseFinetuning)  # what it freezes and unfreezes is restored
    ]
    if names:
        warnings.warn(
            f"on_train_epoch_start of {', '.join(names)} is not called again, since training resumes in the middle of "
            "the epoch. What it sets up must be in a state_dict, or be set up in on_train_start as well.",
            InexactResumeWarning,
            stacklevel=2,
        )
