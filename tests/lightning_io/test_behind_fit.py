"""A program that goes on behind ``fit``: resumed where that has nothing left to train, it does what it did before."""

from __future__ import annotations

import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch.utils.data import DataLoader, Sampler

from neuromanifold_gpt import ResumableDataLoader, SeparatedCheckpoint, resumable
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning

from .toy import NoisySamples, ToyModule

pytestmark = pytest.mark.filterwarnings("ignore:.*(does not have many workers|exists and is not empty).*")


class Shuffles(Sampler[int]):
    """In place: each epoch depends on all before."""

    def __init__(self) -> None:
        self.ids = list(range(26))

    def __len__(self) -> int:
        return 26

    def __iter__(self) -> Iterator[int]:
        random.shuffle(self.ids)
        return iter(self.ids)


LOADERS: dict[str, Callable[[], Any]] = {
    "ResumableDataLoader": lambda: ResumableDataLoader(NoisySamples(), 4, shuffle=True, seed=5),
    "own sampler": lambda: resumable(DataLoader(NoisySamples(), 4, sampler=Shuffles())),
    "DataLoader": lambda: DataLoader(NoisySamples(), 4, shuffle=True),
}
ENDS: dict[str, dict[str, int]] = {
    "max_steps, in the middle of an epoch": {"max_steps": 10},
    "max_steps, at an epoch's end": {"max_steps": 14},
    "max_epochs": {"max_epochs": 2},
    "max_steps, in the first epoch": {"max_steps": 3},
}


SAME, ANOTHER = "the same trainer fits again", "another trainer fits"
CASES = [
    *[("own sampler", end, ANOTHER) for end in ENDS],
    *[("ResumableDataLoader", end, SAME) for end in ENDS],
    *[("DataLoader", end, then) for end, then in zip(ENDS, (SAME, ANOTHER, SAME, ANOTHER), strict=True)],
    ("own sampler", "max_epochs", SAME),
]


class Draws(ToyModule):
    """Has a generator of its own, too."""

    def __init__(self) -> None:
        super().__init__()
        self.random = random.Random(1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch, batch_idx) * (1 + self.random.random())


def drawn(module: Draws) -> list[float]:
    return [random.random(), np.random.rand(), float(torch.rand(())), module.random.random()]


def make_trainer(directory: Path, **limits: Any) -> Trainer:
    saver = SeparatedCheckpoint(directory, every_n_train_steps=1, save_top_k=-1)
    options: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Trainer(accelerator="cpu", callbacks=[saver], **limits, **options)


def program(directory: Path, loader: str, limits: dict[str, int], then: str) -> list[Any]:
    """Train, draw, train further; gives what it has drawn and what has come of it."""
    seed_everything(3, verbose=False)
    module, data = Draws(), LOADERS[loader]()
    trainer = make_trainer(directory / "first", **limits)
    trainer.fit(module, data, ckpt_path="last")
    events: list[Any] = [drawn(module), trainer.global_step, trainer.current_epoch]
    rows = len(module.history)
    if then == SAME:
        trainer.fit_loop.max_epochs = 4
        trainer.fit_loop.epoch_loop.max_steps = 20
    else:
        trainer = make_trainer(directory / "second", max_steps=9)
    trainer.fit(module, data)
    events += [drawn(module), trainer.global_step, trainer.current_epoch, module.history[rows:]]
    return [*events, {name: tensor.tolist() for name, tensor in module.state_dict().items()}]


@pytest.mark.parametrize(("loader", "end", "then"), CASES)
def test_goes_on_as_it_did_where_it_trained(tmp_path: Path, loader: str, end: str, then: str) -> None:
    whole = program(tmp_path / "a", loader, ENDS[end], then)
    (tmp_path / "b" / "first").mkdir(parents=True)
    last = ENDS[end].get("max_steps", 14)
    for path in (tmp_path / "a" / "first").glob(f"*step{last:06d}*"):
        shutil.copy2(path, tmp_path / "b" / "first")
    assert any((tmp_path / "b" / "first").iterdir())
    with warnings.catch_warnings():
        warnings.simplefilter("error", InexactResumeWarning)
        assert program(tmp_path / "b", loader, ENDS[end], then) == whole


@pytest.mark.parametrize("limits", [{"max_steps": 10}, {"max_epochs": 1}])
def test_a_checkpoint_from_behind_the_end_of_a_fit_is_said(tmp_path: Path, limits: dict[str, int]) -> None:
    make_trainer(tmp_path, max_steps=11).fit(Draws(), LOADERS["ResumableDataLoader"]())
    trainer = make_trainer(tmp_path, **limits)
    with pytest.warns(InexactResumeWarning, match="nothing is left to train: the checkpoint is of step 11, in epoch 1"):
        trainer.fit(Draws(), LOADERS["ResumableDataLoader"](), ckpt_path="last")
