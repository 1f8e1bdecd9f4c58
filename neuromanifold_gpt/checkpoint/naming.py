"""Which file names belong to one checkpoint.

A checkpoint that this package names::

    checkpoint-step000050-model.pt        model file
    checkpoint-step000050-optimizer.pt    optimizer file
    checkpoint-step000050.json            manifest

A checkpoint whose path somebody else chose (Lightning's ``epoch=0-step=50.ckpt``) keeps its model part at that very
path; the other two names are made from the whole file name, so that ``a.ckpt`` and ``a.pt`` cannot meet::

    epoch=0-step=50.ckpt
    epoch=0-step=50.ckpt-optimizer.pt
    epoch=0-step=50.ckpt.json
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MODEL_SUFFIX = "-model.pt"
OPTIMIZER_SUFFIX = "-optimizer.pt"
MANIFEST_SUFFIX = ".json"
# Written, not yet committed. Anything with this suffix beside a checkpoint is a leftover of an interrupted save.
TEMPORARY_SUFFIX = ".nm-incomplete"
# The files of a checkpoint that is being replaced, until the new one is complete.
PREVIOUS_SUFFIX = ".nm-previous"


@dataclass(frozen=True)
class CheckpointPaths:
    """The three paths of one checkpoint; none of them has to exist."""

    model: Path
    optimizer: Path
    manifest: Path

    @property
    def directory(self) -> Path:
        """The directory that holds all three."""
        return self.model.parent

    @property
    def name(self) -> str:
        """What the three file names have in common."""
        return self.manifest.name.removesuffix(MANIFEST_SUFFIX)


def step_name(step: int) -> str:
    """Name of the checkpoint at a global step: ``checkpoint-step000050``."""
    return f"checkpoint-step{step:06d}"


def paths_of_name(directory: Path, name: str) -> CheckpointPaths:
    """Paths of the checkpoint called ``name``, as it is named in :func:`step_name` and by :attr:`CheckpointPaths.name`.

    A name that ends in a file extension of its own (``last.ckpt``) is the model file's whole name.

    Raises:
        ValueError: it is a path rather than a name, so its files would not lie in ``directory``.
    """
    if name != Path(name).name:
        raise ValueError(f"{name!r} cannot name a checkpoint: give its directory separately.")
    model_name = name if Path(name).suffix in {".ckpt", ".pt", ".pth"} else name + MODEL_SUFFIX
    return CheckpointPaths(
        model=directory / model_name,
        optimizer=directory / (name + OPTIMIZER_SUFFIX),
        manifest=directory / (name + MANIFEST_SUFFIX),
    )


def paths_of_model_file(model_path: Path) -> CheckpointPaths:
    """Paths of the checkpoint whose model file is ``model_path``."""
    name = model_path.name.removesuffix(MODEL_SUFFIX)
    return CheckpointPaths(
        model=model_path,
        optimizer=model_path.with_name(name + OPTIMIZER_SUFFIX),
        manifest=model_path.with_name(name + MANIFEST_SUFFIX),
    )


def paths_of_any_file(path: Path) -> CheckpointPaths:
    """Paths of the checkpoint that ``path`` (its model file, optimizer file or manifest) belongs to.

    Files that are being replaced belong to it too: whoever found them may read them when they have their names again.
    """
    path = path.with_name(path.name.removesuffix(PREVIOUS_SUFFIX))
    if path.name.endswith(OPTIMIZER_SUFFIX):
        return paths_of_name(path.parent, path.name.removesuffix(OPTIMIZER_SUFFIX))
    if path.name.endswith(MANIFEST_SUFFIX):
        return paths_of_name(path.parent, path.name.removesuffix(MANIFEST_SUFFIX))
    return paths_of_model_file(path)


def temporary(path: Path) -> Path:
    """Where ``path`` is written before it is renamed."""
    return path.with_name(path.name + TEMPORARY_SUFFIX)


def previous(path: Path) -> Path:
    """Where the old ``path`` stays while it is being replaced."""
    return path.with_name(path.name + PREVIOUS_SUFFIX)
