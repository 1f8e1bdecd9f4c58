"""Which point of the loop a checkpoint that is taken now resumes at."""

from __future__ import annotations

import copy
import sys
from typing import Any

from lightning.pytorch import Trainer
from torchmetrics import Metric

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.lightning_io.batch_ahead import BatchAhead
from neuromanifold_gpt.lightning_io.before_last_hooks import BeforeLastHooks
from neuromanifold_gpt.lightning_io.boundaries import (
    BETWEEN_EPOCHS,
    BETWEEN_STEPS,
    EPOCH_END,
    STEP_END,
    STEP_END_VALIDATED,
    is_about_to_be_left,
    is_due_to_a_stop,
)
from neuromanifold_gpt.lightning_io.data_position import DataPosition
from neuromanifold_gpt.lightning_io.epoch_metrics import capture_epoch_metrics, restore_epoch_metrics
from neuromanifold_gpt.lightning_io.hooks_to_come import reason_of_hooks_to_come
from neuromanifold_gpt.lightning_io.loader_epochs import LoaderEpochs
from neuromanifold_gpt.lightning_io.loop_state import LoopState
from neuromanifold_gpt.lightning_io.other_callbacks import inexact_here
from neuromanifold_gpt.lightning_io.users_parts import UsersParts
from neuromanifold_gpt.lightning_io.validation_position import ValidationPosition
from neuromanifold_gpt.lightning_io.weight_updates import WeightUpdates
from neuromanifold_gpt.state.module_values import ModuleValues
from neuromanifold_gpt.state.modules import listed
from neuromanifold_gpt.state.own_generators import warn_of_missing_generators
from neuromanifold_gpt.state.owned_state import OwnedState
from neuromanifold_gpt.state.rng import capture_rng_state, own_state


