"""What processes do to a directory of checkpoints. Each sweep of this folder interrupts each of these.

A new kind of save or removal is one more entry of :data:`SCENARIOS`: the sweeps and their invariant follow.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from neuromanifold_gpt import Retention, latest_checkpoint
from neuromanifold_gpt.checkpoint import commit, retention, writer
from neuromanifold_gpt.checkpoint.naming import paths_of_name, step_name
from neuromanifold_gpt.checkpoint.storage import LocalStorage, Storage

from .storages import Crash, CrashBefore
from .tiny_training import TinyTraining

STEP = 3  # of the save that is interrupted; those before it are there already

Kind = tuple[int, bool]  # step, and whether it is model-only
Act = Callable[[TinyTraining, Path], object]


@dataclass(frozen=True)
class Scenario:
    """A process resumes in a directory, trains until :data:`STEP`, and acts.

    Attributes:
        act: what it does then.
        adds: checkpoints that it makes, by name.
        removes: names of checkpoints that are meant to be gone when it is done.
        thins: names of checkpoints that are meant to be model-only when it is done.
        prepare: makes the directory before. It has checkpoints of step 1, and of step 2 under the name ``last``.
    """

    act: Act
    adds: dict[str, Kind] = field(default_factory=dict)
    removes: frozenset[str] = frozenset()
    thins: frozenset[str] = frozenset()
    prepare: Callable[[Path], None] = lambda directory: None

    @property
    def may_be_thinned(self) -> frozenset[str]:
        """Where one that counts cannot be read, a policy keeps the model file of one that it would have removed."""
        return self.thins | self.removes if self.thins else frozenset()

    def prepared(self, directory: Path) -> Path:
        """The directory as the process finds it."""
        training = TinyTraining().train_until(1)
        training.save(directory)
        training.train_until(2).save(directory, "last")
        self.prepare(directory)
        return directory

    def started(self, directory: Path) -> Callable[[], object]:
        """A process that has resumed and trained; what remains is to call the result."""
        newest = latest_checkpoint(directory, resumable=True)
        assert newest is not None
        training = TinyTraining().resume(newest).train_until(STEP)
        return lambda: self.act(training, directory)


@contextlib.contextmanager
def storage_is(storage: Storage) -> Iterator[None]:
    """Saves in this process go through ``storage``."""
    with (
        mock.patch.object(writer, "LocalStorage", return_value=storage),
        mock.patch.object(retention, "LocalStorage", return_value=storage),
        mock.patch(f"{__name__}.LocalStorage", return_value=storage),
    ):
        yield


def crashed(operation: str, name: str, *, saving_as: str | None) -> Callable[[Path], None]:
    """Leaves what a save of step 3 leaves that died before ``operation``."""

    def prepare(directory: Path) -> None:
        training = TinyTraining().train_until(3)
        with contextlib.suppress(Crash), storage_is(CrashBefore(operation, name)):
            training.save(directory, saving_as)
            raise AssertionError(f"a save does no {operation} of {name}")

    return prepare


def _weights_being_replaced(directory: Path) -> None:
    """A model-only checkpoint has been moved aside, one file only."""
    training = TinyTraining().train_until(2)
    training.save(directory, "weights", model_only=True)
    with contextlib.suppress(Crash), storage_is(CrashBefore("rename", "weights.json.nm-incomplete")):
        training.train_until(3).save(directory, "weights", model_only=True)
        raise AssertionError("not interrupted")


def _save(name: str | None = None, *, model_only: bool = False) -> Act:
    return lambda training, directory: training.save(directory, name, model_only=model_only)


def _save_under_policy(training: TinyTraining, directory: Path) -> None:
    training.save(directory, retention=Retention(keep_last=2, keep_optimizer_last=1))


def _one_more(directory: Path) -> None:
    TinyTraining().train_until(2).save(directory)


def _save_model_only_and_again_whole(training: TinyTraining, directory: Path) -> None:
    training.save(directory, "both", model_only=True)
    training.save(directory, "both")


def _remove(name: str) -> Act:
    return lambda training, directory: commit.remove(paths_of_name(directory, name), LocalStorage())


NEW = step_name(STEP)
SCENARIOS = {
    "under a new name": Scenario(_save(), {NEW: (3, False)}),
    "over an existing name": Scenario(_save("last"), {"last": (3, False)}),
    "model-only": Scenario(_save(model_only=True), {NEW: (3, True)}),
    "model-only over an existing name": Scenario(_save("last", model_only=True), {"last": (3, True)}),
    "model-only, then whole under the same name": Scenario(
        _save_model_only_and_again_whole, {"both": (3, True), "both ": (3, False)}
    ),
    "beside what a torn write left": Scenario(
        _save(),
        {NEW: (3, False)},
        prepare=crashed("sync_file", f"{NEW}-optimizer.pt.nm-incomplete", saving_as=None),
    ),
    "beside what a save left that was not committed": Scenario(
        _save(), {NEW: (3, False)}, prepare=crashed("rename", f"{NEW}.json.nm-incomplete", saving_as=None)
    ),
    "beside what a replacement left that was not committed": Scenario(
        _save(), {NEW: (3, False)}, prepare=crashed("rename", "last.json.nm-incomplete", saving_as="last")
    ),
    "over what a replacement left that was not committed": Scenario(
        _save("last"), {"last": (3, False)}, prepare=crashed("rename", "last-model.pt.nm-incomplete", saving_as="last")
    ),
    "over what a replacement left that was committed": Scenario(
        _save("last"), {"last": (3, False)}, prepare=crashed("remove", "last-model.pt.nm-previous", saving_as="last")
    ),
    "beside what a model-only replacement left that was not committed": Scenario(
        _save(), {NEW: (3, False)}, prepare=_weights_being_replaced
    ),
    "with a policy that removes one and thins another": Scenario(
        _save_under_policy,
        {NEW: (3, False)},
        removes=frozenset({step_name(1)}),
        thins=frozenset({step_name(2)}),
        prepare=_one_more,
    ),
    "a removal": Scenario(_remove(step_name(1)), removes=frozenset({step_name(1)})),
}


def copied(prepared: Path, directory: Path) -> Path:
    """A fresh copy, in the place of the one before."""
    shutil.rmtree(directory, ignore_errors=True)
    return Path(shutil.copytree(prepared, directory))
