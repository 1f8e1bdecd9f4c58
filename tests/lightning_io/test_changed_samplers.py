"""A sampler that a module changes while it trains, in the middle of epochs, with any loader."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch.utils.data import DataLoader, Sampler

from neuromanifold_gpt import SeparatedCheckpoint, load_checkpoint, resumable
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.data.errors import DataOrderWarning

from .toy import NoisySamples, ToyModule, by_step, contents

STEPS = 16  # epochs of seven


class HardExamples(Sampler[int]):
    def __init__(self) -> None:
        self.weights = torch.ones(26)
        self.first = 0

    def __len__(self) -> int:
        return 26

    def __iter__(self) -> Iterator[int]:
        ids = torch.multinomial(self.weights, 26, replacement=False).tolist()
        return iter(ids[self.first :] + ids[: self.first])


class Mines(ToyModule):
    sampler: HardExamples
    weights: torch.Tensor  # of the sampler

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.weights[batch[2]] += outputs["loss"].item()
        self.sampler.first = int(batch[2][0])


LOADERS: dict[str, Callable[[HardExamples], Any]] = {
    "resumable": lambda sampler: resumable(DataLoader(NoisySamples(), 4, sampler=sampler)),
    "resumable, with a worker": lambda sampler: resumable(
        DataLoader(NoisySamples(), 4, sampler=sampler, num_workers=1)
    ),
    "stock": lambda sampler: DataLoader(NoisySamples(), 4, sampler=sampler),
}


def fit(directory: Path, loader: str, **options: Any) -> None:
    seed_everything(2 if options else 1, verbose=False)
    sampler = HardExamples()
    saver = SeparatedCheckpoint(directory, every_n_train_steps=1, save_top_k=-1)
    shown: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(accelerator="cpu", max_steps=STEPS, callbacks=[saver], **shown)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataOrderWarning)
        warnings.filterwarnings("error", message=".*no checkpoint has", category=InexactResumeWarning)
        module = Mines()
        module.sampler, module.weights = sampler, sampler.weights
        trainer.fit(module, LOADERS[loader](sampler), **options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("loader", LOADERS)
def test_what_it_changes_counts_after_a_resume(tmp_path: Path, loader: str) -> None:
    fit(tmp_path / "a", loader)
    whole = by_step(tmp_path / "a")
    for step in (2, 7, 11):
        fit(tmp_path / str(step), loader, ckpt_path=str(whole[step].model_path))
        assert contents(by_step(tmp_path / str(step))[STEPS]) == contents(whole[STEPS])
    assert load_checkpoint(whole[STEPS]).global_step == STEPS
