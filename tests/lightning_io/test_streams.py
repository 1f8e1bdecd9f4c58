"""Streams in Lightning: what they carry from epoch to epoch, and whether reading them again comes to the same."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, IterableDataset, default_collate

from neuromanifold_gpt import SeparatedCheckpoint, resumable
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.data.errors import DataOrderWarning

from .toy import NoisySamples, ToyModule, by_step, fit

pytestmark = pytest.mark.filterwarnings("ignore::neuromanifold_gpt.data.errors.ReadAgainWarning")


def plain(loader: Any) -> Any:
    return loader


class Endless(IterableDataset):
    def __init__(self) -> None:
        self.samples, self.next = NoisySamples(), 0

    def __iter__(self) -> Any:
        while True:
            self.next += 1
            yield self.samples[self.next % 26]


class EndlessWithState(Endless):
    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


class Grouped(IterableDataset):
    """Fills buckets of its own, which begin a pass with what was left in them."""

    def __init__(self) -> None:
        self.samples, self.buckets = NoisySamples(), [[], []]

    def __iter__(self) -> Any:
        for number in np.random.permutation(26).tolist():
            bucket = self.buckets[number % 2]
            bucket.append(number)
            if len(bucket) == 4:
                group, bucket[:] = [*bucket], []
                yield default_collate([self.samples[number] for number in group])


STREAMS = {
    "endless": (lambda: DataLoader(Endless(), 4), {"limit_train_batches": 3}),
    "endless, with state": (lambda: DataLoader(EndlessWithState(), 4), {"limit_train_batches": 3}),
    "grouped": (lambda: DataLoader(Grouped(), batch_size=None), {}),
    "grouped, cut short": (lambda: DataLoader(Grouped(), batch_size=None), {"limit_train_batches": 3}),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_resumable_stream_goes_on_at_every_step(name: str, tmp_path: Path):
    loader, options = STREAMS[name]

    def run(directory: str, path: Path | None = None) -> Any:
        saver = SeparatedCheckpoint(tmp_path / directory, every_n_train_steps=1, save_top_k=-1)
        module = ToyModule()
        module.train_dataloader = lambda: resumable(loader(), seed=3)  # type: ignore[method-assign]
        return fit(saver, module=module, loaders=False, ckpt_path=path, max_steps=9, **options)[1]

    whole = run("a").history
    saved = by_step(tmp_path / "a")
    for step in (1, 3, 8):
        with warnings.catch_warnings():
            warnings.simplefilter("error", DataOrderWarning)
            warnings.simplefilter("error", InexactResumeWarning)
            assert run(f"b{step}", saved[step].model_path).history == whole[step:], f"from step {step}"


class Replayed(IterableDataset):
    """Draws from the module's buffer, once, when a pass begins."""

    def __init__(self, module: Any) -> None:
        self.module, self.samples = module, NoisySamples()

    def __iter__(self) -> Any:
        for place in np.random.choice(len(self.module.buffer), 20, replace=False):
            yield self.samples[self.module.buffer[place]]


