"""Which point of the loop a checkpoint that is taken now resumes at."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.call import _call_callbacks_state_dict

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.lightning_io.boundaries import BETWEEN_EPOCHS, EPOCH_END, STEP_END, STEP_END_VALIDATED
from neuromanifold_gpt.state.rng import capture_rng_state, own_rng_state


@dataclass(frozen=True)
class LoopState:
    """A point of the loop, with what has to be put back there.

    Attributes:
        point: one of the names in ``boundaries.py``; ``None`` where an exact resume is not possible.
        global_step: number of optimizer steps taken.
        epoch: epoch of the last of them.
        fit_loop: the counters, ``fit_loop.state_dict()``.
        rng: random number generators of this process.
        callbacks: states of the callbacks there, if they may have changed since.
    """

    point: str | None
    global_step: int
    epoch: int
    fit_loop: dict[str, Any]
    rng: dict[str, Any]
    callbacks: dict[str, Any] | None = None


class ResumePointTracker:
    """Remembers the last point at which the state was whole; taking it costs some 0.1 ms a step."""

    def __init__(self) -> None:
        self.whole: LoopState | None = None
        self._before_validation: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        self._validated = False

    def reached(self, trainer: Trainer, point: str) -> None:
        """The state is whole now."""
        # When the loop is left in the middle of an epoch, hooks of the epoch's end follow that an undisturbed run would
        # not have called yet: what they change in callbacks is not part of the state.
        leaving = trainer.should_stop or trainer.fit_loop.epoch_loop._is_training_done
        self.whole = LoopState(
            point=point,
            global_step=trainer.global_step,
            epoch=trainer.current_epoch - (point == BETWEEN_EPOCHS),
            fit_loop=trainer.fit_loop.state_dict(),
            rng=capture_rng_state(),
            callbacks=copy.deepcopy(_call_callbacks_state_dict(trainer)) if leaving else None,
        )

    def loaded(self, checkpoint: dict[str, Any], resume: dict[str, Any]) -> None:
        """A checkpoint was loaded: saved again before the next step, the state is the same."""
        self.whole = LoopState(
            point=resume["point"],
            global_step=checkpoint["global_step"],
            epoch=checkpoint["epoch"],
            fit_loop=copy.deepcopy(checkpoint["loops"]["fit_loop"]),
            rng=own_rng_state(resume["rng_states"]),
        )

    def validation_begins(self, trainer: Trainer) -> None:
        """What is saved inside the validation goes back to here."""
        self._validated = False
        self._before_validation = trainer.fit_loop.state_dict(), capture_rng_state()

    def validation_is_done(self) -> None:
        """Whatever hooks follow."""
        self._validated = True

    def current(self, trainer: Trainer) -> LoopState:
        """Where a checkpoint that is taken now resumes.

        Warns:
            InexactResumeWarning: in the middle of a step, after its optimizer step.
        """
        if self.whole is not None and trainer.global_step == self.whole.global_step:
            return self.whole  # no weight has changed since
        point, fit_loop, rng = self._inside_hook(trainer, trainer.fit_loop.state_dict(), capture_rng_state())
        return LoopState(point, trainer.global_step, trainer.current_epoch, fit_loop, rng)

    def _inside_hook(
        self, trainer: Trainer, fit_loop: dict[str, Any], rng: dict[str, Any]
    ) -> tuple[str | None, dict[str, Any], dict[str, Any]]:
        """A user saves in a hook of his own, after the step and before the state is whole."""
        epoch, batch = fit_loop["epoch_progress"], fit_loop["epoch_loop.batch_progress"]
        if not epoch["current"]["ready"]:
            return BETWEEN_EPOCHS, fit_loop, rng  # before the first epoch
        if epoch["current"]["processed"] > epoch["current"]["completed"]:
            _complete(epoch)
            return EPOCH_END, fit_loop, rng
        if batch["current"]["ready"] == batch["current"]["processed"]:
            if trainer.validating and not self._validated:
                fit_loop, rng = copy.deepcopy(self._before_validation)  # the validation starts again
            _complete(fit_loop["epoch_loop.batch_progress"])
            return STEP_END_VALIDATED if trainer.validating and self._validated else STEP_END, fit_loop, rng
        warnings.warn(
            f"step {trainer.global_step} is saved before it is finished: a resume from it cannot be exact. Save "
            "between steps, or let SeparatedCheckpoint do it.",
            InexactResumeWarning,
            stacklevel=2,
        )
        return None, fit_loop, rng


def _complete(progress: dict[str, Any]) -> None:
    for counts in (progress["total"], progress["current"]):
        counts["completed"] = counts["processed"]
