"""Layers, functions, classes and slices that training changes in a module or a callback: said at the save."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from neuromanifold_gpt import ResumableDataLoader, SeparatedCheckpoint
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning

from .toy import fit_or_go_on

CHANGES = "values change in training that no checkpoint has: "


def double(value: Tensor) -> Tensor:
    return 2 * value


def scaled(value: Tensor, by: float) -> Tensor:
    return by * value


class Scales:
    def __call__(self, value: Tensor) -> Tensor:
        return value * 3


class Halves(Scales):
    pass


class Module(LightningModule):
    """What is ``kept`` is as the test gives it."""

    def __init__(self, kept: Any = None) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
        self.heads = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
        self.kept = kept

    def forward(self, batch: Tensor) -> Tensor:
        return self.layer(batch)

    def other(self, batch: Tensor) -> Tensor:
        return self.layer(batch) * 2

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)

    def train_dataloader(self) -> DataLoader[Tensor]:
        return ResumableDataLoader(torch.arange(1.0, 9.0).unsqueeze(1))


class Changes(Callback):
    """Something, before a step."""

    def __init__(self, change: Callable[[Module], None], step: int = 3) -> None:
        self.change, self.step = change, step

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.change(pl_module)


class Holds(Callback):
    def __init__(self) -> None:
        self.weigh, self.criterion = double, nn.MSELoss()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step:
            self.weigh, self.criterion = torch.relu, nn.L1Loss()


def said(directory: Path, module: LightningModule, *callbacks: Callback, max_steps: int = 9, every: int = 4) -> str:
    """What is said of values that change."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit_or_go_on(directory, module, *callbacks, max_steps=max_steps, every_n_train_steps=every)
    of_it = [warning for warning in caught if warning.category is InexactResumeWarning]
    texts = [str(warning.message) for warning in of_it if CHANGES in str(warning.message)]
    return "\n".join(text.partition(CHANGES)[2].partition(". ")[0] for text in texts)


def gives(kept: Any) -> Callable[[Module], None]:
    return lambda module: setattr(module, "kept", kept)


@pytest.mark.parametrize(
    ("before", "change"),
    [
        (functional.mse_loss, gives(functional.l1_loss)),
        (double, gives(None)),
        (None, gives(double)),
        (lambda value: value, gives(lambda value: -value)),
        (functools.partial(scaled, by=1.0), gives(functools.partial(scaled, by=2.0))),
        (functools.partial(double), gives(functools.partial(functional.relu))),
        (torch.relu, gives(torch.tanh)),
        (torch.distributions.Normal, gives(torch.distributions.Laplace)),
        (torch.float32, gives(torch.bfloat16)),
        (slice(0, 3), gives(slice(0, 2))),
        (range(3), gives(range(2))),
        ([], gives([double])),
        ([double], gives([functional.relu])),
        ({"a": double}, gives({"a": functional.relu})),
        (Scales(), gives(Halves())),
        ([nn.ReLU()], gives([nn.GELU()])),
        (nn.ReLU(), gives(nn.GELU())),
        (nn.ReLU(), gives(None)),
        (None, gives(nn.ReLU())),
        (nn.Sequential(nn.ReLU(), nn.GELU()), gives(nn.Sequential(nn.ReLU()))),
        (None, lambda module: gives([module.heads[1]])(module)),
    ],
)
def test_what_a_module_holds(before: Any, change: Any, tmp_path: Path) -> None:
    module = Module(before)
    if before is None:
        module.kept = [] if "heads" in change.__code__.co_names else None
    assert said(tmp_path, module, Changes(change)).partition(";")[0] == "kept"


@pytest.mark.parametrize(
    ("names", "change"),
    [
        ("layer.1", lambda module: module.layer.__setitem__(1, nn.Tanh())),
        ("layer", lambda module: module.layer.append(nn.Tanh())),
        ("forward", lambda module: setattr(module, "forward", lambda batch: module.layer(batch) * 2)),
        ("layer.1.forward", lambda module: setattr(module.layer[1], "forward", torch.tanh)),
        ("which layers Module has", lambda module: module.add_module("drop", nn.Dropout())),
    ],
)
def test_layers_and_methods_by_their_names(names: str, change: Any, tmp_path: Path) -> None:
    assert said(tmp_path, Module(), Changes(change)) == names


