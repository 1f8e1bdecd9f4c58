"""The Lightning plugin that writes and reads separated checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO

from neuromanifold_gpt.checkpoint.commit import open_complete, remove
from neuromanifold_gpt.checkpoint.discovery import open_checkpoint
from neuromanifold_gpt.checkpoint.environment import current_environment
from neuromanifold_gpt.checkpoint.errors import CheckpointError, InexactResumeWarning
from neuromanifold_gpt.checkpoint.foreign import read_any_archive
from neuromanifold_gpt.checkpoint.lock import writing
from neuromanifold_gpt.checkpoint.manifest import MODEL, OPTIMIZER
from neuromanifold_gpt.checkpoint.naming import paths_of_any_file, paths_of_model_file
from neuromanifold_gpt.checkpoint.reader import read_file
from neuromanifold_gpt.checkpoint.retention import note_as_intact
from neuromanifold_gpt.checkpoint.storage import LocalStorage, read_errors
from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.checkpoint.writer import resolve_directory, stage_checkpoint, write_checkpoint
from neuromanifold_gpt.lightning_io.content import RESUME_KEY, is_trainer_checkpoint, split
from neuromanifold_gpt.state.rng import rank_and_world_size
from neuromanifold_gpt.state.steps_taken_again import forget_steps, steps_are_behind
from neuromanifold_gpt.state.unsaved.unsaved_values import DETAILS_KEY


class SeparatedCheckpointIO(CheckpointIO):
    """Makes any ``Trainer`` and any ``ModelCheckpoint`` write and read separated checkpoints.

    The path that Lightning asks for is where the model file lies; the optimizer file and the manifest lie beside it
    (see ``checkpoint/naming.py``). Unified ``.ckpt`` files are read as well.

    Alone it separates the files. What makes a resume exact, random number generators among it, is gathered by
    :class:`SeparatedCheckpoint`, which installs this plugin by itself::

        Trainer(plugins=[SeparatedCheckpointIO()], callbacks=[ModelCheckpoint(...)])
        Trainer(callbacks=[SeparatedCheckpoint(...)])

    Args:
        trusted: let pickles in loaded files run code. Only for files whose author you trust.
    """

    def __init__(self, *, trusted: bool = False) -> None:
        self._trusted = trusted
        # Set where ExactResume translates names on load; without it, Lightning needs the names as they are.
        self.clean_names = False
        self._has_said = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write a checkpoint whose model file is ``path``.

        Raises:
            CheckpointWriteError, UnsupportedObjectError: see :func:`write_checkpoint` and :func:`stage_checkpoint`.
            TypeError: ``storage_options`` were given; there are none.
        """
        if storage_options is not None:
            raise TypeError("SeparatedCheckpointIO has no storage_options: give none to Trainer.save_checkpoint.")
        model_path = resolve_directory(path)
        if not is_trainer_checkpoint(checkpoint):
            TorchCheckpointIO().save_checkpoint(checkpoint, model_path)
            return
        resume = dict(checkpoint.get(RESUME_KEY, {}))
        constants = resume.pop("constants", {})  # of the manifest: the files have what training depends on
        steps = resume.pop("steps", None)
        content = {**checkpoint, RESUME_KEY: resume} if resume else checkpoint
        model, optimizer = split(content, clean_names=self.clean_names)
        if optimizer is not None and not resume:
            self._say_what_is_missing()
        metrics = {key: float(value) for key, value in resume.get("callback_metrics", {}).items()}
        _, world_size = rank_and_world_size()
        staged = stage_checkpoint(
            checkpoint["global_step"],
            model,
            optimizer,
            epoch=checkpoint["epoch"],
            metrics=metrics,
            environment=current_environment(_device_type(model["state_dict"]), world_size),
            details={DETAILS_KEY: constants} if constants else {},
        )
        saved = write_checkpoint(paths_of_model_file(model_path), staged)
        note_as_intact(saved)
        if steps is not None:
            steps_are_behind(saved, steps)

    def _say_what_is_missing(self) -> None:
        """Once, and when the first file is written: at the resume it is too late."""
        if not self._has_said:
            warn_user(
                "without the callback SeparatedCheckpoint, checkpoints have no random number generators and no "
                "position in the data of stock loaders: a resume from them cannot be exact. Use it in place of "
                "ModelCheckpoint, which it is.",
                InexactResumeWarning,
            )
        self._has_said = True

    def load_checkpoint(
        self, path: _PATH, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint as the dict that Lightning expects; every byte is verified.

        Args:
            path: a file of a separated checkpoint, or a unified one.
            map_location: ignored for separated checkpoints: they come to the CPU, and Lightning moves what it needs.
            weights_only: ``False`` lets pickles run code, as ``trusted`` does.

        Raises:
            CheckpointError: see :func:`load_checkpoint` of the front door.
        """
        trusted = self._trusted or weights_only is False
        paths = paths_of_any_file(Path(path))
        with read_errors(Path(path)):
            if not paths.manifest.exists() and not paths_of_any_file(Path(os.path.realpath(path))).manifest.exists():
                if paths.optimizer.exists():
                    open_complete(paths)  # raises: the save was not finished
                return read_any_archive(Path(path), trusted=trusted)
        checkpoint = open_checkpoint(path)
        content = read_file(checkpoint, MODEL, trusted=trusted)
        if not checkpoint.model_only:
            content.update(read_file(checkpoint, OPTIMIZER, trusted=trusted))
        if RESUME_KEY in content:
            manifest = checkpoint.manifest
            content[RESUME_KEY].update(
                environment=manifest.environment,
                constants=manifest.details.get(DETAILS_KEY, {}),
                saved_as=checkpoint,
            )
        return content

    def remove_checkpoint(self, path: _PATH) -> None:
        """Delete a checkpoint, the manifest first; a unified file is deleted as well. Nothing there is fine."""
        paths = paths_of_model_file(resolve_directory(path))
        if paths.directory.is_dir():
            with writing(paths.directory):
                forget_steps(paths.model)
                remove(paths, LocalStorage())


def _device_type(state: dict[str, Any]) -> str:
    return next((value.device.type for value in state.values() if isinstance(value, torch.Tensor)), "cpu")


def install_plugin(trainer: Trainer) -> None:
    """Make a trainer write separated checkpoints, in whatever wraps its plugin.

    Raises:
        CheckpointError: it has a plugin of another kind.
    """
    innermost, wrapper = _innermost(trainer)
    if innermost is None or type(innermost) is TorchCheckpointIO:
        innermost = SeparatedCheckpointIO()
        if wrapper is not None:
            wrapper.checkpoint_io = innermost
        else:
            trainer.strategy.checkpoint_io = innermost
    if not isinstance(innermost, SeparatedCheckpointIO):
        raise CheckpointError(
            "SeparatedCheckpoint needs SeparatedCheckpointIO, but the trainer has the plugin "
            f"{type(innermost).__name__}. Remove that plugin, or use ModelCheckpoint with it."
        )
    innermost.clean_names = True


def writes_separated(trainer: Trainer) -> bool:
    """Whether what a trainer saves goes through :class:`SeparatedCheckpointIO`."""
    return isinstance(_innermost(trainer)[0], SeparatedCheckpointIO)


def _innermost(trainer: Trainer) -> tuple[CheckpointIO | None, _WrappingCheckpointIO | None]:
    """The plugin that writes, and what wraps it, if anything does."""
    innermost: CheckpointIO | None = trainer.strategy._checkpoint_io
    wrapper: _WrappingCheckpointIO | None = None
    while isinstance(innermost, _WrappingCheckpointIO):  # AsyncCheckpointIO and the like
        wrapper = innermost
        innermost = wrapper.checkpoint_io
    return innermost, wrapper
