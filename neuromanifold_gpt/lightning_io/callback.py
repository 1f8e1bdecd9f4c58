"""The callback that is all a user writes."""

from __future__ import annotations

import re
from datetime import timedelta
from glob import escape
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from neuromanifold_gpt.checkpoint.commit import open_complete
from neuromanifold_gpt.checkpoint.discovery import list_checkpoints, newest_of
from neuromanifold_gpt.checkpoint.errors import CheckpointError, CheckpointWriteError
from neuromanifold_gpt.checkpoint.lock import RUN, DirectoryLock
from neuromanifold_gpt.checkpoint.naming import MODEL_SUFFIX, paths_of_model_file
from neuromanifold_gpt.checkpoint.retention import Retention, enforce
from neuromanifold_gpt.checkpoint.staging import stage as stage_tree
from neuromanifold_gpt.checkpoint.writer import resolve_directory
from neuromanifold_gpt.lightning_io.bookkeeping import (
    believed_paths,
    forget,
    make_absolute,
    make_relative,
    names_in,
    only_the_best,
)
from neuromanifold_gpt.lightning_io.boundary_saves import SavesAtBoundaries, warn_of_failed_save
from neuromanifold_gpt.lightning_io.exact_resume import ExactResume
from neuromanifold_gpt.lightning_io.plugin import install_plugin
from neuromanifold_gpt.lightning_io.ranks import on_rank_0
from neuromanifold_gpt.lightning_io.stop_signals import StoppedBySignal

_DEFAULT_FILENAME = "checkpoint-step{step:06d}"


