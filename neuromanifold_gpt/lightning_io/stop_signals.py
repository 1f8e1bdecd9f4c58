"""SIGTERM, SIGUSR1 and SIGINT: finish the step, save, train one more step for the resume to compare, end."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.utilities import _is_max_limit_reached
from lightning.pytorch.trainer.connectors.signal_connector import _HandlersCompose

from neuromanifold_gpt.lightning_io.boundary_saves import SavesAtBoundaries
from neuromanifold_gpt.lightning_io.exact_resume import ExactResume
from neuromanifold_gpt.lightning_io.plugin import writes_separated
from neuromanifold_gpt.lightning_io.signal_watch import ShieldedChildren, SignalWatch

EXIT_NOT_SAVED = 4


class StoppedBySignal(SystemExit):
    """Raised out of ``trainer.fit`` when the step is saved; uncaught, it ends the process with the exit code.

    Attributes:
        signal: the signal that was received.
        global_step: the step that was finished and saved.
    """

    def __init__(self, number: signal.Signals, global_step: int) -> None:
        super().__init__(128 + number)
        self.signal = number
        self.global_step = global_step


class StopOnSignal(Callback):
    """When the system wants the process to end, finish the step, save it, and end with the exit code 128 + signal.

    It goes with :class:`SeparatedCheckpoint` (or a ``ModelCheckpoint``), under whose name and in whose directory the
    step is saved, whatever its schedule says::

        Trainer(callbacks=[SeparatedCheckpoint("out", every_n_train_steps=500), StopOnSignal(deadline_sec=60)])

    Nothing is saved inside a signal handler. Further signals during the step or the save change nothing: the process is
    about to end. With several ranks, a signal to any of them stops all after the same step. Where Lightning would
    requeue a Slurm job from within its handler for SIGUSR1, that is done after the save. All this holds from the first
    step to the last; before and after, signals do what they did.

    Forked data workers leave these signals, which schedulers and terminals send to every process of a job, to their
    parent, so that it can finish the step. SIGTERM is blocked in them for this, and so in programs that they start: end
    such a program with ``kill()`` rather than ``terminate()``.

    Args:
        signals: which ones: those of a preempting scheduler, of Slurm's ``--signal=USR1@90``, and Ctrl-C.
        deadline_sec: if step and save have not finished so many seconds after the signal, the process ends without, at
            once, with the exit code 4; the older checkpoints stay, and a save that was under way is cleared by the
            next. By default it takes as long as it takes. If the step is saved, and only the further one is not done in
            time, the exit code is 128 + signal.
        one_more_step: ``False`` to end right behind the save, with nothing for the resume to compare.
    """

    def __init__(
        self,
        signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT),
        *,
        deadline_sec: float | None = None,
        one_more_step: bool = True,
    ) -> None:
        if deadline_sec is not None and not deadline_sec > 0:
            raise ValueError(f"deadline_sec: expected more than 0, or None for no deadline, found {deadline_sec!r}.")
        self._deadline_sec = deadline_sec
        self._watch = SignalWatch(signals, deadline_sec, self._on_deadline)
        self._children = ShieldedChildren(signals)
        self._outside: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in signals}
        self._one_more_step = one_more_step
        self._saved: StoppedBySignal | None = None

    @property
    def received(self) -> signal.Signals | None:
        """The first signal since training began."""
        return self._watch.received

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before data workers start, and before Lightning takes over signals."""
        if stage == "fit":
            self._outside = {number: signal.getsignal(number) for number in self._outside}
            self._children.start()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over, also from Lightning, which would act before the state is whole."""
        self._watch.received = self._saved = None
        self._watch.start()
        # Behind those of the checkpoint callbacks: what is due in this step anyway is saved first.
        ExactResume.of(trainer).at_each_boundary(self._at_boundary)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lightning calls no teardown then."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back: not to Lightning, which has left by now."""
        self._watch.stop(self._outside)
        self._children.stop()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """The step behind the saved one is done: before checkpoint callbacks, loggers and validation see it."""
        if self._saved is not None and trainer.global_step > self._saved.global_step:
            raise self._saved

    def _at_boundary(self, trainer: Trainer) -> None:
        if not self._watch.previous:
            return
        if self._saved is not None:  # a step without an optimizer's, or the end of a stream
            raise self._saved
        received = _agreed(trainer, self.received)
        if received is None:
            return
        savers = [saver for saver in trainer.checkpoint_callbacks if isinstance(saver, ModelCheckpoint)]
        if savers:
            save_now(trainer, savers[0])
        self._saved = StoppedBySignal(received, trainer.global_step)
        if _requeue_slurm_job(trainer, received, self._watch) or not self._trains_on(trainer, savers):
            raise self._saved

    def _trains_on(self, trainer: Trainer, savers: Sequence[ModelCheckpoint]) -> bool:
        """The same on each rank."""
        is_noted = any(not saver.save_weights_only for saver in savers) and writes_separated(trainer)
        would_be_saved = any(saver.save_on_exception and not isinstance(saver, SavesAtBoundaries) for saver in savers)
        return self._one_more_step and is_noted and not would_be_saved and not _is_over(trainer)

    def _on_deadline(self) -> tuple[int, str]:
        if self._saved is not None:
            return 128 + self._saved.signal, "The step is saved, but the process did not end in time; it ends now."
        return EXIT_NOT_SAVED, (
            f"The step was not finished and saved within {self._deadline_sec:g} seconds; the process ends without. "
            "Older checkpoints are untouched."
        )


def save_now(trainer: Trainer, saver: ModelCheckpoint) -> None:
    """Save this step under the name that ``saver`` would give it, unless that has saved it.

    Raises:
        CheckpointWriteError: the file system refused.
    """
    if isinstance(saver, SavesAtBoundaries):
        saver.save_now(trainer)
    elif saver._last_global_step_saved != trainer.global_step:
        path = saver._get_metric_interpolated_filepath_name(saver._monitor_candidates(trainer), trainer)
        trainer.save_checkpoint(path, saver.save_weights_only)
        saver._last_global_step_saved = trainer.global_step


def _agreed(trainer: Trainer, received: signal.Signals | None) -> signal.Signals | None:
    """The signal that any rank has received: all must leave the loop after the same step."""
    if trainer.world_size == 1:
        return received
    number = torch.tensor(received or 0, device=trainer.strategy.root_device)
    highest = int(trainer.strategy.reduce(number, reduce_op="max"))
    return signal.Signals(highest) if highest else None


def _is_over(trainer: Trainer) -> bool:
    """Whether no step follows: as in ``_FitLoop.done``, which says so, and counts, when it is asked."""
    loop = trainer.fit_loop
    epochs_over = loop.epoch_progress.current.completed
    are_steps_over = _is_max_limit_reached(trainer.global_step, loop.max_steps)
    return trainer.should_stop or are_steps_over or _is_max_limit_reached(epochs_over, loop.max_epochs or -1)


def _requeue_slurm_job(trainer: Trainer, received: signal.Signals, watch: SignalWatch) -> bool:
    """What Lightning's own handler does, which saves too, where its ``auto_requeue`` is on; but here, between steps."""
    environment = trainer._accelerator_connector.cluster_environment
    handler = watch.previous.get(received)
    if (
        isinstance(environment, SLURMEnvironment)
        and environment.auto_requeue
        and received == environment.requeue_signal
        and isinstance(handler, _HandlersCompose)
    ):
        handler(received, None)  # type: ignore[arg-type]
        return True
    return False
