"""Samples that reach the object that trains on them, and with it the loader itself: ``collate_fn=self.collate``."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler

from neuromanifold_gpt import ResumableDataLoader, latest_checkpoint, load_checkpoint, resumable, save_checkpoint
from neuromanifold_gpt.state.owned_state import OwnedState

SIZE, BATCH, SAVED_AT, STEPS = 28, 4, (5, 12), 17


class Reached(Dataset[Any]):
    def __init__(self, trainer: Any = None, transform: Any = None, other: Any = None) -> None:
        self.trainer, self.transform, self.other = trainer, transform, other

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, i: int) -> Any:
        return self.transform(i) if self.transform is not None else i


class Shuffled(Sampler[int]):
    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def __len__(self) -> int:
        return SIZE

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.trainer.loader.epoch)
        return iter(torch.randperm(SIZE, generator=generator).tolist())


class Batches(Sampler[list[int]]):
    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def __len__(self) -> int:
        return SIZE // BATCH

    def __iter__(self) -> Iterator[list[int]]:
        return iter(BatchSampler(Shuffled(self.trainer), BATCH, drop_last=False))


class Stream(IterableDataset[int]):
    def __init__(self, trainer: Any) -> None:
        self.trainer, self.passes = trainer, 0

    def __iter__(self) -> Iterator[int]:
        return iter(range(SIZE))


class Trains:
    """As trainer classes are written."""

    def __init__(self, kind: str, workers: int) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Linear(BATCH, BATCH)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, 0.9)
        self.seen: list[Any] = []
        self.step, self.added = 0, 0
        self.loader = self.made(kind, {"batch_size": BATCH, "num_workers": workers})
        self.validates_on = DataLoader(range(SIZE))
        self.last_step = STEPS

    def made(self, kind: str, options: dict[str, Any]) -> Any:
        shuffled = functools.partial(ResumableDataLoader, shuffle=True, **options)
        if kind == "method":
            return shuffled(range(SIZE), collate_fn=self.collate)
        if kind == "lambda":
            return shuffled(range(SIZE), collate_fn=lambda samples: self.collate(samples))
        if kind == "dataset":
            return shuffled(Reached(self))
        if kind == "transform":
            return shuffled(Reached(transform=self.transform))
        if kind == "other loader":
            self.other = shuffled(range(SIZE))
            return shuffled(Reached(other={"first": self.other}))
        if kind == "wrapped":
            return resumable(DataLoader(range(SIZE), shuffle=True, collate_fn=self.collate, **options))
        if kind == "sampler":
            return resumable(DataLoader(range(SIZE), sampler=Shuffled(self), **options))
        if kind == "batch sampler":
            options = {"num_workers": options["num_workers"], "batch_sampler": Batches(self)}
            return resumable(DataLoader(range(SIZE), **options))
        return resumable(DataLoader(Stream(self), **options))

    def collate(self, samples: list[int]) -> torch.Tensor:
        return torch.tensor(samples) + 100 * self.added

    def transform(self, sample: int) -> int:
        return sample + 100 * self.added

    def fit(self, folder: Path, steps: int) -> list[Any]:
        parts: Any = {"model": self.model, "optimizers": self.optimizer, "schedulers": self.scheduler}
        if checkpoint := latest_checkpoint(folder):
            loaded = load_checkpoint(checkpoint)
            self.step = self.added = loaded.global_step
            loaded.restore(**parts, loaders=self.loader)
            assert self.step == loaded.global_step
            assert self.scheduler.last_epoch == self.step
        while self.step < steps:
            for batch in self.loader:
                self.model(batch.float() / SIZE).pow(2).mean().backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.scheduler.step()
                self.step += 1
                self.added += 1
                self.seen.append((batch.tolist(), self.model.weight.sum().item()))
                if self.step in (*SAVED_AT, steps):
                    save_checkpoint(folder, step=self.step, **parts, loaders=self.loader)
                if self.step == steps:
                    break
        return self.seen


KINDS = ("method", "lambda", "dataset", "transform", "other loader", "wrapped", "sampler", "batch sampler", "stream")


@pytest.mark.filterwarnings("ignore:Stream has no state_dict")
@pytest.mark.parametrize(
    ("kind", "workers"), [*((kind, 0) for kind in KINDS), ("method", 2), ("transform", 2), ("sampler", 2)]
)
def test_goes_on_where_it_was(kind: str, workers: int, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Stream has no state_dict")
        whole = Trains(kind, workers).fit(tmp_path / "whole", STEPS)
        resumed = [step for last in (*SAVED_AT, STEPS) for step in Trains(kind, workers).fit(tmp_path / "parts", last)]
    assert resumed == whole


def test_what_trains_is_no_state_of_its_samples_but_what_they_have_too_is() -> None:
    trainer = Trains("method", 0)
    transform = Reached(trainer)
    trainer.transform = transform  # type: ignore[method-assign, assignment]
    owned = OwnedState({"collate_fn": trainer.collate, "dataset": transform})
    found = owned.objects()
    for thing in (trainer, trainer.optimizer, trainer.scheduler, trainer.loader, trainer.validates_on):
        assert not any(thing is other for other in found)
    assert any(transform is other for other in found)


def test_an_object_without_loader_whose_method_collates_is_state() -> None:
    trainer = Trains("dataset", 0)
    del trainer.loader
    owned = OwnedState({"collate_fn": trainer.collate})
    trainer.added = 3
    assert owned.changed_values() == {"collate_fn.self.added": 3}


def test_generators_of_what_trains_are_seeded_for_its_samples() -> None:
    class Draws(Trains):
        def collate(self, samples: list[int]) -> torch.Tensor:
            if not hasattr(self, "generator"):
                self.generator = torch.Generator().manual_seed(len(self.seen))
            return torch.rand(1, generator=self.generator)

    drawn = []
    for seen in ([], [1, 2]):
        trainer = Draws("method", 0)
        trainer.seen = seen
        drawn.append([batch.tolist() for batch in trainer.loader])
    assert drawn[0] == drawn[1]


def test_goes_to_workers_that_are_spawned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    trainer = Trains("dataset", 0)
    trainer.loader = ResumableDataLoader(
        range(SIZE), BATCH, num_workers=1, collate_fn=trainer.collate, multiprocessing_context="spawn"
    )
    assert [batch.tolist() for batch in trainer.loader][1] == [4, 5, 6, 7]


class Hard(Shuffled):
    """Looks at the learning rate; what it holds is put back by ``restore()``, not by the position."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(SIZE))


