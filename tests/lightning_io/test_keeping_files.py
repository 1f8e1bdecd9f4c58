"""Which files a Lightning run leaves, what it believes about them, and what a refused write does to it."""

from __future__ import annotations

import os
import resource
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from neuromanifold_gpt import (
    ResumableDataLoader,
    Retention,
    SeparatedCheckpoint,
    list_checkpoints,
    save_checkpoint,
    verify_checkpoint,
)
from neuromanifold_gpt.checkpoint.errors import (
    CheckpointError,
    CheckpointLockedError,
    CheckpointWriteError,
    SaveFailedWarning,
)
from neuromanifold_gpt.checkpoint.lock import LOCK_NAME
from neuromanifold_gpt.checkpoint.writer import stage_checkpoint, write_checkpoint
from neuromanifold_gpt.lightning_io.bookkeeping import believed_paths
from neuromanifold_gpt.state.steps_taken_again import STEPS_NAME

from ..checkpoint.other_process import Process
from ..checkpoint.small_saves import files_of_checkpoints, names_in, temporary_files
from ..faults.storages import Crash, CrashBefore
from .toy import NoisySamples, ToyModule, by_step, contents, fit


def saver(directory: Path, **options: Any) -> SeparatedCheckpoint:
    return SeparatedCheckpoint(directory, **{"every_n_train_steps": 4, **options})


@pytest.fixture(autouse=True)
def files_may_grow_again() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


class AfterEachStep(Callback):
    """Between any two steps, every file that a callback counts on is there, whole."""

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        for callback in trainer.checkpoint_callbacks:
            assert isinstance(callback, ModelCheckpoint)
            believed = believed_paths(callback) | {callback._last_checkpoint_saved}
            complete = {checkpoint.model_path.resolve() for checkpoint in list_checkpoints(str(callback.dirpath))}
            assert {Path(path).resolve() for path in believed if path} <= complete


class DiskIsFull(Callback):
    """Real files that the kernel refuses to let grow, while the given steps are saved."""

    def __init__(self, *steps: int) -> None:
        self._steps, self._limits = steps, resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.global_step in self._steps:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, self._limits[1]))

    def on_train_batch_start(self, *_: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)

    def on_exception(self, *_: Any) -> None:
        self.on_train_batch_start()

    on_fit_end = on_exception


