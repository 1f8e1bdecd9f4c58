"""With ``reload_dataloaders_every_n_epochs``, a resumed run has the loaders of the undisturbed one, or it is said."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from neuromanifold_gpt import ResumableDataLoader, SeparatedCheckpoint
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.data.errors import DataOrderWarning

from .toy import NoisySamples, ToyModule, by_step, contents, fit

pytestmark = [
    pytest.mark.filterwarnings("ignore::neuromanifold_gpt.data.errors.ReadAgainWarning"),
    pytest.mark.filterwarnings("ignore:The .* does not have many workers"),
]


def own(samples: Any) -> Any:
    return ResumableDataLoader(samples, 4, shuffle=True, seed=5)


def stock(samples: Any) -> Any:
    return DataLoader(samples, 4, shuffle=True)


class RandomPart(ToyModule):
    """Trains each epoch on a random part of the samples."""

    make = staticmethod(own)

    def train_dataloader(self) -> Any:
        return self.make(Subset(NoisySamples(40), random.sample(range(40), 20)))


class RandomPartOfStock(RandomPart):
    make = staticmethod(stock)


class HardSamples(ToyModule):
    """Trains each epoch on the samples with the largest loss."""

    def train_dataloader(self) -> Any:
        inputs = torch.linspace(-1, 1, 40)[:, None].expand(40, 8)
        with torch.no_grad():
            hardest = self.eval().net(inputs)[:, 0].sin().mul(1e6).sin().topk(20).indices.tolist()
        self.train()
        return own(Subset(NoisySamples(40), hardest))


class NoisyWithLazyTable(NoisySamples):
    """Makes a table when it is first needed."""

    table: Tensor | None = None

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        if self.table is None:
            self.table = torch.arange(self.size)
        return super().__getitem__(int(self.table[i]))


class SameSamples(ToyModule):
    def __init__(self) -> None:
        super().__init__()
        self.samples = NoisyWithLazyTable(20)

    def train_dataloader(self) -> Any:
        return own(self.samples)


def train(directory: Path, module: ToyModule, path: Path | None = None, **options: Any) -> ToyModule:
    saver = SeparatedCheckpoint(directory, every_n_train_steps=1, save_top_k=-1)
    options = {"max_steps": 12, "reload_dataloaders_every_n_epochs": 1, **options}
    return fit(saver, module=module, ckpt_path=path, loaders=False, **options)[1]


@pytest.mark.parametrize("kind", [RandomPart, RandomPartOfStock, SameSamples])
@pytest.mark.parametrize("epochs", [1, 2])
def test_loaders_that_depend_on_random_numbers_are_those_of_the_undisturbed_run(
    kind: type[ToyModule], epochs: int, tmp_path: Path
):
    options = {"reload_dataloaders_every_n_epochs": epochs}
    whole = train(tmp_path / "a", kind(), **options)
    for step in (3, 5, 8):
        with warnings.catch_warnings():
            warnings.simplefilter("error", InexactResumeWarning)
            resumed = train(tmp_path / f"b{step}", kind(), by_step(tmp_path / "a")[step].model_path, **options)
        assert resumed.history == [entry for entry in whole.history if entry[0] >= step], f"from step {step}"
        assert contents(by_step(tmp_path / f"b{step}")[12]) == contents(by_step(tmp_path / "a")[12])


def test_loaders_that_depend_on_the_weights_are_said(tmp_path: Path):
    train(tmp_path / "a", HardSamples(), max_steps=9)
    with pytest.warns(DataOrderWarning, match="the data is other than at the save.*: 0.dataset.indices. "):
        train(tmp_path / "b", HardSamples(), by_step(tmp_path / "a")[8].model_path, max_steps=9)


def test_they_are_nothing_to_say_where_an_epoch_begins(tmp_path: Path):
    whole = train(tmp_path / "a", HardSamples(), max_steps=9)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataOrderWarning)
        resumed = train(tmp_path / "b", HardSamples(), by_step(tmp_path / "a")[5].model_path, max_steps=9)
    assert resumed.history == [entry for entry in whole.history if entry[0] >= 5]


@pytest.mark.parametrize(
    ("kind", "name"), [(RandomPart, "0.dataset.indices"), (RandomPartOfStock, "0.dataset.indices")]
)
def test_another_part_than_at_the_save_is_said(kind: type[RandomPart], name: str, tmp_path: Path):
    options = {"max_steps": 9, "reload_dataloaders_every_n_epochs": 0}
    train(tmp_path / "a", kind(), **options)
    random.seed(1)
    with pytest.warns(DataOrderWarning, match=f"the data is other than at the save.*: {name}. "):
        train(tmp_path / "b", kind(), by_step(tmp_path / "a")[8].model_path, **options)


def test_the_same_data_is_not(tmp_path: Path):
    options = {"max_steps": 9, "reload_dataloaders_every_n_epochs": 0}
    train(tmp_path / "a", SameSamples(), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataOrderWarning)
        train(tmp_path / "b", SameSamples(), by_step(tmp_path / "a")[8].model_path, **options)


class Labels(ToyModule):
    """Active learning: behind each epoch there are more samples, and its state tells how many."""

    seed = 5

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("size", torch.tensor(12))

    def train_dataloader(self) -> Any:
        return ResumableDataLoader(NoisySamples(int(self.size)), 4, shuffle=True, seed=self.seed)

    def on_train_epoch_end(self) -> None:
        self.size += 4


class LabelsInAnotherOrder(Labels):
    seed = 6


def test_a_dataset_that_has_grown_is_nothing_to_say_where_an_epoch_begins(tmp_path: Path):
    whole = train(tmp_path / "a", Labels(), max_steps=9)
    path = by_step(tmp_path / "a")[3].model_path
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataOrderWarning)
        resumed = train(tmp_path / "b", Labels(), path, max_steps=9)
    assert resumed.history == [entry for entry in whole.history if entry[0] >= 3]
    assert contents(by_step(tmp_path / "b")[9]) == contents(by_step(tmp_path / "a")[9])
    with pytest.warns(DataOrderWarning, match=r"seed was 5 and is 6, dataset_size was 12 and is 16\.$"):
        train(tmp_path / "c", LabelsInAnotherOrder(), path, max_steps=9)
    with pytest.warns(DataOrderWarning, match=r"dataset_size was 12 and is 16\.$"):  # no others are about to come
        train(tmp_path / "d", Labels(), path, max_steps=9, reload_dataloaders_every_n_epochs=0)


class Numbered(NoisySamples):
    """Samples that show a number which the dataset is made with."""

    def __init__(self, number: int, size: int = 20) -> None:
        super().__init__(size)
        self.number = number

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        x, y, _ = super().__getitem__(i)
        return x * (1 + self.number), y, 100 * self.number + i


class ByLevel(ToyModule):
    """A curriculum: the level rises within an epoch and at its end, and counts when the loader is asked for."""

    make = staticmethod(own)

    def __init__(self) -> None:
        super().__init__()
        self.level = 0

    def train_dataloader(self) -> Any:
        return self.make(Numbered(self.level))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.level += batch_idx == 1


class ByLevelOfStock(ByLevel):
    make = staticmethod(stock)


class ByStep(ToyModule):
    def train_dataloader(self) -> Any:
        return own(Numbered(self.global_step))


class ByOwnGenerator(ToyModule):
    """Draws a part anew from a generator in a dataset that stays."""

    make = staticmethod(own)

    def setup(self, stage: str) -> None:
        self.samples = NoisySamples(40)
        self.samples.generator = torch.Generator().manual_seed(4)

    def train_dataloader(self) -> Any:
        return self.make(Subset(self.samples, torch.randperm(40, generator=self.samples.generator)[:20].tolist()))


class ByOwnGeneratorOfStock(ByOwnGenerator):
    make = staticmethod(stock)


class LooksAtLevel(ByLevel):
    """Could choose a learning rate by it."""

    def on_train_start(self) -> None:
        self.history.append((self.level, 0.0, 0.0, []))


@pytest.mark.parametrize("kind", [ByLevel, ByLevelOfStock, ByStep, ByOwnGenerator, ByOwnGeneratorOfStock])
def test_loaders_are_those_that_were_given_at_the_beginning_of_the_epoch(kind: type[ToyModule], tmp_path: Path):
    whole = train(tmp_path / "a", kind())
    for step in (5, 8):
        with warnings.catch_warnings():
            warnings.simplefilter("error", InexactResumeWarning)
            warnings.simplefilter("error", DataOrderWarning)
            resumed = train(tmp_path / f"b{step}", kind(), by_step(tmp_path / "a")[step].model_path)
        assert resumed.history == [entry for entry in whole.history if entry[0] >= step], f"from step {step}"
        assert contents(by_step(tmp_path / f"b{step}")[12]) == contents(by_step(tmp_path / "a")[12])


@pytest.mark.parametrize("kind", [ByLevel, ByLevelOfStock, ByOwnGenerator])
def test_loaders_that_are_asked_for_once_are_those_of_the_first_time(kind: type[ToyModule], tmp_path: Path):
    options = {"reload_dataloaders_every_n_epochs": 0}
    whole = train(tmp_path / "a", kind(), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataOrderWarning)
        resumed = train(tmp_path / "b", kind(), by_step(tmp_path / "a")[8].model_path, **options)
    assert resumed.history == [entry for entry in whole.history if entry[0] >= 8]


def test_what_the_module_counts_is_there_when_training_begins(tmp_path: Path):
    train(tmp_path / "a", LooksAtLevel(), max_steps=9)
    resumed = train(tmp_path / "b", LooksAtLevel(), by_step(tmp_path / "a")[8].model_path, max_steps=9)
    assert resumed.history[0][0] == 2
