"""Generators that datasets, collate functions and loaders make when they first need them, or make anew."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, IterableDataset, Sampler, default_collate

from neuromanifold_gpt import SeparatedCheckpoint, resumable
from neuromanifold_gpt.checkpoint.errors import CheckpointWarning, InexactResumeWarning
from neuromanifold_gpt.data.errors import DataOrderWarning

from .toy import NoisySamples, ToyModule, by_step, contents, fit

pytestmark = pytest.mark.filterwarnings("ignore::neuromanifold_gpt.data.errors.ReadAgainWarning")

Sample = tuple[torch.Tensor, torch.Tensor, int]
BATCHES_OF_EPOCH = 7


def drawn(i: int, draws: np.random.Generator) -> Sample:
    x = torch.linspace(-1, 1, 8) * (i + 1) / 26 + 0.1 * torch.from_numpy(draws.normal(size=8)).float()
    return x, x.sum()[None], i


class FirstSample(NoisySamples):
    rng: Any = None

    def __getitem__(self, i: int) -> Sample:
        if self.rng is None:
            self.rng = np.random.default_rng(0)
        return drawn(i, self.rng)


class FirstIteration(IterableDataset[Sample]):
    """Without a length: one batch is fetched ahead."""

    rng: Any = None

    def __iter__(self) -> Iterator[Sample]:
        if self.rng is None:
            self.rng = np.random.default_rng(0)
        yield from (drawn(i, self.rng) for i in range(26))


class FirstOrder(Sampler[int]):
    rng: Any = None

    def __len__(self) -> int:
        return 26

    def __iter__(self) -> Iterator[int]:
        if self.rng is None:
            self.rng = np.random.default_rng(0)
        return iter(self.rng.permutation(26).tolist())


class FirstCollation:
    rng: Any = None

    def __call__(self, samples: list[Any]) -> Any:
        if self.rng is None:
            self.rng = torch.Generator().manual_seed(0)
        x, y, ids = default_collate(samples)
        return x * torch.rand(x.shape, generator=self.rng), y, ids


class EachEpoch:
    """A loader of a user's own, whose generator is made from the last one."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return BATCHES_OF_EPOCH

    def __iter__(self) -> Iterator[Any]:
        self.rng = np.random.default_rng(self.rng.integers(2**31))
        order = self.rng.permutation(28)
        yield from (default_collate([drawn(i, self.rng) for i in order[4 * k : 4 * k + 4]]) for k in range(len(self)))


class ByHook(NoisySamples):
    """A hook gives it another generator in each epoch, and within it."""

    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(0)

    def __getitem__(self, i: int) -> Sample:
        return drawn(i, self.rng)


class Replaces(Callback):
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loader: Any = trainer.train_dataloader
        if batch_idx in (2, BATCHES_OF_EPOCH - 1) and isinstance(getattr(loader, "dataset", None), ByHook):
            loader.dataset.rng = np.random.default_rng(loader.dataset.rng.integers(2**31))


LOADERS: dict[str, Callable[[], Any]] = {
    "first sample": lambda: DataLoader(FirstSample(), 4, shuffle=True),
    "first iteration of a stream": lambda: DataLoader(FirstIteration(), 4),
    "first order of a sampler": lambda: DataLoader(NoisySamples(), 4, sampler=FirstOrder()),
    "first collation": lambda: DataLoader(NoisySamples(), 4, collate_fn=FirstCollation()),
    "each epoch of an own loader": EachEpoch,
    "by a hook": lambda: DataLoader(ByHook(), 4, shuffle=True),
    "first sample, resumable": lambda: resumable(DataLoader(FirstSample(), 4, shuffle=True)),
    "first iteration of a stream, resumable": lambda: resumable(DataLoader(FirstIteration(), 4)),
    "first order of a sampler, resumable": lambda: resumable(DataLoader(NoisySamples(), 4, sampler=FirstOrder())),
    "first collation, resumable": lambda: resumable(DataLoader(NoisySamples(), 4, collate_fn=FirstCollation())),
    "first collation of a stream, resumable": lambda: resumable(
        DataLoader(FirstIteration(), 4, collate_fn=FirstCollation())
    ),
}


