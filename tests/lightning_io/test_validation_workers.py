"""Workers of a validation loader that stay: the training behind a resume draws what it would have drawn."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from neuromanifold_gpt import ResumableDataLoader, SeparatedCheckpoint, resumable
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning

from .toy import NoisySamples, ToyModule, by_step, contents, fit

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:The 'val_dataloader' does not")


class QuietSamples(NoisySamples):
    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        x = torch.linspace(-1, 1, 8) * (i + 1) / self.size
        return x, x.sum()[None], i


class SamplesWithOwnGenerator(QuietSamples):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.generator = torch.Generator().manual_seed(4)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        x, y, number = super().__getitem__(i)
        return x + torch.rand(8, generator=self.generator), y, number


class Validated(ToyModule):
    """Validates on a stock loader whose workers stay."""

    of_validation: Any  # makes the loader

    def train_dataloader(self) -> Any:
        return ResumableDataLoader(NoisySamples(), batch_size=4, shuffle=True, seed=5)

    def val_dataloader(self) -> Any:
        return self.of_validation()


def validated(samples: Dataset[Any], wrap: Any = lambda loader: loader, **options: Any) -> ToyModule:
    module = Validated()
    options = {"num_workers": 1, "persistent_workers": True, **options}
    module.of_validation = lambda: wrap(DataLoader(samples, 2, **options))
    return module


def collate(samples: list[Any]) -> Any:
    return torch.utils.data.default_collate(samples)


def train(directory: Path, module: ToyModule, path: Path | None = None, **options: Any) -> ToyModule:
    saver = SeparatedCheckpoint(directory, every_n_train_steps=1, save_top_k=-1)
    return fit(saver, module=module, ckpt_path=path, loaders=False, **{"max_steps": 9, **options})[1]


@pytest.mark.parametrize(
    ("sanity_batches", "interval", "steps"),
    [(2, 4, (2, 4, 6)), (0, 4, (2, 4, 6)), (0, 1.0, (3, 7, 8))],
    ids=["behind a sanity check", "within epochs", "at the ends of epochs"],
)
def test_dropout_behind_a_resume_is_that_of_the_undisturbed_run(
    sanity_batches: int, interval: float, steps: tuple[int, ...], tmp_path: Path
):
    def module() -> ToyModule:
        return validated(QuietSamples(8), shuffle=True)

    options: dict[str, Any] = {"num_sanity_val_steps": sanity_batches, "val_check_interval": interval}
    with warnings.catch_warnings():
        warnings.simplefilter("error", InexactResumeWarning)
        whole = train(tmp_path / "a", module(), **options)
        for step in steps:
            resumed = train(tmp_path / f"b{step}", module(), by_step(tmp_path / "a")[step].model_path, **options)
            assert resumed.history == [entry for entry in whole.history if entry[0] >= step], f"from step {step}"
            assert contents(by_step(tmp_path / f"b{step}")[9]) == contents(by_step(tmp_path / "a")[9])


@pytest.mark.parametrize("samples", [NoisySamples(8), SamplesWithOwnGenerator(8)], ids=["of all", "their own"])
def test_samples_that_draw_in_them_are_said_once(samples: Any, tmp_path: Path):
    with pytest.warns(InexactResumeWarning, match="samples of a validation loader draw") as said:
        train(tmp_path, validated(samples), max_steps=3, val_check_interval=1)
    assert sum("samples of a validation loader" in str(warning.message) for warning in said) == 1


@pytest.mark.parametrize(
    "module",
    [
        lambda: validated(NoisySamples(8), persistent_workers=False),
        lambda: validated(NoisySamples(8), wrap=resumable),
    ],
    ids=["workers of each validation", "resumable"],
)
def test_samples_that_draw_elsewhere_are_nothing_to_say(module: Any, tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", InexactResumeWarning)
        train(tmp_path, module(), max_steps=3, val_check_interval=1)


def test_loaders_are_left_as_they_were(tmp_path: Path):
    loader = DataLoader(QuietSamples(8), 2, num_workers=1, persistent_workers=True, collate_fn=collate)
    module = Validated()
    module.of_validation = lambda: loader
    train(tmp_path / "a", module, max_steps=8, reload_dataloaders_every_n_epochs=1)
    assert loader.collate_fn is collate
    resumed = Validated()
    resumed.of_validation = lambda: loader
    train(tmp_path / "b", resumed, by_step(tmp_path / "a")[8].model_path, max_steps=9)  # without a validation
    assert loader.collate_fn is collate
    assert loader._iterator is None
