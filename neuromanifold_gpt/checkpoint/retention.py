"""Which checkpoints stay: a policy, and what carries it out after a save.

What never goes, whatever the policy says: the newest intact checkpoint, the newest intact one that training can resume
from, the one just saved, those found damaged (somebody may want to look at them), files that are no checkpoint.

What counts is verified before anything goes, so that a damaged checkpoint never passes for a successor: byte for byte
the first time, later by whether its files are still the same ones, unchanged. What this process has just written is not
read again, and neither are checkpoints that go.

A kill leaves each checkpoint whole, whole without its optimizer file, or gone.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Literal

from neuromanifold_gpt.checkpoint.commit import Checkpoint, remove, write_file
from neuromanifold_gpt.checkpoint.discovery import complete_checkpoints
from neuromanifold_gpt.checkpoint.errors import (
    CheckpointError,
    DamagedCheckpointWarning,
    RetentionWarning,
    UnreadableFileError,
)
from neuromanifold_gpt.checkpoint.leftovers import clear_leftovers, write_errors
from neuromanifold_gpt.checkpoint.lock import writing
from neuromanifold_gpt.checkpoint.manifest import MODEL
from neuromanifold_gpt.checkpoint.naming import CheckpointPaths, previous, step_name, temporary
from neuromanifold_gpt.checkpoint.reader import verify
from neuromanifold_gpt.checkpoint.storage import LocalStorage, Storage
from neuromanifold_gpt.checkpoint.user_warnings import warn_user

_REMEDY = (
    "Free space or make the directory writable; the next save tries again. Every checkpoint there is whole, the newest "
    "included."
)


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Which checkpoints stay. A checkpoint stays if any of the rules given keeps it; without a rule, all stay.

    Args:
        keep_last: the newest so many.
        keep_best: the so many with the best ``monitor``, a metric of the manifest (``save_checkpoint(metrics=...)``, or
            what was logged in Lightning). Of equal ones, the earlier.
        monitor: name of the metric for ``keep_best``.
        mode: ``"min"`` or ``"max"``: which values of ``monitor`` are best.
        keep_every_n_steps: those whose step is a multiple.
        keep_optimizer_last: only the newest so many of those that stay keep their optimizer file; the others become
            model-only, two thirds of their bytes given back.

    Raises:
        ValueError: a number is below 1, or ``keep_best`` and ``monitor`` do not come together.

    Example:
        >>> Retention(keep_last=3, keep_best=1, monitor="val_loss", keep_optimizer_last=2).keep_last
        3
    """

    keep_last: int | None = None
    keep_best: int | None = None
    monitor: str | None = None
    mode: Literal["min", "max"] = "min"
    keep_every_n_steps: int | None = None
    keep_optimizer_last: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.startswith("keep_") and value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{field.name}: expected at least 1, or None to switch it off, found {value!r}.")
        if (self.keep_best is None) != (self.monitor is None):
            raise ValueError("keep_best and monitor: expected both or none, found one. Name the metric to compare.")
        if self.mode not in ("min", "max"):
            raise ValueError(f"mode: expected 'min' or 'max', found {self.mode!r}.")

    def score(self, checkpoint: Checkpoint) -> float | None:
        """What ``keep_best`` goes by, less is better; ``None`` where the metric is not there or not a number."""
        value = checkpoint.metrics.get(self.monitor or "", math.nan)
        return None if math.isnan(value) else value if self.mode == "min" else -value


@dataclass(frozen=True)
class RetentionResult:
    """What a policy has changed: the checkpoints as they were."""

    removed: tuple[Checkpoint, ...] = ()
    made_model_only: tuple[Checkpoint, ...] = ()


def apply_retention(directory: str | Path, policy: Retention, *, names: str | None = None) -> RetentionResult:
    """Remove what ``policy`` does not keep. ``save_checkpoint(..., retention=policy)`` does this after each save.

    Args:
        directory: of checkpoints.
        policy: what stays.
        names: a pattern such as ``"run7-*"`` of the names of checkpoints that the policy is about; by default the names
            that ``save_checkpoint`` gives by itself, ``checkpoint-step000050``. No others are counted or touched.

    Returns:
        What was removed, and what was made model-only.

    Raises:
        CheckpointLockedError: another process trains in the directory.
        CheckpointWriteError: a file could not be removed. Each checkpoint is whole or gone.

    Warns:
        DamagedCheckpointWarning: a checkpoint that would have counted is damaged; it stays, and an older one counts.
        RetentionWarning: no checkpoint has the metric; nothing is removed.
    """
    directory = Path(directory)
    if not directory.is_dir():
        return RetentionResult()
    return enforce(directory, policy, names=names)


def enforce(
    directory: Path,
    policy: Retention,
    *,
    names: str | None = None,
    up_to_step: int | None = None,
    kept: Collection[str] = (),
    untouched: Collection[str] = (),
    storage: Storage | None = None,
) -> RetentionResult:
    """:func:`apply_retention` after a save.

    Args:
        directory, policy, names: as there.
        up_to_step: the step just saved. Those of later steps, of a course that the run has left, are not counted or
            touched.
        kept: names of checkpoints that stay beside those of the policy.
        untouched: names of checkpoints that stay as they are.
        storage: where the files are.
    """
    storage = storage or LocalStorage()

    def say(paths: CheckpointPaths, error: CheckpointError) -> None:
        if fnmatchcase(paths.name, names or "checkpoint-step*"):
            _warn_of_damage(paths.name, error)

    with writing(directory), write_errors(directory, "removing old checkpoints", _REMEDY, storage):
        clear_leftovers(directory, storage)
        found = [checkpoint for checkpoint in complete_checkpoints(directory, say) if _is_meant(checkpoint, names)]
        if up_to_step is not None:
            found = [checkpoint for checkpoint in found if checkpoint.step <= up_to_step]
        plan = _plan(policy, found, set(kept), set(untouched), lambda _: True)
        if plan.removed or plan.made_model_only:  # before that, nothing has to be read
            plan = _plan(policy, found, set(kept), set(untouched), _is_intact)
        for checkpoint in plan.made_model_only:
            make_model_only(checkpoint, storage)
        for checkpoint in plan.removed:
            remove(checkpoint.paths, storage)
            _judged.pop(checkpoint.paths.manifest, None)
    return plan


