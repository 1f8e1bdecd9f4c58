"""What a hook sets once, at a time that does not come again, is missed by a resumed run, and said."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from neuromanifold_gpt import SeparatedCheckpoint, resumable
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.data.errors import DataOrderWarning

from .toy import NoisySamples, ToyModule, fit

STEPS_OF_EPOCH = 7
PHASE: float | None = None  # a variable of a Python module
SAID = "values that no checkpoint has were there at the save, and are not here: "


class Weighting(Callback):
    """Weights of classes from some epoch on, as in deferred re-weighting."""

    weights: torch.Tensor | None = None

    def __init__(self, *, each_epoch: bool) -> None:
        self._each_epoch = each_epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1 or (self._each_epoch and trainer.current_epoch > 1):
            self.weights = torch.arange(3.0)


class WeightedModule(ToyModule):
    kind: str | None = None

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.scale, self.kind = 0.5, "focal"


class Phases(Callback):
    """Sets texts, numbers and a variable: of the epoch, which it takes back at its end, or for good."""

    phase: str | None = None
    rate: float | None = None
    file: str | None = None

    def __init__(self, *, for_good: bool) -> None:
        self._for_good = for_good

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        global PHASE
        if trainer.current_epoch == 1 or not self._for_good:
            self.phase, self.rate, PHASE = "fine-tuning", 0.5, 1.5
        self.file = self.file or f"{trainer.default_root_dir}/{trainer.current_epoch}"

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        global PHASE
        if not self._for_good:
            self.phase = self.rate = PHASE = None


def said_on_resume(directory: Path, callback: Callback, module: Any = None, *, steps: int) -> str:
    fit(callback, SeparatedCheckpoint(directory, every_n_train_steps=1), max_steps=2 * STEPS_OF_EPOCH, module=module)
    global PHASE
    PHASE = None
    resumed, again = type(module)() if module else None, Callback()
    if isinstance(callback, Weighting):
        again = Weighting(each_epoch=callback._each_epoch)
    elif isinstance(callback, Phases):
        again = Phases(for_good=callback._for_good)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        saver = SeparatedCheckpoint(directory, every_n_train_steps=1)
        fit(again, saver, ckpt_path="last", max_steps=2 * STEPS_OF_EPOCH + steps, module=resumed)
    return "\n".join(str(w.message) for w in caught if w.category is InexactResumeWarning)


def test_a_tensor_of_a_callback(tmp_path: Path) -> None:
    said = said_on_resume(tmp_path, Weighting(each_epoch=False), steps=STEPS_OF_EPOCH + 2)
    assert said.count(SAID) == 1
    assert f"{SAID}Weighting.weights." in said


def test_a_number_of_the_module(tmp_path: Path) -> None:
    said = said_on_resume(tmp_path, Callback(), WeightedModule(), steps=STEPS_OF_EPOCH + 2)
    assert f"{SAID}kind." in said  # and the number is restored


def test_texts_and_numbers_of_a_callback_and_variables_of_a_python_module(tmp_path: Path) -> None:
    said = said_on_resume(tmp_path, Phases(for_good=True), steps=STEPS_OF_EPOCH + 2)
    assert said.count(SAID) == 1
    assert f"{SAID}Phases.phase; Phases.rate; {__name__}.PHASE." in said


def test_but_not_what_is_taken_back(tmp_path: Path) -> None:
    steps = 2 * STEPS_OF_EPOCH - 3
    saved = fit(Phases(for_good=False), SeparatedCheckpoint(tmp_path, every_n_train_steps=steps), max_steps=steps)
    again = SeparatedCheckpoint(tmp_path, every_n_train_steps=3 * STEPS_OF_EPOCH)  # at the end of an epoch
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Phases(for_good=False), again, ckpt_path="last", max_steps=3 * STEPS_OF_EPOCH)
    assert saved[0].global_step == steps
    assert not [w for w in caught if SAID in str(w.message)]


@pytest.mark.parametrize("steps", [2, STEPS_OF_EPOCH + 2])
def test_but_not_what_comes_again(tmp_path: Path, steps: int) -> None:
    assert SAID not in said_on_resume(tmp_path, Weighting(each_epoch=True), steps=steps)


class Relabelled(NoisySamples):
    """Reads a file when it comes to a sample of it, and labels that a hook may have found."""

    labels: Any = None
    rows: Any = None

    def __getitem__(self, i: int) -> Any:
        if i == 20:
            self.rows = [1.0] * 26
        x, y, i = super().__getitem__(i)
        return x, y if self.labels is None else self.labels[i][None], i


class Labels(Callback):
    """Finds them once."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            trainer.train_dataloader.dataset.labels = torch.arange(26.0)


