"""What Lightning's own checkpoint lacks for an exact resume: gathered at each save, put back before the next step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from neuromanifold_gpt.checkpoint.environment import current_environment, warn_if_changed
from neuromanifold_gpt.checkpoint.errors import CheckpointError, InexactResumeWarning
from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.lightning_io.batch_ahead import BatchAhead, with_shown_batch
from neuromanifold_gpt.lightning_io.boundaries import BETWEEN_EPOCHS, EPOCH_END, LoopBoundaries
from neuromanifold_gpt.lightning_io.content import RESUME_KEY
from neuromanifold_gpt.lightning_io.data_position import DataPosition
from neuromanifold_gpt.lightning_io.epoch_setup import set_up_epoch_again, warn_of_epoch_hooks
from neuromanifold_gpt.lightning_io.frozen_parameters import FrozenParameters
from neuromanifold_gpt.lightning_io.latest_metrics import latest_metrics, restore_latest_metrics, with_those_before
from neuromanifold_gpt.lightning_io.loader_epochs import LoaderEpochs, with_numbers_that_change
from neuromanifold_gpt.lightning_io.loader_warnings import warn_of_shared_loaders
from neuromanifold_gpt.lightning_io.other_callbacks import (
    keep_current_scores,
    keep_stopped,
    refuse_tuners,
    warn_of_a_later_fit,
)
from neuromanifold_gpt.lightning_io.plugin import writes_separated
from neuromanifold_gpt.lightning_io.restored_weights import shown_weights, warn_of_changed_weights
from neuromanifold_gpt.lightning_io.resume_point import ResumePointTracker
from neuromanifold_gpt.lightning_io.state_by_rank import shown_by_rank
from neuromanifold_gpt.lightning_io.state_loading import (
    load_by_names,
    load_doubles,
    own_names_hook,
    require_optimizers,
    warn_of_stock_checkpoint,
)
from neuromanifold_gpt.lightning_io.trainer_settings import TrainerSettings
from neuromanifold_gpt.lightning_io.validation_position import ValidationPosition
from neuromanifold_gpt.state.gradients import restore_gradients
from neuromanifold_gpt.state.modules import parameter_names, warn_if_rounded
from neuromanifold_gpt.state.optimizers import named_optimizer_state
from neuromanifold_gpt.state.pruned_weights import pruned_weights, restore_pruned_weights
from neuromanifold_gpt.state.rng import gather_across_ranks, own_state, restore_own_rng_state
from neuromanifold_gpt.state.settings import DEFAULTS_KEY, warn_of_ignored_settings
from neuromanifold_gpt.state.steps_taken_again import compare_steps, note_steps
from neuromanifold_gpt.state.unsaved.rank_differences import warn_of_other_ranks

_OF_RANK = "shown of the rank"  # compared, not saved


class ExactResume(Callback):
    """Adds to each checkpoint, and restores:

    - the random number generators of every rank;
    - the names of the optimizers' parameters, by which their state is matched;
    - metrics that callbacks and schedulers monitor;
    - which parameters are frozen, which modules are in evaluation mode, and what the module counts by itself;
    - the position in the training data, whatever loader it comes from, and what decides the batches of validations;
    - metrics that are being accumulated, by the module and by callbacks;
    - the point of the loop, so that validation, schedulers and batches are neither skipped nor repeated.

    :class:`SeparatedCheckpoint` puts it in front of the trainer's callbacks.
    """

    _data: DataPosition  # this and the next five: from setup on
    _ahead: BatchAhead
    _validation: ValidationPosition
    _loader_epochs: LoaderEpochs
    _tracker: ResumePointTracker
    _settings: TrainerSettings

    def __init__(self) -> None:
        self._boundaries: LoopBoundaries | None = None
        self._loaded: dict[str, Any] | None = None
        self._optimizers_are_loaded = False
        self._optimizer_settings: list[dict[str, Any]] = []
        self._weights: dict[str, Any] = {}  # as they were loaded
        self._name_hook: Any = None
        self._fit_has_begun = False
        self._listeners: list[Callable[[Trainer], None]] = []
        self._frozen = FrozenParameters()

    @classmethod
    def of(cls, trainer: Trainer) -> ExactResume:
        """The trainer's instance, made where there is none yet."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            if isinstance(callback, cls):
                return callback
        own = cls()
        # A new list: Lightning may be iterating over the old one.
        trainer.callbacks = [own, *callbacks]  # type: ignore[attr-defined]
        own.setup(trainer, trainer.lightning_module, "")
        return own

    def at_each_boundary(self, listener: Callable[[Trainer], None]) -> None:
        """Call ``listener`` whenever the state is whole, and when the fit loop is left."""
        if listener not in self._listeners:
            self._listeners.append(listener)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Follow the fit loop, and let checkpoints be loaded whose names are clean of ``torch.compile``."""
        self._fit_has_begun = False
        if self._boundaries is None:
            self._data, self._ahead = DataPosition(trainer.fit_loop), BatchAhead()
            self._validation = ValidationPosition(
                trainer.fit_loop.epoch_loop.val_loop, on_begin=lambda: self._tracker.validation_begins(trainer)
            )
            self._loader_epochs = LoaderEpochs(trainer.fit_loop)
            self._tracker = ResumePointTracker(self._data, self._ahead, self._validation, self._loader_epochs)
            self._settings = TrainerSettings(trainer)
            self._boundaries = LoopBoundaries(
                trainer,
                on_boundary=lambda point: self._on_boundary(trainer, point),
                on_fit_left=lambda: self._notify(trainer),
                on_resume=lambda: self._restore(trainer),
                on_nothing_left=lambda: self._restore_where_nothing_is_left(trainer),
                on_teardown=lambda: self._tracker.fit_is_left(trainer),
                data=self._data,
            )
            load_by_names(trainer, self._optimizers_were_loaded)
        if self._name_hook is None:
            self._name_hook = pl_module.register_load_state_dict_pre_hook(own_names_hook(pl_module))

    def _optimizers_were_loaded(self, states: list[dict[str, Any]]) -> None:
        self._optimizer_settings = [{DEFAULTS_KEY: state.get(DEFAULTS_KEY, {})} for state in states]
        self._optimizers_are_loaded = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave module and optimizers as they were."""
        self._remove_name_hook()
        self._tracker.training_ends()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The module and the data are set up."""
        self._settings = TrainerSettings(trainer)
        warn_of_shared_loaders(trainer)
        self._tracker.training_begins(trainer)
        self._frozen.training_begins(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A batch has been fetched; what callbacks set at the beginning of an epoch is set."""
        self._settings.compare()
        self._data.batch_was_fetched()
        self._ahead.was_fetched(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The weights are loaded; what users load later is theirs."""
        self._remove_name_hook()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on the validation is done, whatever hooks follow."""
        self._tracker.validation_is_done()

    on_test_start = on_validation_start

    def _remove_name_hook(self) -> None:
        if self._name_hook is not None:
            self._name_hook.remove()
            self._name_hook = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Complete Lightning's checkpoint.

        Raises:
            CheckpointError: it would have the optimizers of the beginning, since those of the checkpoint that training
                resumes from are not loaded yet.
        """
        if self._loaded is not None and not self._optimizers_are_loaded:
            raise CheckpointError(
                "this save comes too early: the optimizers of the checkpoint that training resumes from are not loaded "
                "yet. Save in on_train_start, or later."
            )
        loop = self._tracker.current(trainer)
        self._tracker.warn_of_what_is_left_out()
        checkpoint["loops"]["fit_loop"] = loop.fit_loop
        checkpoint["epoch"] = loop.epoch
        hooks = loop.before_last_hooks
        inexact = hooks.put_into(trainer, checkpoint) if hooks is not None else []
        metrics = latest_metrics(trainer) if hooks is None else hooks.metrics
        names = parameter_names(pl_module)
        checkpoint["optimizer_states"] = [
            named_optimizer_state(optimizer, names, state)
            for state, optimizer in zip(checkpoint["optimizer_states"], trainer.optimizers, strict=True)
        ]
        ranks = gather_across_ranks(
            {
                "rng_states": loop.rng,
                "own_generators": loop.own_generators,
                "module_values": loop.module_values,
                "data": with_shown_batch(loop.data, trainer),
                "validation": loop.validation,
                "loader_epochs": with_numbers_that_change(loop.loader_epochs, loop.module_values),
                "epoch_metrics": loop.epoch_metrics,
                "gradients": loop.gradients(pl_module),
                _OF_RANK: shown_by_rank(trainer, checkpoint),
            }
        )
        warn_of_other_ranks(pl_module, [rank.pop(_OF_RANK) for rank in ranks])
        checkpoint[RESUME_KEY] = {
            "point": loop.point,
            **{key: [rank[key] for rank in ranks] for key in ranks[0]},
            **with_those_before(metrics, self._loaded or {}),
            "modes": {**self._frozen.modes(pl_module), **(hooks.modes if hooks is not None else {})},
            "pruned_weights": pruned_weights(pl_module),
            "inexact": inexact + self._tracker.inexact_here(trainer, loop),
            "scheduler_classes": [type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs],
            "settings": self._settings.current(),
            "constants": dict(sorted({**self._tracker.constants(), **self._loader_epochs.shown_data()}.items())),
        }
        if trainer.is_global_zero and writes_separated(trainer):
            checkpoint[RESUME_KEY]["steps"] = note_steps(trainer.optimizers)  # now: a thread may write later

    def _on_boundary(self, trainer: Trainer, point: str) -> None:
        self._tracker.reached(trainer, point)
        self._notify(trainer)

    def _notify(self, trainer: Trainer) -> None:
        for listener in self._listeners:
            listener(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take what :meth:`on_save_checkpoint` added, and hand Lightning the optimizer states in the order of now."""
        is_tuner = self._fit_has_begun and not trainer.strategy.restore_checkpoint_after_setup  # begins anew
        if trainer.state.fn != TrainerFn.FITTING or is_tuner:
            return
        self._loaded = checkpoint.get(RESUME_KEY)
        self._optimizers_are_loaded = False
        self._tracker.whole = None
        keep_current_scores(trainer, checkpoint["callbacks"])
        if self._loaded is None:
            warn_of_stock_checkpoint()
        elif self._loaded["point"] is not None and self._boundaries is not None:
            self._tracker.loaded(checkpoint, self._loaded)
            self._loader_epochs.loaded(*(own_state(self._loaded[key]) for key in ("loader_epochs", "module_values")))
            self._boundaries.resume_at(self._loaded["point"], checkpoint["loops"]["fit_loop"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a checkpoint without optimizer state, before Lightning does so in other words."""
        self._remove_name_hook()
        self._fit_has_begun = True
        checkpoint = trainer._checkpoint_connector._loaded_checkpoint
        if checkpoint:
            require_optimizers(checkpoint, trainer.ckpt_path)
            refuse_tuners(trainer)
            keep_stopped(trainer)
            weights = checkpoint.get("current_model_state", checkpoint["state_dict"])  # WeightAveraging moves them
            load_doubles(pl_module, weights)
            warn_if_rounded(pl_module, weights)
            self._weights = {} if trainer.strategy.restore_checkpoint_after_setup else shown_weights(pl_module)

    def _restore(self, trainer: Trainer) -> None:
        """Called at the very point: nothing runs between this and the next step."""
        loaded, self._loaded = self._loaded, None
        assert loaded is not None, "the loop resumes only from a checkpoint that was loaded"
        for reason in loaded["inexact"]:
            warn_user(f"this resume is not exact: {reason}.", InexactResumeWarning)
        warn_of_changed_weights(self._weights, trainer.lightning_module)
        self._frozen.restore(trainer, loaded["modes"])
        restore_pruned_weights(trainer.lightning_module, loaded["pruned_weights"])
        self._validation.go_to(own_state(loaded["validation"]))  # first: training may share a dataset with it
        self._loader_epochs.resumed()
        if trainer.is_global_zero:
            self._loader_epochs.compare_data(loaded.get("constants", {}))
        middle_of_epoch = loaded["point"] not in (BETWEEN_EPOCHS, EPOCH_END)
        if middle_of_epoch or trainer.current_epoch == 0:  # else Lightning makes a new iterator by itself
            self._data.go_on_in_epoch(own_state(loaded["data"]))
            self._ahead.restore(own_state(loaded["data"]), trainer)
        else:
            self._data.go_on_between_epochs(own_state(loaded["data"]))
        restore_gradients(trainer.lightning_module, own_state(loaded["gradients"]))
        restore_latest_metrics(trainer, loaded)
        if "environment" in loaded:  # a unified file has none
            here = current_environment(trainer.strategy.root_device.type, trainer.world_size)
            warn_if_changed(loaded["environment"], here)
        self._settings.restored(loaded["settings"])
        if middle_of_epoch:
            set_up_epoch_again(trainer)
            warn_of_epoch_hooks(trainer)
            self._settings.compare()
        warn_of_ignored_settings(trainer.optimizers, self._optimizer_settings)
        self._optimizer_settings = []
        self._tracker.restore_beside_state(trainer, loaded)
        restore_own_rng_state(loaded["rng_states"])
        if "saved_as" in loaded and trainer.is_global_zero:
            compare_steps(loaded["saved_as"], trainer.optimizers)

    def _restore_where_nothing_is_left(self, trainer: Trainer) -> None:
        """The program goes on behind ``fit`` as it did where this trained."""
        loaded, self._loaded = self._loaded, None
        assert loaded is not None, "nothing is left only where a checkpoint was loaded"
        warn_of_a_later_fit(trainer, is_in_epoch=loaded["point"] not in (BETWEEN_EPOCHS, EPOCH_END))
        self._loader_epochs.resumed()
        self._data.go_on_between_epochs(own_state(loaded["data"]))
        restore_latest_metrics(trainer, loaded)
        self._tracker.restore_where_nothing_is_left(trainer, loaded)
        restore_own_rng_state(loaded["rng_states"])