class TestRetention:
    def test_takes_the_place_of_save_top_k(self, tmp_path: Path):
        fit(saver(tmp_path, retention=Retention(keep_last=2, keep_every_n_steps=8)), AfterEachStep())
        assert sorted(by_step(tmp_path)) == [8, 16, 20]
        assert names_in(tmp_path) == files_of_checkpoints(tmp_path)

    def test_keeps_the_best_and_the_monitored_best_which_can_be_loaded(self, tmp_path: Path):
        policy = Retention(keep_best=1, monitor="val_loss", keep_optimizer_last=1)
        callback = saver(tmp_path, every_n_train_steps=None, retention=policy, monitor="train_loss", mode="max")
        trainer, module = fit(callback, AfterEachStep(), val_check_interval=2, max_steps=16)
        metrics = {step: checkpoint.metrics for step, checkpoint in by_step(tmp_path).items()}
        assert len(metrics) < 4
        assert max(metrics) == max(by_step(tmp_path))
        assert (
            Path(callback.best_model_path)
            == by_step(tmp_path)[max(metrics, key=lambda s: metrics[s]["train_loss"])].model_path
        )
        assert {Path(path) for path in callback.best_k_models} == {c.model_path for c in by_step(tmp_path).values()}
        assert [step for step, checkpoint in by_step(tmp_path).items() if not checkpoint.model_only] == [max(metrics)]
        loader = ResumableDataLoader(NoisySamples(8), batch_size=4)
        trainer.validate(module, loader, ckpt_path="best", verbose=False)

    def test_two_callbacks_with_one_directory_leave_each_others_files_alone(self, tmp_path: Path):
        best = saver(
            tmp_path,
            filename="best-{step}",
            monitor="val_loss",
            every_n_train_steps=None,
            every_n_epochs=1,
            save_last="link",
        )
        everything = saver(tmp_path, filename="{step}", retention=Retention(keep_last=1, keep_optimizer_last=1))
        fit(everything, best, AfterEachStep(), val_check_interval=3)
        assert {path.name for path in tmp_path.glob("step=*.json")} == {"step=20.json"}
        assert Path(best.best_model_path).name.startswith("best-")
        assert (tmp_path / "last-model.pt").resolve().exists()

    def test_a_pattern_that_meets_what_another_callback_counts_on_spares_it(self, tmp_path: Path):
        best = saver(tmp_path, filename="{epoch}-{step}", monitor="val_loss", every_n_train_steps=None, save_top_k=2)
        everything = saver(tmp_path, filename="{epoch}-{step}-all", retention=Retention(keep_last=1))
        everything.filename = "{epoch}-{step}"
        fit(everything, best, AfterEachStep(), val_check_interval=3)
        assert all(Path(path).exists() for path in believed_paths(best) if path)

    @pytest.mark.filterwarnings("ignore:keep_best")  # before the first validation, there is no best
    def test_an_interrupted_run_ends_in_the_same_bytes(self, tmp_path: Path):
        """The interruption leaves a checkpoint of its own, which shifts what the policy keeps on the way."""
        options = {"val_check_interval": 3, "max_steps": 20}

        def callback(run: str, **more: Any) -> SeparatedCheckpoint:
            policy = Retention(keep_last=2, keep_best=2, monitor="val_loss", keep_optimizer_last=2)
            return saver(tmp_path / run, retention=policy, monitor="train_loss", every_n_train_steps=2, **more)

        fit(callback("a"), **options)
        first = callback("b")
        trainer, _ = fit(first, **{**options, "max_steps": 11})
        first.save_now(trainer)
        assert 11 in by_step(tmp_path / "b")
        fit(callback("b"), ckpt_path=by_step(tmp_path / "b")[11].model_path, **options)
        for step in (18, 20):
            assert contents(by_step(tmp_path / "b")[step]) == contents(by_step(tmp_path / "a")[step])

    @pytest.mark.parametrize("last", ["last", "last-model.pt"])
    def test_a_checkpoint_whose_replacement_was_killed_is_resumed_from(self, last: str, tmp_path: Path):
        """Lightning is told its path, which is another one before the run that continues clears up than after."""
        fit(saver(tmp_path / "a"), max_steps=8)
        fit(saver(tmp_path / "b", filename="last", enable_version_counter=False), max_steps=4)
        [last_of_b] = list_checkpoints(tmp_path / "b")
        storage = CrashBefore("rename", "last.json.nm-incomplete")
        with pytest.raises(Crash):
            write_checkpoint(last_of_b.paths, stage_checkpoint(5, {"state_dict": {}}, None), storage)
        assert temporary_files(tmp_path / "b")
        ckpt_path = last if last == "last" else tmp_path / "b" / last
        fit(saver(tmp_path / "b"), ckpt_path=ckpt_path, max_steps=8)
        assert contents(by_step(tmp_path / "b")[8]) == contents(by_step(tmp_path / "a")[8])
        assert names_in(tmp_path / "b") == files_of_checkpoints(tmp_path / "b")

    def test_a_directory_may_hold_checkpoints_of_other_names(self, tmp_path: Path):
        model = ToyModule()
        for name in ("mine", "checkpoint-step000001-copy"):
            save_checkpoint(tmp_path, step=1, model=model, name=name)
        fit(saver(tmp_path, retention=Retention(keep_last=1)))
        names = {checkpoint.name for checkpoint in list_checkpoints(tmp_path)}
        assert names == {"mine", "checkpoint-step000001-copy", "checkpoint-step000020"}

    def test_cannot_go_with_save_top_k_or_directories_in_the_file_name(self, tmp_path: Path):
        with pytest.raises(ValueError, match="save_top_k: expected none beside retention"):
            saver(tmp_path, retention=Retention(keep_last=1), save_top_k=3)
        with pytest.raises(ValueError, match="filename: expected no directory"):
            saver(tmp_path, retention=Retention(keep_last=1), filename="{epoch}/{step}")
        assert saver(tmp_path).save_top_k == 1
        assert saver(tmp_path, retention=Retention(keep_last=1), save_top_k=-1).save_top_k == -1