class Replaying(ToyModule):
    grows, wrap = True, staticmethod(plain)

    def __init__(self) -> None:
        super().__init__()
        self.buffer = list(range(24))

    def train_dataloader(self) -> Any:
        return self.wrap(DataLoader(Replayed(self), 4))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.grows:
            self.buffer.append(len(self.buffer) % 24)
        return super().training_step(batch, batch_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["buffer"] = [*self.buffer]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.buffer = [*checkpoint["buffer"]]


@pytest.mark.parametrize("grows", [False, True])
@pytest.mark.parametrize("wrap", [plain, resumable])
def test_a_stream_that_begins_with_what_training_has_changed_is_said(wrap: Any, grows: bool, tmp_path: Path):
    def run(directory: str, steps: int, path: Path | None = None) -> None:
        saver = SeparatedCheckpoint(tmp_path / directory, every_n_train_steps=1, save_top_k=-1)
        module = Replaying()
        module.wrap, module.grows = wrap, grows
        fit(saver, module=module, loaders=False, ckpt_path=path, max_steps=steps)

    run("a", 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run("b", 4, by_step(tmp_path / "a")[3].model_path)
    said = [warning.category for warning in caught if "Replayed, begun again, has come to other" in str(warning)]
    assert said == [InexactResumeWarning if wrap is plain else DataOrderWarning] * grows


class Grows(IterableDataset):
    """Its samples depend on what a hook sets."""

    step = 0

    def __iter__(self) -> Any:
        for x, y, i in map(NoisySamples().__getitem__, range(26)):
            yield x * (1 + 0.1 * self.step), y, i


class Follows(ToyModule):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        loader: Any = self.trainer.train_dataloader
        loader.dataset.step = self.global_step


@pytest.mark.parametrize("module", [ToyModule, Follows])
@pytest.mark.parametrize("kind", [plain, resumable])
def test_a_batch_that_was_fetched_ahead_and_is_another_one_now_is_said(kind: Any, module: Any, tmp_path: Path):
    def run(directory: Path, path: Path | None = None) -> Any:
        torch.manual_seed(0)
        own, loader = module(), kind(DataLoader(Grows(), 4))
        own.train_dataloader = lambda: loader
        callback = SeparatedCheckpoint(directory, every_n_train_steps=1, save_top_k=-1)
        return fit(callback, module=own, loaders=False, validate=False, max_steps=12, ckpt_path=path)[1].history

    whole = run(tmp_path / "a")
    said = set()
    for step in (1, 3, 5, 7, 9):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            again = run(tmp_path / f"b{step}", by_step(tmp_path / "a")[step].model_path)
        if any("the next batch, which had been fetched before" in str(warning.message) for warning in caught):
            said.add(step)
        assert (again != whole[step:]) == (step in said)
    assert bool(said) == (module is Follows)


class Counts(ToyModule):
    """Training counts in the data, within a pass."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loader: Any = self.trainer.train_dataloader
        loader.dataset.level += 1
        return super().training_step(batch, batch_idx) * (1 + 0.1 * loader.dataset.level)


class Levelled(Grows):
    level = 0


@pytest.mark.parametrize("workers", [0, 2])
def test_what_training_changes_behind_the_fetch_goes_with_the_position(workers: int, tmp_path: Path):
    def run(directory: Path, path: Path | None = None) -> Any:
        own, loader = Counts(), resumable(DataLoader(Levelled(), 4, num_workers=workers))
        own.train_dataloader = lambda: loader  # type: ignore[method-assign]
        callback = SeparatedCheckpoint(directory, every_n_train_steps=1, save_top_k=-1)
        return fit(callback, module=own, loaders=False, validate=False, max_steps=16, ckpt_path=path)[1].history

    whole = run(tmp_path / "a")
    for step in (1, 3, 7, 9, 14):
        assert run(tmp_path / f"b{step}", by_step(tmp_path / "a")[step].model_path) == whole[step:], f"from step {step}"


class Doubles(ToyModule):
    """Changes its batch in place."""

    def __init__(self) -> None:
        super().__init__()
        self.net[1] = torch.nn.Identity()  # a step that fails leaves no buffer changed

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        batch[0].mul_(2)
        return super().training_step(batch, batch_idx)


class Fails(Callback):
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 3:
            raise RuntimeError("out of memory, say")


def test_a_batch_that_is_being_trained_on_is_not_compared(tmp_path: Path):
    def run(directory: Path, *callbacks: Callback, path: Path | None = None) -> Any:
        torch.manual_seed(0)
        own, loader = Doubles(), DataLoader(Grows(), 4)
        own.train_dataloader = lambda: loader  # type: ignore[method-assign]
        saver = SeparatedCheckpoint(directory, every_n_train_steps=100, save_on_exception=True)
        options: dict[str, Any] = {"loaders": False, "validate": False, "max_steps": 6, "ckpt_path": path}
        return fit(saver, *callbacks, module=own, **options)[1].history

    whole = run(tmp_path / "a")
    with pytest.raises(RuntimeError, match="out of memory"):
        run(tmp_path / "b", Fails())
    with warnings.catch_warnings():
        warnings.simplefilter("error", InexactResumeWarning)
        assert run(tmp_path / "c", path=by_step(tmp_path / "b")[3].model_path) == whole[3:]
