"""Which hooks a save that is made inside a hook forestalls: a resume does not call that hook again, for anybody.

Lightning calls a hook of one callback after another, then of the module, and at an epoch's end of ``EarlyStopping`` and
its like last. Where in this sequence a save is made, or a fit is left, only the frames of
``lightning/pytorch/trainer/call.py`` (2.6) tell: those that run, or those that an exception has left.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    Checkpoint,
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateMonitor,
    ModelSummary,
    ProgressBar,
    Timer,
)
from lightning.pytorch.trainer import call
from lightning.pytorch.utilities.model_helpers import is_overridden

_HOOKS = ("on_train_batch_end", "on_validation_end", "on_train_epoch_end")
_LAST = (EarlyStopping, Checkpoint)  # of those at an epoch's end
_ONLY_LOOK = (Checkpoint, DeviceStatsMonitor, LearningRateMonitor, ModelSummary, ProgressBar, Timer)
_CALLERS = (call._call_callback_hooks.__code__, call._call_lightning_module_hook.__code__)


def reason_of_hooks_to_come(trainer: Trainer) -> str | None:
    """Inside a hook of training, or where an exception is handled that was raised in one: who was still to be called,
    and why that matters; ``None`` if nobody was."""
    if trainer.sanity_checking:
        return None
    for frame in _frames():
        values = frame.f_locals if frame.f_code in _CALLERS else {}
        if values.get("trainer") is trainer and values.get("hook_name") in _HOOKS:
            names = _names_behind(trainer, values["hook_name"], values.get("callback"))
            if not names:
                return None
            return (
                f"saved inside {values['hook_name']}, which a resume does not call again, before it was called of "
                f"{', '.join(names)}: what it would have changed there is lost. Save when it is over, or let "
                "SeparatedCheckpoint do it."
            )
    return None


def _frames() -> Iterator[FrameType]:
    """From within: those that an exception has left which Lightning answers now, then those that run."""
    running: FrameType | None = sys._getframe(1)
    left: list[FrameType] = []
    frame = running
    while frame is not None and frame.f_code is not call._call_and_handle_interrupt.__code__:
        frame = frame.f_back
    exception = frame.f_locals.get("exception") if frame is not None else None
    traceback = exception.__traceback__ if exception is not None else None
    while traceback is not None:
        left.insert(0, traceback.tb_frame)
        traceback = traceback.tb_next
    yield from left
    while running is not None:
        yield running
        running = running.f_back


def _names_behind(trainer: Trainer, hook: str, current: Callback | None) -> list[str]:
    """Who follows ``current``, a callback, or the module if there is none."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    last = [callback for callback in callbacks if hook == "on_train_epoch_end" and isinstance(callback, _LAST)]
    first = [callback for callback in callbacks if not any(callback is other for other in last)]
    sequence = [*first, None, *last]
    place = next((place for place, callback in enumerate(sequence) if callback is current), len(sequence))
    names = []
    for callback in sequence[place + 1 :]:
        if callback is None:
            names += [type(trainer.lightning_module).__name__] * is_overridden(hook, trainer.lightning_module)
        elif is_overridden(hook, callback, Callback) and not isinstance(callback, _ONLY_LOOK):
            names.append(type(callback).__name__)
    return names
