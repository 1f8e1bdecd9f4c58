"""What training changes in its data, and the data module saves, as the docs advise: exact, and nothing to say; and how
samples become batches, where that is other on the resume."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from torch.utils.data import DataLoader, default_collate

from neuromanifold_gpt import ResumableDataLoader, SeparatedCheckpoint, resumable
from neuromanifold_gpt.checkpoint.errors import CheckpointWarning
from neuromanifold_gpt.data.errors import DataOrderWarning

from .toy import NoisySamples, ToyModule, by_step, contents


class Weighted(NoisySamples):
    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.ones(self.size)

    def __getitem__(self, i: int) -> Any:
        x, y, number = super().__getitem__(i)
        return x, y * self.weights[i], number


class Data(LightningDataModule):
    def __init__(self, wrap: Callable[[DataLoader], Any]) -> None:
        super().__init__()
        self.samples, self.wrap = Weighted(), wrap

    def train_dataloader(self) -> Any:
        return self.wrap(DataLoader(self.samples, 4, shuffle=True))


class SavesWeights(Data):
    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.samples.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.samples.weights = state["weights"]


class Reweights(ToyModule):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.trainer.datamodule.samples.weights[batch[2]] += 0.1 * loss.item()  # type: ignore[attr-defined]
        return loss


def run(directory: Path, data: Data, max_steps: int, path: Path | None = None) -> None:
    seed_everything(1 if path is None else 7, verbose=False)
    saver = SeparatedCheckpoint(directory, every_n_train_steps=1, save_top_k=-1)
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", callbacks=[saver], max_steps=max_steps, max_epochs=-1, **options)
    trainer.fit(Reweights(), datamodule=data, ckpt_path=path)


def as_it_is(loader: DataLoader) -> DataLoader:
    return loader


@pytest.mark.parametrize("wrap", [resumable, as_it_is])
def test_is_exact_and_nothing_to_say(wrap: Callable[[DataLoader], Any], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        for category in (DataOrderWarning, CheckpointWarning):
            warnings.simplefilter("error", category)
        run(tmp_path / "a", SavesWeights(wrap), 16)
        for step in (3, 7, 10):
            run(tmp_path / f"b{step}", SavesWeights(wrap), 16, by_step(tmp_path / "a")[step].model_path)
            assert contents(by_step(tmp_path / f"b{step}")[16]) == contents(by_step(tmp_path / "a")[16])


@pytest.mark.parametrize("wrap", [resumable, as_it_is])
def test_is_said_where_nobody_saves_it(wrap: Callable[[DataLoader], Any], tmp_path: Path) -> None:
    with pytest.warns(DataOrderWarning, match=r"dataset\.weights: training changes it, and no position has it"):
        run(tmp_path, Data(wrap), 4)


def reversed_labels(samples: list[Any]) -> Any:
    x, y, number = default_collate(samples)
    return x, -y, number


def test_another_function_that_collates_is_said_on_the_resume(tmp_path: Path) -> None:
    def wrapped(collate_fn: Any) -> Callable[[DataLoader], Any]:
        return lambda loader: ResumableDataLoader(loader.dataset, 4, collate_fn=collate_fn)

    run(tmp_path, SavesWeights(wrapped(None)), 3)
    path = by_step(tmp_path)[3].model_path
    with pytest.warns(DataOrderWarning, match=r"other samples follow: 0\.collate_fn\. "):
        run(tmp_path, SavesWeights(wrapped(reversed_labels)), 4, path)