SAVERS: dict[str, dict[str, Any]] = {
    "the newest only": {},
    "all": {"save_top_k": -1},
    "the best two and the last": {"monitor": "train_loss", "save_top_k": 2, "save_last": True},
    "all, and a link": {"monitor": "train_loss", "save_top_k": -1, "save_last": "link"},
    "a policy": {"retention": Retention(keep_last=2, keep_optimizer_last=1)},
    "at the end of epochs": {"every_n_train_steps": None, "every_n_epochs": 1, "save_last": True},
    "after validation": {"monitor": "val_loss", "every_n_train_steps": None, "save_top_k": -1},
}


class TestRefusedWrites:
    @pytest.mark.parametrize("name", SAVERS)
    def test_training_goes_on_with_a_warning_and_the_next_save_is_tried(self, name: str, tmp_path: Path):
        options, trainer_options = SAVERS[name], {"val_check_interval": 4, "limit_train_batches": 4}
        _, whole = fit(saver(tmp_path / "a", **options), **trainer_options)
        callback = saver(tmp_path / "b", on_save_error="warn", **options)
        with pytest.warns(SaveFailedWarning, match=r"-optimizer\.pt\.nm-incomplete: .* File too large.*goes on"):
            _, module = fit(callback, DiskIsFull(8, 12), AfterEachStep(), **trainer_options)
        assert module.history == whole.history
        assert temporary_files(tmp_path / "b") == []
        assert max(by_step(tmp_path / "b")) == max(by_step(tmp_path / "a"))
        assert not {8, 12} & set(by_step(tmp_path / "b"))
        if name in ("the newest only", "a policy"):  # what is kept does not depend on what was there in between
            assert contents(by_step(tmp_path / "b")[20]) == contents(by_step(tmp_path / "a")[20])

    def test_training_ends_with_an_error_by_default_and_older_checkpoints_stay(self, tmp_path: Path):
        callback = saver(tmp_path, save_on_exception=True)
        with (
            pytest.warns(SaveFailedWarning, match="exception that ends the training follows"),
            pytest.raises(CheckpointWriteError, match=r"000008-optimizer\.pt.*Free space.*older checkpoints"),
        ):
            fit(callback, AfterEachStep(), DiskIsFull(8))
        assert sorted(by_step(tmp_path)) == [4]
        assert Path(callback.best_model_path) == by_step(tmp_path)[4].model_path
        assert names_in(tmp_path) == {*files_of_checkpoints(tmp_path), STEPS_NAME}  # of those that are lost

    def test_a_policy_that_cannot_be_carried_out_takes_no_save_back(self, tmp_path: Path, monkeypatch):
        def refuse(*_: Any) -> None:
            raise OSError(13, "Permission denied", "some file")

        monkeypatch.setattr("neuromanifold_gpt.checkpoint.retention.remove", refuse)
        with pytest.warns(SaveFailedWarning, match="removing old checkpoints failed"):
            fit(saver(tmp_path, retention=Retention(keep_last=1), on_save_error="warn"), AfterEachStep())
        assert sorted(by_step(tmp_path)) == [4, 8, 12, 16, 20]

    @pytest.mark.parametrize("on_save_error", ["raise", "warn"])
    def test_an_old_file_that_cannot_be_removed_takes_no_save_back(
        self, on_save_error: Any, tmp_path: Path, monkeypatch
    ):
        def refuse(*_: Any) -> None:
            raise OSError(13, "Permission denied", "some file")

        monkeypatch.setattr("neuromanifold_gpt.lightning_io.plugin.remove", refuse)
        callback = saver(tmp_path, on_save_error=on_save_error, monitor="train_loss", save_top_k=1, save_last=True)
        said = pytest.raises(CheckpointWriteError, match="some file: Permission denied")
        if on_save_error == "warn":
            said = pytest.warns(SaveFailedWarning, match="some file: Permission denied")
        with said:
            fit(callback, AfterEachStep())
        last = 20 if on_save_error == "warn" else max(by_step(tmp_path))
        assert list_checkpoints(tmp_path)[-1].step == last
        assert Path(callback.last_model_path).exists()
        assert [path for path in callback.best_k_models if not Path(path).exists()] == []

    def test_nonsense_is_refused(self, tmp_path: Path):
        with pytest.raises(ValueError, match="on_save_error: expected 'raise' or 'warn', found 'ignore'"):
            saver(tmp_path, on_save_error="ignore")