def run(directory: Path, module: ToyModule, path: Path | None = None, **options: Any) -> ToyModule:
    saver = SeparatedCheckpoint(directory, every_n_train_steps=1, save_top_k=-1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        warnings.simplefilter("error", DataOrderWarning)
        warnings.filterwarnings("ignore", message=".*the order of FirstOrder")
        return fit(Replaces(), saver, module=module, loaders=False, max_steps=16, ckpt_path=path, **options)[1]


def on(train: Callable[[], Any], validation: Callable[[], Any] | None = None) -> ToyModule:
    module = ToyModule(schedule="plateau" if validation is not None else "step")
    module.train_dataloader = train  # type: ignore[method-assign]
    if validation is not None:
        module.val_dataloader = validation  # type: ignore[method-assign]
    return module


@pytest.mark.parametrize("kind", LOADERS)
def test_go_on_in_training(kind: str, tmp_path: Path) -> None:
    run(tmp_path / "a", on(LOADERS[kind]))
    saved = by_step(tmp_path / "a")
    for step in (1, BATCHES_OF_EPOCH, 10):
        run(tmp_path / f"b{step}", on(LOADERS[kind]), saved[step].model_path)
        assert contents(by_step(tmp_path / f"b{step}")[16]) == contents(saved[16]), f"from step {step}"


@pytest.mark.parametrize("kind", ["first sample", "first order of a sampler", "first collation"])
def test_go_on_in_validation(kind: str, tmp_path: Path) -> None:
    def module() -> ToyModule:
        return on(lambda: DataLoader(NoisySamples(), 4), LOADERS[kind])

    run(tmp_path / "a", module(), limit_val_batches=2)
    saved = by_step(tmp_path / "a")
    for step in (BATCHES_OF_EPOCH, 10):
        run(tmp_path / f"b{step}", module(), saved[step].model_path, limit_val_batches=2)
        assert contents(by_step(tmp_path / f"b{step}")[16]) == contents(saved[16]), f"from step {step}"


class SecondEpoch(NoisySamples):
    """Makes its generator when it has given all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.given, self.rng = 0, None

    def __getitem__(self, i: int) -> Sample:
        self.given += 1
        if self.given == self.size:
            self.rng: Any = np.random.default_rng(0)
        return super().__getitem__(i) if self.rng is None else drawn(i, self.rng)


class EachSample(NoisySamples):
    def __getitem__(self, i: int) -> Sample:
        self.rng = np.random.default_rng(i)
        return drawn(i, self.rng)


@pytest.mark.parametrize("step", [BATCHES_OF_EPOCH, 10])
def test_that_do_not_come_with_the_first_batch_are_said(step: int, tmp_path: Path) -> None:
    run(tmp_path / "a", on(lambda: DataLoader(SecondEpoch(), 4)))
    with pytest.raises(InexactResumeWarning, match=r"generators that nobody has here: 0\.dataset\.rng"):
        run(tmp_path / "b", on(lambda: DataLoader(SecondEpoch(), 4)), by_step(tmp_path / "a")[step].model_path)


@pytest.mark.parametrize("step", [4, BATCHES_OF_EPOCH, 10])
def test_of_each_sample_are_nothing_to_say(step: int, tmp_path: Path) -> None:
    run(tmp_path / "a", on(lambda: DataLoader(EachSample(), 4)))
    run(tmp_path / "b", on(lambda: DataLoader(EachSample(), 4)), by_step(tmp_path / "a")[step].model_path)
    assert contents(by_step(tmp_path / "b")[16]) == contents(by_step(tmp_path / "a")[16])