class SeparatedCheckpoint(SavesAtBoundaries):
    """Lightning's ``ModelCheckpoint``, writing separated checkpoints from which training resumes exactly.

    One line in ``callbacks=[...]`` is all it takes; the plugin is installed by itself.
    ``trainer.fit(ckpt_path=...)`` takes a model file, ``"last"`` (the newest intact checkpoint of ``dirpath``) or
    ``"best"``.

    What ``ModelCheckpoint`` decides in the middle of a step or of an epoch's end is written as soon as that step
    (its validation and schedulers included) or epoch is over, since only then the state is whole; with gradient
    accumulation, as soon as the window is. Old files are removed when the new one is durable.

    While it trains, no other process can write checkpoints into ``dirpath``: it is refused, and told who does.

    Args:
        dirpath: where the checkpoints go; as in ``ModelCheckpoint`` by default.
        filename: template as in ``ModelCheckpoint``, by default ``checkpoint-step{step:06d}``; ``-model.pt``,
            ``-optimizer.pt`` and ``.json`` are added.
        enable_version_counter: add ``-v1`` rather than replace a checkpoint of the same name; by default only if
            ``filename`` does not contain ``{step``.
        save_top_k: as in ``ModelCheckpoint``, 1 by default; with ``retention`` leave it out.
        retention: a :class:`Retention` policy in place of ``save_top_k``. It is carried out after each save and is
            about the checkpoints in ``dirpath`` that are named by ``filename``; ``best_model_path`` stays if there is a
            ``monitor``, and so does whatever another callback of the trainer counts on.
        on_save_error: ``"raise"`` ends training when a file cannot be written; with ``"warn"`` training goes on, and
            the next save is tried as usual. Either way the older checkpoints stay, and no state names a file that is
            not there.
        save_on_exception: save once when a step raises; a checkpoint of that step which is there already stays.
        monitor, mode, save_last, save_weights_only, every_n_train_steps, every_n_epochs, train_time_interval,
            save_on_train_epoch_end, auto_insert_metric_name, verbose: as in ``ModelCheckpoint``.

    Example:
        >>> trainer = Trainer(callbacks=[SeparatedCheckpoint("out", every_n_train_steps=50)])  # doctest: +SKIP
        >>> trainer.fit(module, ckpt_path="last")  # doctest: +SKIP
    """

    FILE_EXTENSION = MODEL_SUFFIX

    def __init__(
        self,
        dirpath: _PATH | None = None,
        filename: str | None = None,
        *,
        monitor: str | None = None,
        mode: str = "min",
        save_top_k: int | None = None,
        save_last: bool | Literal["link"] | None = None,
        save_weights_only: bool = False,
        save_on_exception: bool = False,
        every_n_train_steps: int | None = None,
        every_n_epochs: int | None = None,
        train_time_interval: timedelta | None = None,
        save_on_train_epoch_end: bool | None = None,
        auto_insert_metric_name: bool = True,
        enable_version_counter: bool | None = None,
        verbose: bool = False,
        retention: Retention | None = None,
        on_save_error: Literal["raise", "warn"] = "raise",
    ) -> None:
        filename = filename or _DEFAULT_FILENAME
        _check_options(filename, save_top_k, retention, on_save_error)
        super().__init__(
            dirpath=dirpath,
            filename=filename,
            monitor=monitor,
            mode=mode,
            save_top_k=(1 if retention is None else -1) if save_top_k is None else save_top_k,
            save_last=save_last,
            save_weights_only=save_weights_only,
            save_on_exception=save_on_exception,
            every_n_train_steps=every_n_train_steps,
            every_n_epochs=every_n_epochs,
            train_time_interval=train_time_interval,
            save_on_train_epoch_end=save_on_train_epoch_end,
            auto_insert_metric_name=auto_insert_metric_name and filename != _DEFAULT_FILENAME,
            enable_version_counter="{step" not in filename
            if enable_version_counter is None
            else enable_version_counter,
            verbose=verbose,
            on_save_error=on_save_error,
        )
        self._retention = retention
        self._lock: DirectoryLock | None = None
        self._is_just_loaded = False

    # ------------------------------------------------------ when to save: as ModelCheckpoint decides, but later

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Install the plugin and what makes resumes exact; for training, lock the directory.

        Raises:
            CheckpointError: the trainer is of another package, such as ``pytorch_lightning``.
        """
        if not isinstance(trainer, Trainer):
            raise CheckpointError(
                f"expected a Trainer of lightning.pytorch, found one of {type(trainer).__module__}. These do not "
                "know each other's classes: import lightning.pytorch in place of pytorch_lightning."
            )
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            # Now, not at the first save hours later: an object that could not be read back.
            stage_tree({"hyper_parameters": dict(pl_module.hparams)})
        install_plugin(trainer)
        ExactResume.of(trainer).at_each_boundary(self.on_boundary)
        if stage == "fit" and not trainer.fast_dev_run and self._lock is None:  # type: ignore[attr-defined]
            lock = DirectoryLock(resolve_directory(str(self.dirpath)), RUN)
            on_rank_0(trainer, lock.acquire)
            self._lock = lock if trainer.is_global_zero else None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the directory free."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As ``ModelCheckpoint``, which forgets that ``fast_dev_run`` saves nothing."""
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            super().on_train_end(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Drop what waits for an end of the step that will not come; save once if asked for; free the directory."""
        self.drop_pending()
        try:
            if self._should_save_on_exception(trainer) and not isinstance(exception, StoppedBySignal):
                path = self.format_checkpoint_name(self._monitor_candidates(trainer))
                if not _is_complete(Path(path)):  # what is there was not taken in the middle of a step
                    self._save_checkpoint(trainer, path)
        except CheckpointWriteError as error:
            warn_of_failed_save(error, "The exception that ends the training follows")
        finally:
            self.teardown(trainer, pl_module, "fit")

    def on_boundary(self, trainer: Trainer) -> None:
        """As :class:`SavesAtBoundaries`; also what a kill between the last two saves of a run has left undone."""
        super().on_boundary(trainer)
        is_just_loaded, self._is_just_loaded = self._is_just_loaded, False
        is_saved = self._last_global_step_saved == trainer.global_step
        if is_just_loaded and is_saved and self.save_last and on_rank_0(trainer, lambda: self._last_is_behind(trainer)):
            self._last_checkpoint_saved = str(Path(str(trainer.ckpt_path)).absolute())  # not the one decided on
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _last_is_behind(self, trainer: Trainer) -> bool:
        """Whether there is a checkpoint of this step here, from which training was resumed, and ``last`` is older."""
        here = Path(str(self.dirpath)).absolute()
        path = Path(self.format_checkpoint_name(self._monitor_candidates(trainer), self.CHECKPOINT_NAME_LAST))
        if Path(str(trainer.ckpt_path)).absolute().parent != here:
            return False
        last = [checkpoint for checkpoint in list_checkpoints(here) if checkpoint.model_path.name == path.name]
        return not last or last[0].step < trainer.global_step

    def _after_save(self, trainer: Trainer, saved: str) -> None:
        policy, directory = self._retention, Path(str(self.dirpath)).absolute()
        if policy is None:
            return
        others = [callback for callback in trainer.checkpoint_callbacks if callback is not self]
        counted_on = {path for other in others if isinstance(other, ModelCheckpoint) for path in believed_paths(other)}
        options: dict[str, Any] = {
            "names": _names_pattern(str(self.filename)),
            "up_to_step": trainer.global_step,
            "kept": names_in(directory, {self.best_model_path} if self.monitor else set()),
            "untouched": names_in(directory, {*counted_on, saved, self.last_model_path}),
        }
        removed = on_rank_0(trainer, lambda: enforce(directory, policy, **options).removed)
        forget(self, {checkpoint.paths.model for checkpoint in removed})

    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        directory = Path(self._ModelCheckpoint__resolve_ckpt_dir(trainer))  # type: ignore[attr-defined]
        # A metric "val/loss" in the name makes directories, as in ModelCheckpoint, which does not look there.
        equals = self.CHECKPOINT_EQUALS_CHAR if self.auto_insert_metric_name else ""
        pattern = _directories_pattern(str(self.filename), equals)
        below = filter(Path.is_dir, directory.glob(pattern)) if pattern else ()
        newest = newest_of([directory, *below], resumable=True)
        return set() if newest is None else {str(newest.model_path)}

    # ------------------------------------------------------------------ its own state: the same in every directory

    def state_dict(self) -> dict[str, Any]:
        """As ``ModelCheckpoint``, with file names in place of paths, and with what it has decided but not done."""
        state = super().state_dict()
        state["last_checkpoint_saved"] = self._last_checkpoint_saved
        state["last_global_step_saved"] = self._last_global_step_saved
        state["defer_save_until_validation"] = self._defer_save_until_validation
        if self._retention is not None:
            only_the_best(state, self.mode)
        make_relative(state, str(self.dirpath))
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up :meth:`state_dict`; checkpoints that are no longer there are forgotten."""
        self._is_just_loaded = True
        state = dict(state_dict)
        if "dirpath" not in state:
            make_absolute(state, str(self.dirpath))
        self._last_checkpoint_saved = state.pop("last_checkpoint_saved", "")
        self._last_global_step_saved = state.pop("last_global_step_saved", 0)
        self._defer_save_until_validation = state.pop("defer_save_until_validation", False)
        super().load_state_dict(state)


def _check_options(filename: str, save_top_k: int | None, retention: Retention | None, on_save_error: str) -> None:
    if on_save_error not in ("raise", "warn"):
        raise ValueError(f"on_save_error: expected 'raise' or 'warn', found {on_save_error!r}.")
    if retention is not None and save_top_k not in (None, -1):
        raise ValueError(
            f"save_top_k: expected none beside retention, which takes its place, found {save_top_k}. The best so many: "
            "Retention(keep_best=..., monitor=...)."
        )
    if retention is not None and "/" in filename:
        raise ValueError(f"filename: expected no directory beside retention, found {filename!r}. Put it into dirpath.")


def _is_complete(model_path: Path) -> bool:
    try:
        open_complete(paths_of_model_file(model_path))
    except CheckpointError:
        return False
    return True


def _directories_pattern(filename: str, equals: str) -> str:
    """Of those that a template makes; empty if it makes none.

    Args:
        filename: the template.
        equals: what stands between a metric's name and its value; empty where the name is left out.
    """
    literal, *others = re.split(r"\{([^{}:!]*)[^{}]*\}", filename)  # others: names and literals in turn
    pattern = escape(literal)
    for name, rest in zip(others[::2], others[1::2], strict=True):
        pattern += f"{escape(name + equals) if equals else ''}*{escape(rest)}"
    return pattern.rpartition("/")[0]


def _names_pattern(filename: str) -> str | None:
    """What the names of a template have in common; ``None`` for the names that this package gives."""
    if filename == _DEFAULT_FILENAME:
        return None
    return "*".join(map(escape, re.split(r"\{[^{}]*\}", filename))) + "*"