def test_which_of_its_own_methods_and_layers(tmp_path: Path) -> None:
    module = Module()
    module.kept, module.list, module.now = module.forward, [module.heads[0]], module.heads[0]
    module.one = module.heads[0].forward

    def change(module: Any) -> None:
        module.kept, module.list[0], module.now = module.other, module.heads[1], module.heads[1]
        module.one = module.heads[1].forward

    assert said(tmp_path, module, Changes(change)) == "kept; list; now; one"


@pytest.mark.parametrize(("before", "after"), [(0.5, None), (None, 0.5), (None, torch.ones(2)), (torch.ones(2), None)])
def test_numbers_and_tensors_that_come_or_go_are_as_before(before: Any, after: Any, tmp_path: Path) -> None:
    assert said(tmp_path, Module(before), Changes(gives(after))) == ""


def test_what_a_callback_holds_in_the_process_that_changes_it(tmp_path: Path) -> None:
    assert said(tmp_path, Module(), Holds(), max_steps=12) == "Holds.criterion; Holds.weigh"
    said(tmp_path / "b", Module(), Holds(), max_steps=8)
    assert said(tmp_path / "b", Module(), Holds(), max_steps=12) == "Holds.criterion; Holds.weigh"


def test_how_to_do_better_is_said(tmp_path: Path) -> None:
    with pytest.warns(InexactResumeWarning, match="Which function or layer is used, let a number decide"):
        Trainer(
            callbacks=[Holds(), SeparatedCheckpoint(tmp_path, every_n_train_steps=4)],
            max_steps=12,
            logger=False,
            enable_progress_bar=False,
            accelerator="cpu",
        ).fit(Module())


def made_anew(module: Any) -> None:
    module.kept = functools.partial(scaled, by=1.0)
    module.layer[1] = nn.ReLU()
    module.list = [module.forward]


class SetsUp(Module):
    """Before its first step, and in it, as each process does."""

    def __init__(self) -> None:
        super().__init__()
        self.loss: Any = double
        self.made: Any = None
        self.list: list[Any] = []
        self.lazy = nn.LazyLinear(1)

    def on_train_start(self) -> None:
        self.loss, self.list = functional.l1_loss, [double]

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.made = self.made or torch.jit.script(double)
        self.kept = self.kept or functools.partial(scaled, by=1.0)
        return super().training_step(batch, batch_idx) + self.lazy(batch).sum()


class Patches(Callback):
    """As strategies and compilers do, for a while or for good."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        pl_module.forward = pl_module.forward  # type: ignore[method-assign]
        pl_module.layer.__dict__["_compiled_call_impl"] = (
            None if trainer.global_step < 3 else pl_module.layer._call_impl
        )


@pytest.mark.parametrize("callback", [Changes(made_anew), Patches()])
def test_what_is_made_anew_or_patched_is_the_same(callback: Callback, tmp_path: Path) -> None:
    module = Module(functools.partial(scaled, by=1.0))
    module.list = [module.forward]
    assert said(tmp_path, module, callback) == ""


def test_what_is_set_up_until_the_first_step_is_not_said(tmp_path: Path) -> None:
    assert said(tmp_path, SetsUp(), max_steps=3, every=1) == ""
    assert said(tmp_path, SetsUp(), max_steps=6, every=1) == ""


def test_a_change_in_the_first_step_behind_a_resume_is_said(tmp_path: Path) -> None:
    said(tmp_path, Module(double), max_steps=4)
    assert said(tmp_path, Module(double), Changes(gives(functional.relu), step=4), max_steps=8) == "kept"


class Grows(Module):
    """The program makes what the state dict needs, before it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.book, self.late = nn.ModuleList(), Book(), None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.grow(len([name for name in checkpoint["state_dict"] if name.startswith("pool.")]) // 2)

    def grow(self, size: int) -> None:
        while len(self.pool) < size:
            self.pool.append(nn.Linear(1, 1))
        self.late = nn.Linear(1, 1) if size else None

    def on_train_batch_end(self, *_: Any) -> None:
        self.grow(self.global_step // 3)
        if self.global_step == 3:
            self.book.codes = torch.ones(1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.layer.parameters(), 0.01)


class Book(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", None)


def test_layers_with_weights_that_appear_are_in_the_state_dict(tmp_path: Path) -> None:
    assert said(tmp_path, Grows(), max_steps=8) == ""


def test_a_compiled_part_is_the_part(tmp_path: Path) -> None:
    def compile_layer(module: Any) -> None:
        module.layer = torch.compile(module.layer, backend="eager")

    assert "layer" not in said(tmp_path, Module(), Changes(compile_layer)).split("; ")
