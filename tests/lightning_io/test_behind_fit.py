"""A program that goes on behind ``fit``: resumed where that has nothing left to train, it does what it did before."""

from __future__ import annotations

import contextlib
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
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


class Ends(Callback):
    """Ends a fit inside a hook of step 10, the third of the second epoch."""

    def __init__(self, hook: str, error: BaseException) -> None:
        self._hook, self._error = hook, error

    def on_before_backward(self, trainer: Trainer, *_: Any) -> None:
        self._end(trainer, "on_before_backward", 9)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._end(trainer, "on_train_batch_end", 10)

    def _end(self, trainer: Trainer, hook: str, step: int) -> None:
        if (hook, step) == (self._hook, trainer.global_step):
            raise self._error


def resumed_from_behind(directory: Path, loader: str, *callbacks: Callback) -> tuple[Any, Any]:
    """What a fit gives that was saved behind its end, and of one that nothing has ended."""
    seed_everything(3, verbose=False)
    whole = Draws()
    make_trainer(directory / "a", max_steps=16).fit(whole, LOADERS[loader]())
    seed_everything(3, verbose=False)
    trainer, path = make_trainer(directory / "b", max_steps=16), directory / "own.ckpt"
    trainer.callbacks.extend(callbacks)  # type: ignore[attr-defined]
    with contextlib.suppress(RuntimeError, SystemExit):
        trainer.fit(Draws(), LOADERS[loader]())
    random.random()
    trainer.save_checkpoint(path)
    seed_everything(4, verbose=False)
    rest = Draws()
    make_trainer(directory / "c", max_steps=16).fit(rest, LOADERS[loader](), ckpt_path=path)
    return rest.history, [row for row in whole.history if row[0] >= rest.history[0][0]]


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("error", [RuntimeError(), KeyboardInterrupt(), SystemExit(143)], ids=repr)
def test_a_save_behind_a_fit_that_has_ended_inside_a_hook_goes_on_there(
    tmp_path: Path, loader: str, error: BaseException
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", InexactResumeWarning)
        rest, same = resumed_from_behind(tmp_path, loader, Ends("on_train_batch_end", error))
    assert rest == same
    assert len(same) == 6


def test_a_save_behind_a_fit_that_has_ended_inside_a_step_is_said(tmp_path: Path) -> None:
    with pytest.warns(InexactResumeWarning, match="step 9 is saved before it is finished"):
        resumed_from_behind(tmp_path, "DataLoader", Ends("on_before_backward", RuntimeError()))


def test_hooks_that_a_save_behind_the_fit_forestalls_are_said(tmp_path: Path) -> None:
    ends, behind = Ends("on_train_batch_end", RuntimeError()), Ends("", RuntimeError())
    with pytest.warns(InexactResumeWarning, match="saved inside on_train_batch_end, .* before it was called of Ends: "):
        resumed_from_behind(tmp_path, "DataLoader", ends, behind)


def test_a_save_behind_a_fit_without_a_step(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=0)
    trainer.fit(Draws(), LOADERS["DataLoader"]())
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    module = Draws()
    make_trainer(tmp_path, max_steps=2).fit(module, LOADERS["DataLoader"](), ckpt_path=tmp_path / "own.ckpt")
    assert [step for step, *_ in module.history] == [0, 1]