def make_model_only(checkpoint: Checkpoint, storage: Storage) -> None:
    """Remove the optimizer file of a checkpoint, which is complete without it from the moment of the commit."""
    paths, manifest = checkpoint.paths, checkpoint.manifest
    smaller = replace(manifest, files={MODEL: manifest.files[MODEL]}, tensors={MODEL: manifest.tensors[MODEL]})
    # Under this name the old manifest tells the next writer, should we be interrupted, which file is to be removed.
    storage.keep_as(paths.manifest, temporary(paths.manifest))
    storage.sync_directory(paths.directory)
    aside = previous(paths.manifest)
    write_file(aside, smaller.to_bytes(), storage)
    storage.rename(aside, paths.manifest)
    storage.sync_directory(paths.directory)
    storage.remove(paths.optimizer)
    storage.sync_directory(paths.directory)
    storage.remove(temporary(paths.manifest))


def note_as_intact(checkpoint: Checkpoint) -> None:
    """This process has just written every byte of it."""
    with contextlib.suppress(OSError):  # then it is read when it counts
        _judged[checkpoint.paths.manifest] = _identity(checkpoint), True


def _plan(
    policy: Retention,
    found: list[Checkpoint],
    kept: set[str],
    untouched: set[str],
    is_intact: Callable[[Checkpoint], bool],
) -> RetentionResult:
    """What goes of ``found``, which is sorted, oldest first."""
    judged: dict[str, bool] = {}

    def first_intact(checkpoints: Iterable[Checkpoint], count: int | None) -> set[str]:
        """Names of the first ``count`` intact ones. No more are judged than it takes: it may mean reading them."""
        whole = (c.name for c in checkpoints if judged.setdefault(c.name, is_intact(c)))
        return set(islice(whole, count or 0))

    newest_first = found[::-1]
    resumable = [checkpoint for checkpoint in newest_first if not checkpoint.model_only]
    newest = first_intact(newest_first, 1) | first_intact(resumable, 1)
    by_score = sorted((c for c in found if policy.score(c) is not None), key=lambda c: policy.score(c) or 0.0)
    if policy.keep_best and found and not by_score:
        _warn_of_missing_metric(policy, found)
    if not newest or (policy.keep_best and not by_score):
        return RetentionResult()
    stay = {checkpoint.name for checkpoint in found}
    if policy.keep_last or policy.keep_best or policy.keep_every_n_steps:
        stay = kept | newest
        stay |= first_intact(newest_first, policy.keep_last) | first_intact(by_score, policy.keep_best)
        stay |= {c.name for c in found if policy.keep_every_n_steps and c.step % policy.keep_every_n_steps == 0}
    full = first_intact((c for c in resumable if c.name in stay), policy.keep_optimizer_last)
    untouched = untouched | {name for name, intact in judged.items() if not intact}
    thinned = stay - full - untouched if policy.keep_optimizer_last else set()
    return RetentionResult(
        removed=tuple(c for c in found if c.name not in stay | untouched),
        made_model_only=tuple(c for c in found if c.name in thinned and not c.model_only),
    )


def _is_meant(checkpoint: Checkpoint, names: str | None) -> bool:
    return checkpoint.name == step_name(checkpoint.step) if names is None else fnmatchcase(checkpoint.name, names)


# What this process has found out by reading, or by writing: the identity of the files at that time, and the result.
_judged: dict[Path, tuple[object, bool]] = {}


def _is_intact(checkpoint: Checkpoint) -> bool:
    try:
        identity = _identity(checkpoint)
        known, intact = _judged.get(checkpoint.paths.manifest, (None, False))
        if known == identity:
            return intact
        verify(checkpoint)
    except (CheckpointError, OSError) as error:
        if not isinstance(error, UnreadableFileError | OSError):  # these may pass: the next save asks again
            _judged[checkpoint.paths.manifest] = identity, False
        _warn_of_damage(checkpoint.name, error)
        return False
    _judged[checkpoint.paths.manifest] = identity, True
    return True


def _warn_of_damage(name: str, error: Exception) -> None:
    warn_user(f"not counting {name}: {error}", DamagedCheckpointWarning)


def _identity(checkpoint: Checkpoint) -> object:
    """Differs after any write to a file of the checkpoint: nobody can set ``ctime`` back."""
    status = [checkpoint.file(role).stat() for role in checkpoint.manifest.files]
    times = [(s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in status]
    return tuple(checkpoint.manifest.files.items()), times


def _warn_of_missing_metric(policy: Retention, found: list[Checkpoint]) -> None:
    there = sorted({name for checkpoint in found for name in checkpoint.metrics})
    warn_user(
        f"keep_best: no checkpoint in {found[0].directory} has the metric {policy.monitor!r}, so that nothing is "
        f"removed; their metrics are {', '.join(there) or 'none'}.",
        RetentionWarning,
    )