class FailIn(Callback):
    """Raises in a hook of a step."""

    def __init__(self, hook: str, step: int) -> None:
        self._step = step
        setattr(self, hook, self._fail)

    def _fail(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step == self._step:
            raise RuntimeError("on purpose")


class TestExceptions:
    @pytest.mark.parametrize("hook", ["on_before_optimizer_step", "on_train_batch_start", "on_train_batch_end"])
    def test_never_over_a_good_checkpoint_of_the_same_step(self, hook: str, tmp_path: Path):
        fit(saver(tmp_path, save_top_k=-1))
        good = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(RuntimeError, match="on purpose"):
            fit(saver(tmp_path, every_n_train_steps=100, save_on_exception=True, save_last=True), FailIn(hook, 8))
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == good

    @pytest.mark.filterwarnings("ignore:step 8 is saved before it is finished")
    def test_once_and_over_one_that_is_not_complete(self, tmp_path: Path):
        fit(saver(tmp_path, save_top_k=-1))
        by_step(tmp_path)[8].model_path.unlink()
        first, second = (saver(tmp_path, every_n_train_steps=100 + i, save_on_exception=True) for i in range(2))
        with pytest.raises(RuntimeError, match="on purpose"):
            fit(first, second, FailIn("on_before_optimizer_step", 8))
        assert 8 in by_step(tmp_path)
        assert names_in(tmp_path) == files_of_checkpoints(tmp_path)

    def test_a_decision_that_was_not_carried_out_is_taken_back(self, tmp_path: Path):
        callback = saver(tmp_path, monitor="train_loss", save_top_k=3)
        with pytest.raises(RuntimeError, match="on purpose"):
            fit(callback, FailIn("on_validation_start", 8), limit_train_batches=4)
        assert [Path(path) for path in callback.best_k_models] == [by_step(tmp_path)[4].model_path]


class TestLock:
    def test_while_a_run_trains_no_other_process_writes(self, tmp_path: Path):
        with Process(tmp_path / "run") as other:
            answers = []

            class Ask(Callback):
                def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
                    if trainer.global_step in (0, 10):
                        answers.append(other.asked("save 1000"))

            fit(saver(tmp_path / "run"), Ask())
            assert all(f"CheckpointLockedError: {tmp_path}" in answer for answer in answers)
            assert all(f"process {os.getpid()} on" in answer for answer in answers)
            assert len(answers) == 2
            assert sorted(by_step(tmp_path / "run")) == [20]
            assert names_in(tmp_path / "run") == files_of_checkpoints(tmp_path / "run")
            assert other.asked("save 1000") == "done"

    def test_a_run_is_refused_before_it_changes_anything(self, tmp_path: Path):
        with Process(tmp_path / "run") as other:
            assert other.asked("save 1") == "done"
            assert other.asked("lock") == "done"
            before = names_in(tmp_path / "run")
            with pytest.raises(CheckpointLockedError, match=f"process {other.pid} on"):
                fit(saver(tmp_path / "run"))
            assert names_in(tmp_path / "run") == before
            other.kill()
            fit(saver(tmp_path / "run"))

    def test_one_process_may_have_two_callbacks_and_fit_twice_and_fail(self, tmp_path: Path):
        callbacks = saver(tmp_path), saver(tmp_path, filename="other-{step}", every_n_train_steps=5)
        trainer, module = fit(*callbacks, max_steps=10)
        assert not (tmp_path / LOCK_NAME).exists()
        trainer.fit_loop.epoch_loop.max_steps = 20
        trainer.fit(module, trainer.fit_loop._combined_loader.flattened[0])
        with pytest.raises(RuntimeError, match="on purpose"):
            fit(*callbacks, FailIn("on_train_batch_start", 3))
        assert names_in(tmp_path) == files_of_checkpoints(tmp_path)
        with Process(tmp_path) as other:
            assert other.asked("lock") == "done"

    def test_a_run_that_is_refused_later_leaves_no_empty_directory(self, tmp_path: Path):
        class Refuses(ToyModule):
            def on_fit_start(self) -> None:
                raise RuntimeError("on purpose")

        with pytest.raises(RuntimeError, match="on purpose"):
            fit(saver(tmp_path / "run"), module=Refuses())
        assert not (tmp_path / "run").exists()


def test_warnings_are_not_needed_for_a_run_in_which_nothing_fails(tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", category=UserWarning)
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=r".*(num_workers|logging interval|`isinstance).*")
        fit(saver(tmp_path, retention=Retention(keep_last=2), on_save_error="warn"))


class Slashes(ToyModule):
    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", torch.rand(()))


@pytest.mark.parametrize("filename", ["{epoch}-{val/loss:.3f}", "{epoch}/{step}", "all/{epoch}/{step}"])
def test_the_newest_is_found_in_directories_that_the_name_of_the_file_makes(filename: str, tmp_path: Path):
    options: dict[str, Any] = {"filename": filename, "monitor": "val/loss", "save_top_k": -1, "every_n_epochs": 1}
    whole = fit(SeparatedCheckpoint(tmp_path / "a", **options), module=Slashes(), max_epochs=4, max_steps=-1)[1]
    for epochs in (2, 4):
        saver = SeparatedCheckpoint(tmp_path / "b", **options)
        path = "last" if epochs == 4 else None
        history = fit(saver, module=Slashes(), max_epochs=epochs, max_steps=-1, ckpt_path=path)[1].history
    assert history == whole.history[14:]
    files = [
        {path.relative_to(tmp_path / run): path.read_bytes() for path in (tmp_path / run).rglob("*.pt")} for run in "ab"
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize("filename", ["best/{step}", "{epoch}-{val/loss:.3f}"])
def test_another_run_in_a_directory_beside_these_is_left_alone(filename: str, tmp_path: Path):
    options: dict[str, Any] = {"filename": filename, "monitor": "val/loss", "save_top_k": -1, "every_n_epochs": 1}
    fit(SeparatedCheckpoint(tmp_path, **options), module=Slashes(), max_epochs=1, max_steps=-1)
    fit(SeparatedCheckpoint(tmp_path / "other", every_n_train_steps=10), max_steps=10)
    saver = SeparatedCheckpoint(tmp_path, **options)
    history = fit(saver, module=Slashes(), max_epochs=2, max_steps=-1, ckpt_path="last")[1].history
    assert history[0][0] == 7


@pytest.mark.parametrize("stale", ["older", "missing"])
@pytest.mark.parametrize("last", [True, "link"])
def test_a_kill_before_last_follows_the_final_step_leaves_it_to_the_next_run(last: Any, stale: str, tmp_path: Path):
    """Nothing is left to train then: Lightning does not call a hook of training."""
    directory = tmp_path / "run"

    def run(max_steps: int, ckpt_path: str | None = None) -> None:
        fit(
            SeparatedCheckpoint(directory, every_n_train_steps=3, save_top_k=-1, save_last=last),
            ckpt_path=ckpt_path,
            max_steps=max_steps,
        )

    def files(where: Path) -> dict[str, Any]:
        return {
            path.name: path.read_bytes() for path in where.iterdir() if path.suffix == ".pt" and not path.is_symlink()
        }

    run(6)
    shutil.copytree(directory, tmp_path / "then", symlinks=True)
    run(9, "last")
    shutil.copytree(directory, tmp_path / "undisturbed", symlinks=True)
    for path in directory.glob("last*"):
        path.unlink()
    if stale == "older":
        for path in (tmp_path / "then").glob("last*"):
            shutil.move(path, directory)
    run(9, "last")
    assert files(directory) == files(tmp_path / "undisturbed")
    assert verify_checkpoint(directory / "last-model.pt").checkpoint.step == 9


def test_a_run_in_another_directory_with_nothing_left_to_train_saves_nothing(tmp_path: Path):
    fit(SeparatedCheckpoint(tmp_path / "a", every_n_train_steps=3, save_last=True), max_steps=6)
    fit(
        SeparatedCheckpoint(tmp_path / "b", every_n_train_steps=3, save_last=True),
        ckpt_path=tmp_path / "a" / "last-model.pt",
        max_steps=6,
    )
    assert list_checkpoints(tmp_path / "b") == []


def test_a_trainer_of_another_package_is_refused(tmp_path: Path) -> None:
    """Such as ``pytorch_lightning``, which has the same code and other classes."""
    trainer: Any = SimpleNamespace()
    with pytest.raises(CheckpointError, match=r"expected a Trainer of lightning\.pytorch, found one of types\."):
        SeparatedCheckpoint(tmp_path).setup(trainer, LightningModule(), "fit")
