"""What a dataset of a validation changes in itself, goes on in the next validation of a resumed run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, IterableDataset

from neuromanifold_gpt import ResumableDataLoader, SeparatedCheckpoint
from neuromanifold_gpt.data.errors import DataOrderWarning

from ..record import Record
from .toy import NoisySamples, ToyModule, by_step, contents, fit

Sample = tuple[torch.Tensor, torch.Tensor, int]


class Counts(NoisySamples):
    """Each sample depends on how many were made before it."""

    made = 0

    def __getitem__(self, i: int) -> Sample:
        self.made += 1
        x = torch.linspace(-1, 1, 8) * (i + 0.01 * self.made)
        return x, x.sum()[None], i


class GoesOn(IterableDataset[Sample]):
    """A stream that each validation takes up where the last one left it."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> Iterator[Sample]:
        while True:
            self.position += 1
            x = torch.linspace(-1, 1, 8) * self.position
            yield x, x.sum()[None], 0


class ByValidation(ToyModule):
    """The learning rate goes by the loss of validations, so that it shows in the weights."""

    def __init__(self) -> None:
        super().__init__(schedule="plateau")
        self._losses = Record(rows=[])

    @property
    def losses(self) -> list[float]:
        """Of the validations of this process."""
        return self._losses.rows

    def over(self, validation: Any, train: Any = None) -> ByValidation:
        """Trained and validated on these; hyperparameters are no place for them."""
        self.validation, self.train_data = validation, train or NoisySamples()
        return self

    def train_dataloader(self) -> Any:
        return ResumableDataLoader(self.train_data, 4, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.validation, 4)

    def on_validation_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.losses.append(self.trainer.callback_metrics["val_loss"].item())


def shared() -> ByValidation:
    dataset = Counts(22)
    return ByValidation().over(dataset, dataset)


MODULES: dict[str, Callable[[], ByValidation]] = {
    "map-style": lambda: ByValidation().over(Counts(8)),
    "stream": lambda: ByValidation().over(GoesOn()),
    "the one of training": shared,
}


def trained(directory: Path, module: ByValidation, **options: Any) -> tuple[Trainer, ToyModule]:
    saver = SeparatedCheckpoint(directory, every_n_train_steps=1, save_top_k=-1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataOrderWarning)
        return fit(
            saver, module=module, loaders=False, val_check_interval=3, limit_val_batches=2, max_steps=14, **options
        )


@pytest.mark.parametrize("step", [5, 6])
@pytest.mark.parametrize("kind", MODULES)
def test_goes_on(kind: str, step: int, tmp_path: Path) -> None:
    whole, resumed = MODULES[kind](), MODULES[kind]()
    trained(tmp_path / "a", whole)
    trained(tmp_path / "b", resumed, ckpt_path=by_step(tmp_path / "a")[step].model_path)
    assert resumed.losses == whole.losses[-len(resumed.losses) :]
    assert resumed.losses
    assert contents(by_step(tmp_path / "b")[14]) == contents(by_step(tmp_path / "a")[14])