class ResumePointTracker:
    """Remembers the last point at which the state was whole; taking it costs some 0.1 ms a step, more with metrics."""

    def __init__(
        self, data: DataPosition, ahead: BatchAhead, validation: ValidationPosition, loader_epochs: LoaderEpochs
    ) -> None:
        self.whole: LoopState | None = None
        self._data, self._ahead = data, ahead
        self._validation = validation
        self._loader_epochs = loader_epochs
        self._metrics: dict[str, Metric] = {}
        self._owned: OwnedState | None = None
        self._module_values: ModuleValues | None = None
        self._parts: UsersParts | None = None
        self._has_stepped = False  # in this process
        self._updates: WeightUpdates | None = None  # since the state was whole
        self._hooks_were_called = True  # of an epoch or a validation: they may have made generators
        self._said: set[str] = set()  # generators that were made late
        self._before_validation: tuple[dict[str, Any], dict[str, Any]] = ({}, {})  # the counters, and the rest
        self._validated = False
        self._left: tuple[LoopState, str | None] | None = None  # :meth:`_here`, before the fit's data is torn down
        self._stopped_at: int | None = None  # batches processed before a validation that only a stop has brought about

    def training_begins(self, trainer: Trainer) -> None:
        """The module has all of its parts."""
        self._parts = UsersParts(trainer, self._data.objects)
        self._metrics = self._parts.metrics
        self._owned = self._parts.look_again()
        self._module_values = ModuleValues(trainer.lightning_module)
        self._has_stepped, self._hooks_were_called, self._left = False, True, None
        self.training_ends()
        self._updates = WeightUpdates(trainer)

    def training_ends(self) -> None:
        """Leave the optimizers as they were."""
        if self._updates is not None:
            self._updates.end()

    def reached(self, trainer: Trainer, point: str) -> None:
        """The state is whole now."""
        between = point in (EPOCH_END, BETWEEN_EPOCHS)
        if self._parts is not None and not self._has_stepped:
            self._parts.look()
            self._has_stepped = True
        if self._parts is not None and (between or self._hooks_were_called):
            self._owned = self._parts.look_again()  # hooks and first batches may have made some
        self._hooks_were_called = between
        if self._updates is not None:
            if self.whole is not None:
                self._updates.warn_if_not_counted(trainer.global_step - self.whole.global_step)
            self._updates.seen = False
        stepped = self.whole is None or trainer.global_step != self.whole.global_step
        waits_for_batches = not stepped or trainer.fit_loop._should_accumulate()
        self.whole = LoopState(
            point=point,
            global_step=trainer.global_step,
            epoch=trainer.current_epoch - (point == BETWEEN_EPOCHS),
            fit_loop=trainer.fit_loop.state_dict(),
            **self._draws(),
            module_values=self._values(),
            data=self._ahead.added_to(self._data.current(), trainer),
            loader_epochs=self._loader_epochs.current(),
            epoch_metrics=capture_epoch_metrics(trainer, self._metrics),
            open_window=waits_for_batches and _has_gradients(trainer),
            before_last_hooks=BeforeLastHooks(trainer) if is_about_to_be_left(trainer.fit_loop) else None,
        )

    def loaded(self, checkpoint: dict[str, Any], resume: dict[str, Any]) -> None:
        """A checkpoint was loaded: saved again before the next step, the state is the same."""
        self._left = None
        self.whole = LoopState(
            point=resume["point"],
            global_step=checkpoint["global_step"],
            epoch=checkpoint["epoch"],
            fit_loop=copy.deepcopy(checkpoint["loops"]["fit_loop"]),
            rng=own_state(resume["rng_states"]),
            own_generators=own_state(resume["own_generators"]),
            module_values=own_state(resume["module_values"]),
            data=own_state(resume["data"]),
            validation=own_state(resume["validation"]),
            loader_epochs=own_state(resume["loader_epochs"]),
            epoch_metrics=own_state(resume["epoch_metrics"]),
            saved_gradients=own_state(resume["gradients"]),
        )

    def validation_begins(self, trainer: Trainer) -> None:
        """What is saved inside the validation goes back to here."""
        self._validated = False
        fit_loop = trainer.fit_loop.state_dict()
        if is_due_to_a_stop(trainer):
            self._stopped_at = _batches_processed(fit_loop)
        metrics = capture_epoch_metrics(trainer, self._metrics)
        self._before_validation = fit_loop, {**self._draws(), "epoch_metrics": metrics}

    def validation_is_done(self) -> None:
        """Whatever hooks follow."""
        self._validated = self._hooks_were_called = True
        self._validation.has_moved()

    def inexact_here(self, trainer: Trainer, state: LoopState) -> list[str]:
        """Why a resume from a checkpoint of this state is not exact, as far as the loop and callbacks know."""
        reasons = inexact_here(trainer, state.point)
        if self._stopped_at == _batches_processed(state.fit_loop) and state.point in (
            BETWEEN_STEPS,
            STEP_END_VALIDATED,
        ):
            reasons.append("trainer.should_stop in the middle of an epoch made Lightning validate once more")
        return reasons

    def fit_is_left(self, trainer: Trainer) -> None:
        """Its data is about to be torn down: what is saved behind it resumes here, if an exception has ended it.

        Warns:
            InexactResumeWarning: see :meth:`UsersParts.warn_of_what_is_missing`.
        """
        if self._parts is not None and trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:  # of a whole epoch
            self._parts.warn_of_what_is_missing()
        if trainer.fit_loop._data_fetcher is not None and (self.whole is None or sys.exc_info()[0] is not None):
            self._left = self._here(trainer)

    def current(self, trainer: Trainer) -> LoopState:
        """Where a checkpoint that is taken now resumes.

        Warns:
            InexactResumeWarning: in the middle of a step, which may have changed weights or buffers; or in a hook that
                others were still to be called for.
        """
        is_behind_fit = self._left is not None and trainer.fit_loop._data_fetcher is None
        state, reason = self._left if is_behind_fit else self._here(trainer)  # type: ignore[misc]
        if reason is not None:
            warn_user(reason, InexactResumeWarning)
        return state

    def _here(self, trainer: Trainer) -> tuple[LoopState, str | None]:
        """:meth:`current`, and why a resume from it is not exact."""
        reason = None
        fit_loop = trainer.fit_loop.state_dict()
        batches = fit_loop["epoch_loop.batch_progress"]
        inside_step = batches["current"]["started"] > batches["current"]["processed"]
        is_same_step = self.whole is not None and trainer.global_step == self.whole.global_step
        same_weights = is_same_step and not (inside_step and self._updates is not None and self._updates.seen)
        if inside_step and not (same_weights and not any(True for _ in trainer.lightning_module.buffers())):
            reason = (
                f"step {trainer.global_step} is saved before it is finished: a resume from it cannot be exact. Save "
                "between steps, or let SeparatedCheckpoint do it."
            )
        whole = self.whole if same_weights else None
        if whole and (inside_step or _batches_processed(fit_loop) == _batches_processed(whole.fit_loop)):
            return whole, reason
        if not inside_step:
            reason = reason_of_hooks_to_come(trainer)
        point, fit_loop, draws = self._inside_hook(trainer, fit_loop, self._draws())
        metrics = capture_epoch_metrics(trainer, self._metrics, epoch_is_over=point == EPOCH_END)
        state = LoopState(
            point=None if inside_step else point,
            global_step=trainer.global_step,
            epoch=trainer.current_epoch,
            fit_loop=fit_loop,
            **{"epoch_metrics": metrics, **draws},
            module_values=self._values(),
            data=self._ahead.added_to(self._data.current(), trainer),
            loader_epochs=self._loader_epochs.current(),
            open_window=trainer.fit_loop._should_accumulate() and _has_gradients(trainer),
        )
        return state, reason

    def restore_beside_state(self, trainer: Trainer, resume: dict[str, Any]) -> None:
        """What no state dict has, as a checkpoint has it for this rank.

        Warns:
            InexactResumeWarning: generators are not there yet.
        """
        if self._parts is None or self._module_values is None:
            return
        self._module_values.restore(own_state(resume["module_values"]))
        restore_epoch_metrics(trainer, self._metrics, own_state(resume["epoch_metrics"]))
        self._owned = self._parts.look_again()  # hooks may have made some since training began
        missing = self._owned.restore_generators(own_state(resume["own_generators"]))
        warn_of_missing_generators(missing)
        self._parts.restored(resume.get("constants", {}) if trainer.is_global_zero else {})

    def restore_where_nothing_is_left(self, trainer: Trainer, resume: dict[str, Any]) -> None:
        """:meth:`restore_beside_state`, where training does not begin."""
        self.training_begins(trainer)
        self.restore_beside_state(trainer, resume)

    def constants(self) -> dict[str, str]:
        """See :meth:`UsersParts.constants`; without numbers that are restored."""
        restored = {path.lstrip(".") for path in self._values()["numbers"]}
        found = self._parts.constants() if self._parts is not None else {}
        return {path: shown for path, shown in found.items() if path not in restored}

    def warn_of_what_is_left_out(self) -> None:
        """Say which values and generators of the module, callbacks, the data module and the data no checkpoint has.

        Warns:
            InexactResumeWarning, DataOrderWarning: name them.
        """
        if self._parts is None or self._owned is None:
            return
        self._data.warn_of_what_is_left_out()
        self._parts.warn_of_what_is_left_out()
        before, self._owned = self._owned, self._parts.look_again()
        new = sorted({*self._owned.generators_that_are_new_since(before)} - self._said)
        self._said.update(new)
        if self.whole is not None and new:
            warn_user(
                f"random number generators were made after the step that is saved, or late in the epoch: "
                f"{listed(new)}. This checkpoint does not have them. Make them in __init__ or on_train_start, and seed "
                "them again rather than making new ones.",
                InexactResumeWarning,
            )

    def _values(self) -> dict[str, Any]:
        return self._module_values.changed() if self._module_values is not None else {"numbers": {}, "buffers": {}}

    def _inside_hook(
        self, trainer: Trainer, fit_loop: dict[str, Any], draws: dict[str, Any]
    ) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """A user saves in a hook of his own, after the step and before the state is whole."""
        epoch = fit_loop["epoch_progress"]
        if epoch["current"]["processed"] > epoch["current"]["completed"]:
            _complete(epoch)
            return EPOCH_END, fit_loop, draws
        if epoch["current"]["started"] == epoch["current"]["processed"]:
            for counts in (epoch["total"], epoch["current"]):
                counts["ready"] = counts["started"]  # the epoch's beginning will count it
            return BETWEEN_EPOCHS, fit_loop, draws
        if trainer.validating and not self._validated:
            fit_loop, draws = copy.deepcopy(self._before_validation)  # the validation starts again
        _complete(fit_loop["epoch_loop.batch_progress"])
        point = STEP_END_VALIDATED if trainer.validating and self._validated else STEP_END
        return point, fit_loop, draws

    def _draws(self) -> dict[str, Any]:
        """What decides the random numbers to come."""
        return {
            "rng": capture_rng_state(),
            "validation": self._validation.current(),
            "own_generators": self._owned.generator_states() if self._owned is not None else {},
        }


def _batches_processed(fit_loop: dict[str, Any]) -> int:
    count: int = fit_loop["epoch_loop.batch_progress"]["total"]["processed"]
    return count


def _has_gradients(trainer: Trainer) -> bool:
    return any(parameter.grad is not None for parameter in trainer.lightning_module.parameters())


def _complete(progress: dict[str, Any]) -> None:
    for counts in (progress["total"], progress["current"]):
        counts["completed"] = counts["processed"]
