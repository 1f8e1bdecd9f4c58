"""Numbers that training shares with data workers by ``multiprocessing.Value`` go on, with any loader."""

from __future__ import annotations

import multiprocessing
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch.utils.data import DataLoader, default_collate

from neuromanifold_gpt import ResumableDataLoader, SeparatedCheckpoint
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.data.errors import DataOrderWarning

from .toy import NoisySamples, ToyModule, by_step, contents

STEPS = 16  # epochs of seven


class Short(NoisySamples):
    """The sequences grow."""

    def __init__(self) -> None:
        super().__init__()
        self.length = multiprocessing.Value("i", 2)

    def __getitem__(self, i: int) -> Any:
        x, y, number = super().__getitem__(i)
        return x * (torch.arange(8) < self.length.value), y, number


class Grows(Callback):
    def __init__(self, dataset: Short, each_step: bool) -> None:
        self.length, self.each_step = dataset.length, each_step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.each_step:
            self.length.value = 2 + trainer.global_step // 3

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        self.length.value = 3 + trainer.current_epoch


class CountsBatches:
    def __init__(self) -> None:
        self.batches = multiprocessing.Value("i", 0)

    def __call__(self, samples: list[Any]) -> Any:
        self.batches.value += 1
        x, y, number = default_collate(samples)
        return x + 0.1 * self.batches.value, y, number


class CountsSteps(Callback):
    def __init__(self) -> None:
        self.steps = multiprocessing.Value("i", 0)

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps.value += 1


def fit(directory: Path, make: Any, workers: int, each_step: bool, *others: Callback, **options: Any) -> None:
    seed_everything(2 if options else 1, verbose=False)
    dataset = Short()
    saver = SeparatedCheckpoint(directory, every_n_train_steps=1, save_top_k=-1)
    shown: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    callbacks = [Grows(dataset, each_step), *others, saver]
    trainer = Trainer(accelerator="cpu", max_steps=STEPS, callbacks=callbacks, **shown)
    validation = DataLoader(NoisySamples(8), 4, collate_fn=CountsBatches())
    trainer.fit(ToyModule(schedule="plateau"), make(dataset, 4, num_workers=workers), validation, **options)


@pytest.mark.parametrize(("workers", "each_step"), [(0, True), (1, False)])
@pytest.mark.parametrize("make", [DataLoader, ResumableDataLoader])
def test_go_on(make: Any, workers: int, each_step: bool, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        for category in (DataOrderWarning, InexactResumeWarning):
            warnings.simplefilter("error", category)
        fit(tmp_path / "a", make, workers, each_step)
        whole = by_step(tmp_path / "a")
        for step in (7, 11):
            fit(tmp_path / str(step), make, workers, each_step, ckpt_path=str(whole[step].model_path))
            assert contents(by_step(tmp_path / str(step))[STEPS]) == contents(whole[STEPS])


@pytest.mark.parametrize("make", [DataLoader, ResumableDataLoader])
def test_that_change_while_workers_fetch_ahead_are_said(make: Any, tmp_path: Path) -> None:
    with pytest.warns(DataOrderWarning, match=r"dataset\.length\.value changes while workers"):
        fit(tmp_path, make, 1, True)


def test_of_a_callback_are_said(tmp_path: Path) -> None:
    with pytest.warns(InexactResumeWarning, match=r"no checkpoint has: CountsSteps\.steps\. If"):
        fit(tmp_path, ResumableDataLoader, 0, True, CountsSteps())