class Annealed(Stream):
    """A stream with a state of its own."""

    def state_dict(self) -> dict[str, int]:
        return {"passes": self.passes}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.passes = state["passes"]


@pytest.mark.parametrize("held", ["optimizer", "scheduler"])
@pytest.mark.parametrize("holder", [Hard, Annealed])
def test_optimizers_and_schedulers_are_not_taken_back(holder: Any, held: str, tmp_path: Path) -> None:
    def run(directory: Path, steps: int) -> list[float]:
        model = torch.nn.Linear(1, 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=1.0)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        holds = holder({"optimizer": optimizer, "scheduler": scheduler}[held])
        stock = DataLoader(holds, 4) if holder is Annealed else DataLoader(torch.arange(float(SIZE)), 4, sampler=holds)
        saved = {"model": model, "optimizers": optimizer, "schedulers": scheduler, "loaders": resumable(stock)}
        step = load_checkpoint(found).restore(**saved).global_step if (found := latest_checkpoint(directory)) else 0
        while step < steps:
            for batch in saved["loaders"]:
                optimizer.zero_grad()
                model(batch.float()[:, None]).square().mean().backward()
                optimizer.step()
                scheduler.step()
                step += 1
                if step == steps:
                    save_checkpoint(directory, step=step, **saved)
                    break
        state = optimizer.state_dict()["state"][0]
        return [optimizer.param_groups[0]["lr"], scheduler.last_epoch, state["step"].item()]

    assert run(tmp_path, 5) == [0.5**5, 5, 5]
    assert run(tmp_path, 8) == [0.5**8, 8, 8]
