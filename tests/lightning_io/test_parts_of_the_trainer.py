"""What users' own trainers, strategies and precision plugins change is in no checkpoint, unless they save it."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor

from neuromanifold_gpt import ResumableDataLoader, SeparatedCheckpoint, list_checkpoints
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning

from .toy import NoisySamples, ToyModule, contents


class Scales(Precision):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.seconds = 4.0, 0.0
        self.kept = 2.0

    def pre_backward(self, tensor: Tensor, module: Any) -> Tensor:
        self.scale, self.seconds = self.scale * 1.1, time.monotonic()
        return super().pre_backward(tensor * self.kept, module)


class ScalesAndSaves(Scales):
    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.scale}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scale = state_dict["scale"]


class Anneals(SingleDeviceStrategy):
    def __init__(self) -> None:
        super().__init__(device=torch.device("cpu"))
        self.noise = 0.1

    def optimizer_step(self, *arguments: Any, **options: Any) -> Any:
        self.noise *= 0.9
        return super().optimizer_step(*arguments, **options)


class DrawsNoise(SingleDeviceStrategy):
    def __init__(self) -> None:
        super().__init__(device=torch.device("cpu"))
        self.generator = torch.Generator()

    def optimizer_step(self, optimizer: Any, closure: Any, *arguments: Any, **options: Any) -> Any:
        result = super().optimizer_step(optimizer, closure, *arguments, **options)
        with torch.no_grad():
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.add_(torch.randn(parameter.shape, generator=self.generator), alpha=0.01)
        return result


class Mines(Trainer):
    """Hard examples; what Lightning's own class keeps is its own affair."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.hard_ratio, self.should_stop = 1.0, False

    @property
    def steps_to_come(self) -> int:
        return 1

    @steps_to_come.setter
    def steps_to_come(self, value: int) -> None:
        self.hard_ratio = value / 10


class Remembers(DummyLogger):
    """Two lists of losses, of which a callback reads one."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []
        self.shown: list[float] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for kept in (self.losses, self.shown):
            kept += [value for name, value in metrics.items() if name == "train_loss"]


class Slows(Callback):
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        losses = trainer.logger.losses  # type: ignore[union-attr]
        trainer.optimizers[0].param_groups[0]["lr"] = 0.01 * min([1.0, *losses])


class Skips(_TrainingEpochLoop):
    """What Lightning's own class keeps is its own affair."""

    def advance(self, data_fetcher: Any) -> None:
        self.skipped = getattr(self, "skipped", 1.0) * 1.1
        super().advance(data_fetcher)


class WithOwnLoop(Trainer):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        own, loop = Skips(self, max_steps=self.max_steps), self.fit_loop
        own.skipped, own.val_loop = 1.0, loop.epoch_loop.val_loop
        loop.epoch_loop = own


class Watches(CPUAccelerator):
    batches = 0

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        self.batches += 1
        return {}


class WithOwnAccelerator(Trainer):
    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "accelerator": Watches()})


class Asks(Callback):
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.accelerator.get_device_stats(torch.device("cpu"))


class Weighs(Callback):
    """Sets a number on the trainer; what Lightning sets there, too, is its own affair."""

    def on_train_batch_end(self, tr: Trainer, *_: Any) -> None:  # type: ignore[override]
        tr.auxiliary_weight = 0.9 * getattr(tr, "auxiliary_weight", 1.0)  # type: ignore[attr-defined]
        tr.limit_val_batches = tr.global_step


class Plain(Trainer):
    def describe(self) -> str:
        return "as Lightning's"


class Module(ToyModule):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if isinstance(self.trainer, Mines):
            self.trainer.steps_to_come = batch_idx


def train(directory: Path, *callbacks: Callback, kind: type[Trainer] = Trainer, **options: Any) -> str:
    """What is said by a fit that begins, or goes on."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seed_everything(1, verbose=False)
        trainer = kind(
            **{"max_steps": 4, "logger": False, **options},
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[SeparatedCheckpoint(directory, every_n_train_steps=2), *callbacks],
        )
        trainer.fit(Module(), ResumableDataLoader(NoisySamples(), batch_size=4, seed=5), ckpt_path="last")
    return " ".join(str(w.message) for w in caught if w.category is InexactResumeWarning)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"kind": Mines}, "Mines.hard_ratio"),
        ({"kind": WithOwnLoop}, "Skips.skipped"),
        ({"strategy": Anneals}, "Anneals.noise"),
        ({"plugins": Scales}, "Scales.scale"),
    ],
)
def test_what_they_change_is_said(tmp_path: Path, options: dict[str, Any], name: str) -> None:
    made = {key: value if key == "kind" else value() for key, value in options.items()}
    assert f"values change in training that no checkpoint has: {name}. " in train(tmp_path, **made)


@pytest.mark.parametrize("options", [{}, {"kind": Plain}, {"plugins": ScalesAndSaves}])
def test_what_lightning_keeps_or_they_save_is_not(tmp_path: Path, options: dict[str, Any]) -> None:
    made = {key: value if key == "kind" else value() for key, value in options.items()}
    assert train(tmp_path, **made) == ""
    assert train(tmp_path, **{**made, "max_steps": 6}) == ""


def test_what_is_read_of_a_logger_is_said(tmp_path: Path) -> None:
    said = train(tmp_path / "read", Slows(), logger=Remembers(), log_every_n_steps=1)
    assert "values change in training that no checkpoint has: Remembers.losses. " in said
    assert "Remembers" not in train(tmp_path / "unread", logger=Remembers(), log_every_n_steps=1)


def test_what_an_accelerator_changes_is_said(tmp_path: Path) -> None:
    said = train(tmp_path, Asks(), kind=WithOwnAccelerator)
    assert "values change in training that no checkpoint has: Watches.batches. " in said


@pytest.mark.parametrize("kind", [Trainer, Plain])
def test_what_hooks_set_on_a_trainer_is_said(tmp_path: Path, kind: type[Trainer]) -> None:
    said = train(tmp_path, Weighs(), kind=kind)
    assert f"values change in training that no checkpoint has: {kind.__name__}.auxiliary_weight. " in said


def test_their_generators_go_on(tmp_path: Path) -> None:
    train(tmp_path / "whole", strategy=DrawsNoise(), max_steps=6)
    for steps in (2, 6):
        assert train(tmp_path / "parts", strategy=DrawsNoise(), max_steps=steps) == ""
    whole, parts = (list_checkpoints(tmp_path / name)[-1] for name in ("whole", "parts"))
    assert contents(whole) == contents(parts)
