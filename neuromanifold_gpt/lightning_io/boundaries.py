"""The points of Lightning's fit loop at which a training state is whole.

Lightning's hooks lie inside a step or inside the end of an epoch: when ``on_train_batch_end`` runs, the validation that
is due, the schedulers that monitor it and some counters are still to come, and a checkpoint taken there cannot tell. So
two functions of the loop are followed here, and a state counts as whole

- **between steps**: when ``_TrainingEpochLoop.on_advance_end`` has returned (step, validation and schedulers done, the
  next batch not fetched), except after an epoch's last batch;
- **between epochs**: when ``_FitLoop.on_advance_end`` has returned (all hooks of the epoch's end done).

Resuming is the mirror image. Lightning's own restart leaves its counters approximately right and may step through a
phantom batch or validation. Just before the first thing that the uninterrupted run would do next,
``_FitLoop.on_advance_start`` between epochs or ``_TrainingEpochLoop.advance`` between steps, counters are set to
what they were and the loop is told that nothing restarts.

These are internals of Lightning 2.6 (``loops/fit_loop.py``, ``loops/training_epoch_loop.py``, ``loops/progress.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.loops.progress import _BaseProgress
from lightning.pytorch.utilities.exceptions import SIGTERMException

from neuromanifold_gpt.lightning_io.cycled_passes import leave_cut_passes
from neuromanifold_gpt.lightning_io.data_position import DataPosition

BETWEEN_STEPS = "between_steps"
BETWEEN_EPOCHS = "between_epochs"
# A user's own hook saved at the end of a step or epoch: what is left of it is done on resuming.
STEP_END = "step_end"
STEP_END_VALIDATED = "step_end_validated"
EPOCH_END = "epoch_end"


class LoopBoundaries:
    """Calls ``on_boundary`` at each point at which the state is whole, and ``on_resume`` before it goes on from one.

    Args:
        trainer: its fit loop is followed from now on.
        on_boundary: called with :data:`BETWEEN_STEPS` or :data:`BETWEEN_EPOCHS`.
        on_fit_left: called when the loop stops in the middle of an epoch, after the hooks of the epoch's end, or when
            it has been resumed and nothing was left to train.
        on_resume: called once, with nothing, at the point given to :meth:`resume_at`.
        on_nothing_left: called in its place where nothing was left to train.
        on_teardown: called before the data of a fit is torn down, whatever has ended it.
        data: told when Lightning gets loaders, makes iterators and fetches batches.
    """

    def __init__(
        self,
        trainer: Trainer,
        on_boundary: Callable[[str], None],
        on_fit_left: Callable[[], None],
        on_resume: Callable[[], None],
        on_nothing_left: Callable[[], None],
        on_teardown: Callable[[], None],
        data: DataPosition,
    ) -> None:
        self._fit_loop = trainer.fit_loop
        self._on_boundary = on_boundary
        self._on_fit_left = on_fit_left
        self._on_resume = on_resume
        self._on_nothing_left = on_nothing_left
        self._data = data
        self._resume_point: str | None = None
        self._loop_state: dict[str, Any] = {}
        self._epoch_is_over = False  # where data ends before its length, or has none
        epoch_loop = self._fit_loop.epoch_loop
        _wrap(epoch_loop, "on_advance_end", after=self._after_step)
        _wrap(epoch_loop, "advance", instead=self._before_step, if_data_ends=self._data_ended)
        _wrap(epoch_loop, "on_run_start", instead=self._before_iterator)
        _wrap(
            self._fit_loop,
            "_load_combined_loader_states",
            instead=self._before_loading_positions,
            after=data.loaders_are_new,
        )
        _wrap(self._fit_loop, "on_advance_start", instead=self._resume_between_epochs)
        _wrap(self._fit_loop, "on_advance_end", after=self._after_epoch)
        _wrap(self._fit_loop, "run", after=self._after_fit)
        _wrap(self._fit_loop, "teardown", before=on_teardown)

    def resume_at(self, point: str, loop_state: dict[str, Any]) -> None:
        """Go on from ``point`` with the counters of ``loop_state``, a ``fit_loop.state_dict()``."""
        self._resume_point, self._loop_state = point, loop_state

    def _after_step(self) -> None:
        waits = self._window_is_open() and not is_about_to_be_left(self._fit_loop)
        if not self._fit_loop.epoch_loop._num_ready_batches_reached() and not waits:
            self._on_boundary(BETWEEN_STEPS)

    def _data_ended(self) -> None:
        self._epoch_is_over = True

    def _after_epoch(self) -> None:
        is_over, self._epoch_is_over = self._epoch_is_over, False
        if is_over or self._fit_loop.epoch_loop._num_ready_batches_reached():
            self._on_boundary(BETWEEN_EPOCHS)
        else:
            self._on_fit_left()

    def _after_fit(self) -> None:
        if self._resume_point is None:
            return
        point = self._take_up_counters()
        if point not in (BETWEEN_EPOCHS, EPOCH_END):  # what stops in the middle of an epoch ends it
            self._fit_loop.epoch_progress.increment_processed()
            self._fit_loop.epoch_progress.increment_completed()
        _is_not_resuming(self._fit_loop)
        self._on_nothing_left()
        self._on_fit_left()

    def _window_is_open(self) -> bool:
        """Whether gradients of an accumulation window wait for its last batch."""
        return self._fit_loop._should_accumulate()

    def _before_loading_positions(self) -> bool:
        if self._resume_point is not None:  # they are loaded there, and reading a stream twice would take time
            self._fit_loop._combined_loader_states_to_load = []
        return False

    def _before_iterator(self) -> bool:
        # The condition in on_run_start; else Lightning goes on with the iterator that it made with its loaders.
        loop = self._fit_loop
        if loop.trainer.current_epoch > 0 and not loop.is_resuming and not loop.epoch_loop.restarting:
            self._data.iterator_is_made()
            if loop._combined_loader is not None:
                leave_cut_passes(loop._combined_loader)
        return False

    def _before_step(self) -> bool:
        step_is_done = self._resume_between_steps()
        if not step_is_done:
            self._data.batch_is_fetched()
        return step_is_done

    def _resume_between_steps(self) -> bool:
        point = self._resume_point
        if point in (None, BETWEEN_EPOCHS, EPOCH_END):
            return False
        self._resume()
        self._fit_loop.epoch_loop._skip_next_val = point == STEP_END_VALIDATED
        return point != BETWEEN_STEPS  # then Lightning goes on with on_advance_end: the rest of that step

    def _resume_between_epochs(self) -> bool:
        point = self._resume_point
        if point in (BETWEEN_EPOCHS, EPOCH_END):
            self._fit_loop._resuming_from_checkpoint = False  # so that a new iterator is made, as without a stop
            self._resume()
        if point == EPOCH_END:
            progress = self._fit_loop.epoch_progress.current
            progress.completed -= 1  # schedulers count the epoch that they end
            self._fit_loop.epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
            progress.completed += 1
        return False

    def _resume(self) -> None:
        self._take_up_counters()
        self._on_resume()

    def _take_up_counters(self) -> str | None:
        """Those of the checkpoint; gives the point at which they were."""
        point, self._resume_point = self._resume_point, None
        load_counters(self._fit_loop, self._loop_state)
        # Through the base class: the fit loop's own setter keeps ``restarting`` true wherever max_steps is set.
        _Loop.restarting.fset(self._fit_loop, False)  # type: ignore[attr-defined]
        return point


def is_about_to_be_left(fit_loop: _FitLoop) -> bool:
    """Whether no further step follows the one that is over."""
    should_stop: bool = fit_loop.trainer.should_stop
    return fit_loop.epoch_loop._is_training_done or (should_stop and fit_loop._can_stop_early)


def is_due_to_a_stop(trainer: Trainer) -> bool:
    """Whether the validation that begins would not take place if nobody had set ``should_stop``."""
    if trainer.sanity_checking or not trainer.should_stop:
        return False
    fit_loop = trainer.fit_loop
    trainer.should_stop = False
    try:
        return not fit_loop.epoch_loop._should_check_val_fx(fit_loop._data_fetcher)  # type: ignore[arg-type]
    finally:
        trainer.should_stop = True


def load_counters(fit_loop: _FitLoop, state: dict[str, Any]) -> None:
    """Set all progress counters of the fit loop and the loops in it, and nothing else."""
    _load_progress(fit_loop, state, "")
    fit_loop.epoch_loop._batches_that_stepped = state["epoch_loop.state_dict"]["_batches_that_stepped"]


def _is_not_resuming(loop: _Loop) -> None:
    loop._loaded_from_state_dict = loop._resuming_from_checkpoint = False
    for inner in vars(loop).values():
        if isinstance(inner, _Loop):
            _is_not_resuming(inner)


def _load_progress(loop: _Loop, state: dict[str, Any], prefix: str) -> None:
    for name, value in vars(loop).items():
        if isinstance(value, _BaseProgress):
            value.load_state_dict(state[prefix + name])
        elif isinstance(value, _Loop):
            _load_progress(value, state, f"{prefix}{name}.")


def _wrap(
    loop: _Loop,
    name: str,
    *,
    before: Callable[[], None] | None = None,
    instead: Callable[[], bool] | None = None,
    after: Callable[[], None] | None = None,
    if_data_ends: Callable[[], None] | None = None,
) -> None:
    """Follow a method: call ``before``, skip it if ``instead()`` is true, and call ``after`` when it has returned."""
    original = getattr(loop, name)

    def followed(*arguments: Any) -> None:
        if before is not None:
            before()
        if instead is not None and instead():
            return
        try:
            original(*arguments)
        except StopIteration:
            if if_data_ends is not None:
                if_data_ends()
            raise
        except SIGTERMException:  # raised when all else is done
            if after is not None:
                after()
            raise
        if after is not None:
            after()

    setattr(loop, name, followed)
