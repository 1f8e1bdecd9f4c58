"""SeparatedCheckpoint and SeparatedCheckpointIO with a real Trainer: what a Lightning user relies on."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import AsyncCheckpointIO, TorchCheckpointIO
from lightning.pytorch.plugins.precision import Precision

from neuromanifold_gpt import (
    CheckpointError,
    ResumableDataLoader,
    SeparatedCheckpoint,
    SeparatedCheckpointIO,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    verify_checkpoint,
)
from neuromanifold_gpt.checkpoint.errors import (
    DamagedCheckpointError,
    MissingOptimizerError,
    StateMismatchError,
    UnsupportedObjectError,
)

from .lightning_io.toy import NoisySamples, ToyModule, by_step, fit


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_one_line_writes_a_model_file_an_optimizer_file_and_a_manifest(tmp_path: Path):
    fit(SeparatedCheckpoint(tmp_path, every_n_train_steps=10, save_top_k=-1))
    assert names(tmp_path) == [
        f"checkpoint-step{step:06d}{suffix}" for step in (10, 20) for suffix in ("-model.pt", "-optimizer.pt", ".json")
    ]
    for checkpoint in list_checkpoints(tmp_path):
        verify_checkpoint(checkpoint)
        assert set(checkpoint.metrics) >= {"train_loss", "val_loss"}
        assert load_checkpoint(checkpoint).global_step == checkpoint.step


def test_each_part_of_lightnings_dict_goes_where_it_belongs(tmp_path: Path):
    class OwnPrecision(Precision):
        def state_dict(self) -> dict[str, Any]:
            return {"scale": 2.0}

    class Data(LightningDataModule):
        def train_dataloader(self) -> Any:
            return ResumableDataLoader(NoisySamples(), batch_size=4)

        def state_dict(self) -> dict[str, Any]:
            return {"shard": 3}

    class OwnKeys(ToyModule):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["vocabulary"] = ["a", "b"]

    trainer = Trainer(
        accelerator="cpu",
        max_steps=2,
        logger=False,
        callbacks=[SeparatedCheckpoint(tmp_path, every_n_train_steps=2)],
        plugins=[OwnPrecision()],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(OwnKeys(), datamodule=Data())
    checkpoint = list_checkpoints(tmp_path)[0]
    model = torch.load(checkpoint.model_path, weights_only=True)
    optimizer = torch.load(checkpoint.paths.optimizer, weights_only=True)
    shared = {"separated_checkpoint"}
    assert set(model) - shared == {
        *("epoch", "global_step", "pytorch-lightning_version", "state_dict"),
        *("hparams_name", "hyper_parameters", Data.__qualname__, "vocabulary"),
    }
    assert set(optimizer) - shared == {
        *("optimizer_states", "lr_schedulers", "loops", "callbacks", "exact_resume"),
        OwnPrecision.__qualname__,
    }


def test_a_stock_environment_reads_the_model_file(tmp_path: Path):
    """A process that cannot import this package loads weights and hyper-parameters, and validates from the path."""
    fit(SeparatedCheckpoint(tmp_path / "out", every_n_train_steps=10), module=ToyModule(width=12))
    script = textwrap.dedent(
        """
        import sys
        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "neuromanifold_gpt":
                    raise ImportError("not installed here")
        sys.meta_path.insert(0, Absent())
        import torch
        from lightning.pytorch import LightningModule, Trainer

        class Stock(LightningModule):
            def __init__(self, width=16, schedule="step"):
                super().__init__()
                self.save_hyperparameters()
                nn = torch.nn
                self.net = nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2),
                                         nn.Linear(width, 1))
            def validation_step(self, batch, batch_idx):
                self.log("val_loss", self.net(batch).square().mean())

        path = sys.argv[1]
        for mmap in (False, True):
            content = torch.load(path, weights_only=True, mmap=mmap)
            assert content["global_step"] == 20, content["global_step"]
        module = Stock.load_from_checkpoint(path)
        assert module.hparams.width == 12
        for name, value in module.state_dict().items():
            assert torch.equal(value, content["state_dict"][name]), name
        trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
        fresh = Stock(width=12)
        trainer.validate(fresh, torch.utils.data.DataLoader(torch.randn(8, 8), batch_size=4), ckpt_path=path)
        assert torch.equal(fresh.net[0].weight, module.net[0].weight)
        print("read without the package")
        """
    )
    newest = latest_checkpoint(tmp_path / "out")
    assert newest is not None
    result = subprocess.run(
        [sys.executable, "-c", script, str(newest.model_path)], capture_output=True, text=True, cwd=tmp_path
    )
    assert "read without the package" in result.stdout, result.stderr


def test_monitor_and_save_top_k_keep_the_best(tmp_path: Path):
    saver = SeparatedCheckpoint(tmp_path, monitor="val_loss", save_top_k=2)
    fit(saver, max_steps=35, val_check_interval=3)
    scores = {checkpoint.step: checkpoint.metrics["val_loss"] for checkpoint in list_checkpoints(tmp_path)}
    assert len(scores) == 2
    assert Path(saver.best_model_path) == by_step(tmp_path)[min(scores, key=scores.__getitem__)].model_path
    assert saver.best_model_score is not None
    assert saver.best_model_score.item() == pytest.approx(min(scores.values()), abs=0)


def test_only_the_newest_is_kept_by_default_and_its_predecessor_goes_after_it_is_complete(tmp_path: Path):
    fit(SeparatedCheckpoint(tmp_path, every_n_train_steps=5))
    assert names(tmp_path) == [f"checkpoint-step000020{suffix}" for suffix in ("-model.pt", "-optimizer.pt", ".json")]


@pytest.mark.parametrize("save_last", [True, "link"])
def test_save_last(save_last: Any, tmp_path: Path):
    fit(SeparatedCheckpoint(tmp_path, every_n_train_steps=5, save_last=save_last), max_steps=10)
    last = tmp_path / "last-model.pt"
    assert last.is_symlink() == (save_last == "link")
    assert load_checkpoint(last).global_step == 10
    trainer, _ = fit(SeparatedCheckpoint(tmp_path, every_n_train_steps=5, save_last=save_last), ckpt_path=last)
    assert trainer.global_step == 20


def test_a_resume_does_not_save_last_where_an_undisturbed_run_would_not(tmp_path: Path):
    def saver(run: str) -> SeparatedCheckpoint:
        return SeparatedCheckpoint(tmp_path / run, every_n_train_steps=6, save_last=True, save_top_k=-1)

    fit(saver("a"), max_steps=20)
    fit(saver("b"), max_steps=18)
    fit(saver("b"), max_steps=20, ckpt_path=by_step(tmp_path / "b")[18].model_path)
    assert [load_checkpoint(tmp_path / run / "last-model.pt").global_step for run in "ab"] == [18, 18]


def test_layers_frozen_otherwise_than_at_the_save_are_said(tmp_path: Path):
    fit(SeparatedCheckpoint(tmp_path, every_n_train_steps=10), max_steps=10)
    module = ToyModule()
    module.net[0].requires_grad_(False)
    with pytest.warns(UserWarning, match="this run had set otherwise: net.0.weight; net.0.bias"):
        fit(SeparatedCheckpoint(tmp_path / "b"), module=module, ckpt_path=list_checkpoints(tmp_path)[0].model_path)


def test_every_n_epochs(tmp_path: Path):
    fit(SeparatedCheckpoint(tmp_path, every_n_epochs=2, save_top_k=-1), max_steps=-1, max_epochs=5)
    assert [(c.step, c.epoch) for c in list_checkpoints(tmp_path)] == [(14, 1), (28, 3)]


def test_train_time_interval(tmp_path: Path):
    fit(SeparatedCheckpoint(tmp_path, train_time_interval=timedelta(0), save_top_k=-1), max_steps=3)
    assert [c.step for c in list_checkpoints(tmp_path)] == [1, 2, 3]


def test_ckpt_path_last_takes_the_newest_intact_checkpoint(tmp_path: Path):
    def saver() -> SeparatedCheckpoint:
        return SeparatedCheckpoint(tmp_path, every_n_train_steps=5, save_top_k=-1)

    fit(saver(), ckpt_path="last", max_steps=5)  # nothing there yet: starts anew
    fit(saver(), ckpt_path="last", max_steps=10)
    newest = by_step(tmp_path)[10].model_path
    content = bytearray(newest.read_bytes())
    content[1000] ^= 1
    newest.write_bytes(content)
    with pytest.warns(UserWarning, match="passing over checkpoint-step000010"):
        _, module = fit(saver(), ckpt_path="last", max_steps=7)
    assert module.history[0][0] == 5


def test_ckpt_path_last_passes_over_model_only_checkpoints(tmp_path: Path):
    fit(SeparatedCheckpoint(tmp_path, every_n_train_steps=5, save_top_k=-1), max_steps=5)
    weights = SeparatedCheckpoint(tmp_path, "weights-{step}", every_n_train_steps=2, save_weights_only=True)
    fit(weights, max_steps=8, ckpt_path=by_step(tmp_path)[5].model_path)
    assert list_checkpoints(tmp_path)[-1].model_only
    _, module = fit(SeparatedCheckpoint(tmp_path), ckpt_path="last")
    assert module.history[0][0] == 5


def test_fast_dev_run_writes_nothing(tmp_path: Path):
    fit(SeparatedCheckpoint(tmp_path, every_n_train_steps=1, save_last=True), fast_dev_run=True)
    assert names(tmp_path) == []


def test_the_current_score_survives(tmp_path: Path):
    def saver(run: str) -> SeparatedCheckpoint:
        return SeparatedCheckpoint(tmp_path / run, monitor="val_loss", save_top_k=-1)

    fit(saver("a"), val_check_interval=3, max_steps=6)
    resumed = saver("a")
    fit(resumed, val_check_interval=3, max_steps=6, ckpt_path="last")
    assert resumed.current_score is not None


def test_ckpt_path_best(tmp_path: Path):
    saver = SeparatedCheckpoint(tmp_path, monitor="val_loss")
    trainer, module = fit(saver, val_check_interval=3)
    assert trainer.validate(module, ResumableDataLoader(NoisySamples(8), batch_size=4), ckpt_path="best", verbose=False)
    best = torch.load(saver.best_model_path, weights_only=True)["state_dict"]
    assert all(torch.equal(value, best[name]) for name, value in module.state_dict().items())


def test_validate_and_test_take_a_model_file(tmp_path: Path):
    trainer, module = fit(SeparatedCheckpoint(tmp_path, every_n_train_steps=10, save_top_k=-1))
    loader = ResumableDataLoader(NoisySamples(8), batch_size=4)
    path = str(by_step(tmp_path)[10].model_path)
    for run in (trainer.validate, trainer.test):
        run(module, loader, ckpt_path=path, verbose=False)
        saved = torch.load(path, weights_only=True)["state_dict"]
        assert all(torch.equal(value, saved[name]) for name, value in module.state_dict().items())


def test_a_damaged_file_stops_fit_with_the_tensor_named(tmp_path: Path):
    fit(SeparatedCheckpoint(tmp_path, every_n_train_steps=10))
    checkpoint = list_checkpoints(tmp_path)[0]
    record = next(tensor for tensor in checkpoint.manifest.tensors["optimizer"] if tensor.path.endswith("exp_avg"))
    content = bytearray(checkpoint.paths.optimizer.read_bytes())
    content[record.offset] ^= 1
    checkpoint.paths.optimizer.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=record.path):
        fit(ckpt_path=checkpoint.model_path, plugins=[SeparatedCheckpointIO()])


def test_a_model_of_another_size_is_refused_before_anything_is_changed(tmp_path: Path):
    fit(SeparatedCheckpoint(tmp_path, every_n_train_steps=10))
    wider = ToyModule(width=32)
    before = {name: value.clone() for name, value in wider.state_dict().items()}
    with pytest.raises(StateMismatchError, match=r"net\.0\.weight: shape \(16, 8\) in the checkpoint, \(32, 8\)"):
        fit(SeparatedCheckpoint(tmp_path), module=wider, ckpt_path=list_checkpoints(tmp_path)[0].model_path)
    assert all(torch.equal(value, before[name]) for name, value in wider.state_dict().items())


def test_hyper_parameters_that_could_not_be_read_back_are_refused_when_training_starts(tmp_path: Path):
    class WithPath(ToyModule):
        def __init__(self, data_dir: Path) -> None:
            super().__init__()
            self.save_hyperparameters()

    module = WithPath(data_dir=tmp_path)
    with pytest.raises(UnsupportedObjectError, match="hyper_parameters/data_dir"):
        fit(SeparatedCheckpoint(tmp_path, every_n_train_steps=10), module=module)
    assert module.history == []


def test_model_only_checkpoints_load_for_validation_and_are_refused_for_fit(tmp_path: Path):
    saver = SeparatedCheckpoint(tmp_path, every_n_train_steps=10, save_weights_only=True)
    trainer, module = fit(saver)
    checkpoint = list_checkpoints(tmp_path)[0]
    assert checkpoint.model_only
    assert names(tmp_path) == ["checkpoint-step000020-model.pt", "checkpoint-step000020.json"]
    loader = ResumableDataLoader(NoisySamples(8), batch_size=4)
    trainer.validate(module, loader, ckpt_path=str(checkpoint.model_path), verbose=False)
    with pytest.raises(MissingOptimizerError, match="model-only"):
        fit(SeparatedCheckpoint(tmp_path / "b"), ckpt_path=checkpoint.model_path)


def test_trainer_save_checkpoint_takes_any_path(tmp_path: Path):
    trainer, _ = fit(SeparatedCheckpoint(tmp_path / "out"), max_steps=3)
    for name in ("plain.ckpt", "plain.pt", "custom-model.pt"):
        trainer.save_checkpoint(tmp_path / name)
        assert load_checkpoint(tmp_path / name).global_step == 3
    assert len(list_checkpoints(tmp_path)) == 3


def test_works_inside_a_wrapping_plugin(tmp_path: Path):
    fit(SeparatedCheckpoint(tmp_path, every_n_train_steps=10, save_top_k=-1), plugins=[AsyncCheckpointIO()])
    assert [c.step for c in list_checkpoints(tmp_path)] == [10, 20]
    for checkpoint in list_checkpoints(tmp_path):
        verify_checkpoint(checkpoint)


def test_another_checkpoint_plugin_is_an_error_not_a_silent_replacement(tmp_path: Path):
    class OwnIO(TorchCheckpointIO):
        pass

    with pytest.raises(CheckpointError, match="OwnIO"):
        fit(SeparatedCheckpoint(tmp_path), plugins=[OwnIO()])


def test_unified_lightning_checkpoints_resume_through_the_plugin(tmp_path: Path):
    fit(ModelCheckpoint(tmp_path, filename="unified", every_n_train_steps=10), max_steps=10)
    _, module = fit(plugins=[SeparatedCheckpointIO()], ckpt_path=tmp_path / "unified.ckpt")
    assert module.history[0][0] == 10


def test_a_bare_state_dict_keeps_its_type_and_metadata(tmp_path: Path):
    """Lightning's spawn launcher sends the weights of a worker process through the same plugin."""
    plugin = SeparatedCheckpointIO()
    state = torch.nn.BatchNorm1d(3).state_dict()
    plugin.save_checkpoint(state, tmp_path / "weights.ckpt")
    loaded = plugin.load_checkpoint(tmp_path / "weights.ckpt")
    assert type(loaded) is type(state)
    assert loaded._metadata == state._metadata  # type: ignore[attr-defined]
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_checkpoints_do_not_depend_on_the_directory(tmp_path: Path):
    for run in ("a", "elsewhere/b"):
        fit(SeparatedCheckpoint(tmp_path / run, monitor="val_loss", save_top_k=2), val_check_interval=3)
    left, right = (list_checkpoints(tmp_path / run) for run in ("a", "elsewhere/b"))
    assert [c.manifest.files for c in left] == [c.manifest.files for c in right]


def test_a_moved_directory_continues_with_its_best_checkpoints(tmp_path: Path):
    def saver(directory: Path) -> SeparatedCheckpoint:
        return SeparatedCheckpoint(directory, monitor="val_loss", save_top_k=2)

    fit(saver(tmp_path / "old"), val_check_interval=3, max_steps=9)
    (tmp_path / "old").rename(tmp_path / "new")
    resumed = saver(tmp_path / "new")
    fit(resumed, val_check_interval=3, max_steps=30, ckpt_path=list_checkpoints(tmp_path / "new")[-1].model_path)
    assert len(resumed.best_k_models) == 2
    assert {Path(path).parent for path in resumed.best_k_models} == {tmp_path / "new"}
    kept = {str(checkpoint.model_path) for checkpoint in list_checkpoints(tmp_path / "new")}
    assert set(resumed.best_k_models) <= kept
    assert not (tmp_path / "old").exists()
