"""What Lightning's own callbacks do that a resume has to know of."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    LearningRateFinder,
    ModelCheckpoint,
    WeightAveraging,
)
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning, StateMismatchError
from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.lightning_io.boundaries import BETWEEN_STEPS


def refuse_tuners(trainer: Trainer) -> None:
    """Refuse callbacks that search by training: Lightning forgets the checkpoint then, and begins anew.

    Raises:
        StateMismatchError: names them.
    """
    tuners = [type(callback).__name__ for callback in _of(trainer) if isinstance(callback, _TUNERS)]
    if tuners:
        raise StateMismatchError(
            f"{', '.join(tuners)} would search again, after which Lightning begins anew instead of resuming. Take it "
            "out when you resume, and set what it had found."
        )


_TUNERS = (LearningRateFinder, BatchSizeFinder)


def keep_stopped(trainer: Trainer) -> None:
    """Stop again what ``EarlyStopping`` had decided to stop, which Lightning forgets."""
    for callback in _of(trainer):
        if isinstance(callback, EarlyStopping) and callback.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            trainer.should_stop = True


def keep_current_scores(trainer: Trainer, states: dict[str, Any]) -> None:
    """Let each ``ModelCheckpoint`` have its last score, which it saves but does not load."""
    for callback in trainer.checkpoint_callbacks:
        state = states.get(callback.state_key, {})
        if isinstance(callback, ModelCheckpoint) and "current_score" in state:
            callback.current_score = state["current_score"]


def warn_of_a_later_fit(trainer: Trainer, *, is_in_epoch: bool) -> None:
    """Say that a checkpoint is from behind the end of the ``fit`` that it was given to, in which nothing was left.

    Args:
        trainer: that has come to its end, with the counters of the checkpoint.
        is_in_epoch: the checkpoint is from the middle of an epoch, which has been ended.

    Warns:
        InexactResumeWarning: it is, and what follows in the program does not resume from it.
    """
    max_steps, max_epochs = trainer.fit_loop.max_steps, trainer.fit_loop.max_epochs
    progress: Any = trainer.fit_loop.epoch_progress.current
    epochs: int = progress.processed
    is_behind_epochs = max_epochs not in (None, -1) and epochs > max_epochs
    if is_behind_epochs or (max_steps != -1 and trainer.global_step > max_steps):
        step, where = trainer.global_step, "in" if is_in_epoch else "after"
        warn_user(
            f"nothing is left to train: the checkpoint is of step {step}, {where} epoch {epochs - 1}, and this fit "
            f"ends at max_steps={max_steps}, max_epochs={max_epochs}. If it was saved in a later fit of the "
            "program, give it to that one: begun without ckpt_path, it does not resume.",
            InexactResumeWarning,
        )


def freezes_by_itself(trainer: Trainer) -> bool:
    """Whether a callback freezes and unfreezes parameters anyway."""
    return any(isinstance(callback, BaseFinetuning) for callback in _of(trainer))


def inexact_here(trainer: Trainer, point: str | None) -> list[str]:
    """Why a resume from a checkpoint that is taken now is not exact, as far as callbacks know."""
    # Lightning runs the hooks of the epoch's end also where it stops in the middle of an epoch.
    progress: Any = trainer.fit_loop.epoch_progress.current
    if point != BETWEEN_STEPS or progress.processed < progress.started:
        return []
    return [
        f"{type(callback).__name__} averaged weights at the end of an epoch that was cut short, and will do so again"
        for callback in _of(trainer)
        if isinstance(callback, WeightAveraging) and callback.should_update(epoch_idx=progress.processed - 1)
    ]


def _of(trainer: Trainer) -> list[Callback]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks
