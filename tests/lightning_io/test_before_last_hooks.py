"""A fit that ends within an epoch calls hooks of the epoch's end, which a run that goes on calls at its real end."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn

from neuromanifold_gpt import ResumableDataLoader, SeparatedCheckpoint
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning

from .toy import NoisySamples, ToyModule, by_step, contents, fit


class ChangesAtEpochEnd(ToyModule):
    """By a function, in the middle of an epoch as at its end."""

    change: Callable[["ChangesAtEpochEnd"], None]

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def on_train_epoch_end(self) -> None:
        with torch.no_grad():
            type(self).change(self)


def changed_by(change: Callable[[ChangesAtEpochEnd], None]) -> ChangesAtEpochEnd:
    torch.manual_seed(0)
    return type("Changed", (ChangesAtEpochEnd,), {"change": change})()


def scale_buffer(module: ChangesAtEpochEnd) -> None:
    module.scale *= 0.9
    module.net[1].running_mean = module.net[1].running_mean * 0.5


def step_scheduler(module: ChangesAtEpochEnd) -> None:
    module.lr_schedulers().step()


def set_rate(module: ChangesAtEpochEnd) -> None:
    module.optimizers().param_groups[0]["weight_decay"] *= 0.5


def freeze(module: ChangesAtEpochEnd) -> None:
    module.net[0].requires_grad_(not module.net[0].weight.requires_grad)


def every_step(directory: Path) -> SeparatedCheckpoint:
    return SeparatedCheckpoint(directory, every_n_train_steps=1, save_top_k=-1)


@pytest.mark.parametrize("change", [scale_buffer, step_scheduler, set_rate, freeze])
def test_what_is_small_is_saved_as_it_was_before(
    change: Callable[[ChangesAtEpochEnd], None], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    fit(every_step(tmp_path / "a"), module=changed_by(change), max_steps=16)
    cut, _ = fit(SeparatedCheckpoint(tmp_path / "b"), module=changed_by(change), max_steps=10)
    cut.save_checkpoint(tmp_path / "by-hand.ckpt")
    for number, path in enumerate((by_step(tmp_path / "b")[10].model_path, tmp_path / "by-hand.ckpt")):
        fit(every_step(tmp_path / f"c{number}"), module=changed_by(change), ckpt_path=path, max_steps=16)
        assert contents(by_step(tmp_path / f"c{number}")[16]) == contents(by_step(tmp_path / "a")[16])
    assert not [warning for warning in recwarn if "training ended" in str(warning.message)]


def shrink_weight(module: ChangesAtEpochEnd) -> None:
    module.net[0].weight.data.mul_(0.9)  # past the tensor's own count of changes
    scale_buffer(module)


def clear_moments(module: ChangesAtEpochEnd) -> None:
    module.optimizers().state[module.net[4].bias]["exp_avg"].zero_()


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (shrink_weight, "net.0.weight; net.1.running_mean; scale"),
        (clear_moments, "exp_avg of net.4.bias in the optimizer"),
    ],
)
def test_what_is_large_is_said_at_the_save_and_on_the_resume(
    change: Callable[[ChangesAtEpochEnd], None], names: str, tmp_path: Path
) -> None:
    with pytest.warns(
        InexactResumeWarning, match=f"resume from this save cannot be exact: .* changed: {names}. Save by"
    ):
        _, module = fit(SeparatedCheckpoint(tmp_path / "a"), module=changed_by(change), max_steps=10)
    saved = torch.load(by_step(tmp_path / "a")[10].model_path, weights_only=True)["state_dict"]
    assert all(torch.equal(saved[name], value) for name, value in module.state_dict().items())
    with pytest.warns(InexactResumeWarning, match=f"this resume is not exact: hooks .* changed: {names}."):
        fit(
            every_step(tmp_path / "b"),
            module=changed_by(change),
            ckpt_path=by_step(tmp_path / "a")[10].model_path,
        )


def test_averages_that_take_the_place_of_weights_are_said(tmp_path: Path) -> None:
    trainer, _ = fit(SeparatedCheckpoint(tmp_path / "a"), WeightAveraging(), max_steps=14)
    with pytest.warns(InexactResumeWarning, match="resume from this save cannot be exact: .* net.0.bias"):
        trainer.save_checkpoint(tmp_path / "by-hand.ckpt")


def evaluate_with_other_weights(module: ChangesAtEpochEnd) -> None:
    before = {name: value.clone() for name, value in module.state_dict().items()}
    for parameter in module.parameters():
        parameter.mul_(0.9)
    module.load_state_dict(before)


def test_hooks_that_put_back_what_they_change_are_not_said(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", InexactResumeWarning)
        module = changed_by(evaluate_with_other_weights)
        fit(SeparatedCheckpoint(tmp_path / "a"), module=module, max_steps=10)


class Losses(nn.Module):
    """Of an epoch, in the extra state."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[float] = []

    def get_extra_state(self) -> list[float]:
        return self.values[:]

    def set_extra_state(self, state: list[float]) -> None:
        self.values = state[:]


class Collects(ToyModule):
    """The losses of an epoch, by which it weighs the next ones."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.values().append(loss.item())
        return loss * (1 + 0.1 * len(self.values()))

    def on_train_epoch_end(self) -> None:
        self.values().clear()

    def values(self) -> list[float]:
        raise NotImplementedError


class InExtraState(Collects):
    def __init__(self) -> None:
        super().__init__()
        self.losses = Losses()

    def values(self) -> list[float]:
        return self.losses.values


class InDataModule(Collects):
    def values(self) -> list[float]:
        return self.trainer.datamodule.values  # type: ignore[attr-defined, no-any-return]


class BySaveHook(Collects):
    def __init__(self) -> None:
        super().__init__()
        self.collected: list[float] = []

    def values(self) -> list[float]:
        return self.collected

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["collected"] = self.values()[:]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.collected = checkpoint["collected"]


class OfLosses(LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.values: list[float] = []

    def train_dataloader(self) -> ResumableDataLoader:
        return ResumableDataLoader(NoisySamples(), batch_size=4, shuffle=True, seed=5)

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values[:]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values = state["values"][:]


def collect(kind: type[Collects], saver: SeparatedCheckpoint, max_steps: int, path: Path | None = None) -> None:
    seed_everything(1 if path is None else 7, verbose=False)
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", callbacks=[saver], max_steps=max_steps, **options)
    trainer.fit(kind(), datamodule=OfLosses(), ckpt_path=path)


@pytest.mark.parametrize("kind", [InExtraState, InDataModule])
def test_states_are_saved_as_they_were_before(kind: type[Collects], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", InexactResumeWarning)
        collect(kind, every_step(tmp_path / "a"), 16)
        collect(kind, SeparatedCheckpoint(tmp_path / "b"), 10)
        collect(kind, every_step(tmp_path / "c"), 16, by_step(tmp_path / "b")[10].model_path)
    assert contents(by_step(tmp_path / "c")[16]) == contents(by_step(tmp_path / "a")[16])


def test_what_a_save_hook_saves_is_said_if_they_change_it(tmp_path: Path) -> None:
    with pytest.warns(InexactResumeWarning, match="changed: self.collected in on_save_checkpoint of BySaveHook. Save"):
        collect(BySaveHook, SeparatedCheckpoint(tmp_path), 10)
    with pytest.warns(InexactResumeWarning, match="this resume is not exact: .* self.collected in on_save_checkpoint"):
        collect(BySaveHook, every_step(tmp_path / "b"), 12, by_step(tmp_path)[10].model_path)


class StopsBehindBatch(Callback):
    def __init__(self, number: int) -> None:
        self._number = number

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == self._number:
            trainer.should_stop = True


def test_a_fit_that_ends_within_an_accumulation_window_goes_on_in_it(tmp_path: Path) -> None:
    options = {"accumulate_grad_batches": 3, "validate": False, "max_steps": 8}
    fit(every_step(tmp_path / "a"), **options)
    fit(SeparatedCheckpoint(tmp_path / "b"), StopsBehindBatch(10), **options)  # of the second epoch, the fourth batch
    fit(every_step(tmp_path / "c"), ckpt_path=by_step(tmp_path / "b")[4].model_path, **options)
    assert contents(by_step(tmp_path / "c")[8]) == contents(by_step(tmp_path / "a")[8])