@pytest.mark.parametrize("wrap", [lambda loader: loader, resumable], ids=["stock", "resumable"])
@pytest.mark.parametrize("callback", [Labels, Callback])
def test_labels_of_a_dataset_and_not_what_samples_need(tmp_path: Path, wrap: Any, callback: Any) -> None:
    class Module(ToyModule):
        def train_dataloader(self) -> Any:
            return wrap(DataLoader(Relabelled(), 4))

    saver = SeparatedCheckpoint(tmp_path, every_n_train_steps=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(saver, callback(), module=Module(), loaders=False, validate=False, max_steps=2 * STEPS_OF_EPOCH + 1)
    said = [str(warning.message) for warning in caught if warning.category is DataOrderWarning]
    assert len(said) == (callback is Labels)
    assert all("dataset.labels: training changes it, and no position has it" in text for text in said)


class HasATeacher(ToyModule):
    """The weights behind the first epoch are one from then on, which no step reads."""

    teacher: torch.Tensor | None = None

    def on_train_epoch_end(self) -> None:
        if self.current_epoch == 0:
            self.teacher = next(self.parameters()).detach().clone()


class BornAgain(HasATeacher):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss if self.teacher is None else loss + (next(self.parameters()) - self.teacher).square().sum()


REFERENCE: Any = None  # a variable of a Python module


class Anchored(Callback):
    """What its hook around a step pulls to is a module in a variable."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if REFERENCE is not None:
            next(pl_module.parameters()).grad.add_(REFERENCE.weight.detach().mean())  # type: ignore[union-attr]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        global REFERENCE
        if trainer.current_epoch == 0:
            REFERENCE = torch.nn.Linear(1, 1)


def said_without_a_save(directory: Path, *parts: Any, steps: int) -> str:
    """By a process that trains some steps behind the save of the first one, and saves nothing."""
    global REFERENCE
    kind, *callbacks = parts
    saves = 2 * STEPS_OF_EPOCH - 3
    fit(
        *(c() for c in callbacks),
        SeparatedCheckpoint(directory, every_n_train_steps=saves),
        max_steps=saves,
        module=kind(),
    )
    REFERENCE = None
    again = SeparatedCheckpoint(directory, every_n_train_steps=100)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(*(c() for c in callbacks), again, ckpt_path="last", max_steps=saves + steps, module=kind())
    return "\n".join(str(w.message) for w in caught if w.category is InexactResumeWarning)


@pytest.mark.parametrize(
    ("parts", "name"), [((BornAgain,), "teacher"), ((ToyModule, Anchored), f"{__name__}.REFERENCE")]
)
def test_what_steps_read_is_missed_in_the_first_one(tmp_path: Path, parts: Any, name: str) -> None:
    assert f"{SAID}{name}." in said_without_a_save(tmp_path, *parts, steps=1)


def test_what_others_read_is_missed_where_the_fit_ends_behind_an_epoch(tmp_path: Path) -> None:
    assert SAID not in said_without_a_save(tmp_path / "within", HasATeacher, steps=1)
    assert f"{SAID}teacher." in said_without_a_save(tmp_path / "behind", HasATeacher, steps=3)
