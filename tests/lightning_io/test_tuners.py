"""Lightning's searches for a learning rate and a batch size: they train, then begin anew by a checkpoint of theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader

from neuromanifold_gpt import SeparatedCheckpoint
from neuromanifold_gpt.checkpoint.errors import StateMismatchError

from .toy import NoisySamples, ToyModule, by_step, fit


def test_a_search_that_makes_lightning_forget_the_checkpoint_is_refused(tmp_path: Path):
    fit(SeparatedCheckpoint(tmp_path, every_n_train_steps=1), max_steps=2)
    with pytest.raises(StateMismatchError, match="LearningRateFinder would search again"):
        fit(SeparatedCheckpoint(tmp_path), LearningRateFinder(), ckpt_path=by_step(tmp_path)[2].model_path)


@pytest.mark.parametrize("search", ["lr_find", "callback", "scale_batch_size"])
def test_a_search_changes_nothing_of_the_training_that_follows(search: str, tmp_path: Path):
    class Data(LightningDataModule):
        batch_size = 2

        def train_dataloader(self) -> Any:
            return DataLoader(NoisySamples(), self.batch_size, shuffle=True)

        def val_dataloader(self) -> Any:
            return DataLoader(NoisySamples(8), 4)

    def histories(kind: type[ModelCheckpoint]) -> Any:
        seed_everything(1, verbose=False)
        module, data = ToyModule(), Data()
        module.lr = 0.01  # type: ignore[assignment]
        finder = [LearningRateFinder(num_training_steps=4, update_attr=False)] if search == "callback" else []
        trainer = Trainer(
            accelerator="cpu",
            callbacks=[kind(tmp_path / kind.__name__, every_n_train_steps=2), *finder],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            max_steps=8,
            default_root_dir=tmp_path / "root",
        )
        tuner = Tuner(trainer)
        if search == "lr_find":
            tuner.lr_find(module, datamodule=data, num_training=4, update_attr=False)
        elif search == "scale_batch_size":
            tuner.scale_batch_size(module, datamodule=data, steps_per_trial=1, max_trials=1)
        if search != "callback":
            seed_everything(7, verbose=False)
        trainer.fit(module, datamodule=data)
        return module.history

    (tmp_path / "root").mkdir()
    assert histories(SeparatedCheckpoint) == histories(ModelCheckpoint)
    assert list((tmp_path / "root").iterdir()) == []  # of what it searched with
