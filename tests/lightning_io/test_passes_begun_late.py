"""Loaders with a position whose pass begins with its first batch: the seed that it draws then was drawn already."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from neuromanifold_gpt import SeparatedCheckpoint
from neuromanifold_gpt.checkpoint.errors import CheckpointWarning

from .toy import NoisySamples, ToyModule, by_step, contents, fit


class QuietSamples(NoisySamples):
    """What workers draw begins anew behind a resume."""

    def __getitem__(self, i: int) -> Any:
        x = torch.linspace(-1, 1, 8) * (i + 1) / self.size
        return x, x.sum()[None], i


class Streaming(DataLoader):
    """As those of litdata and mosaicml-streaming."""

    def __init__(self, **options: Any) -> None:
        super().__init__(QuietSamples(), 4, **options)
        self.given, self.is_restored = 0, False

    def __iter__(self) -> Any:
        self.given, self.is_restored = self.given if self.is_restored else 0, False
        for number, batch in enumerate(super().__iter__()):
            if number >= self.given:
                self.given += 1
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.given, self.is_restored = state["given"] % 7, True


class EndsItsPass(Streaming):
    """Put to the end of a pass, it gives no batch at first, as torchdata's ``StatefulDataLoader``."""

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.given, self.is_restored = state["given"], True


class Strided(torch.utils.data.Sampler[list[int]]):
    """It goes on where it is."""

    begin = 0

    def __len__(self) -> int:
        return 7

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(self.begin, 25, 4):
            yield list(range(start, min(start + 4, 26)))


class Around:
    """No ``DataLoader``, but with one in it. What its samples draw, they draw from the global generators."""

    def __init__(self) -> None:
        self.given = self.goes_on_at = 0
        self.order = Strided()

    def __len__(self) -> int:
        return 7

    def __iter__(self) -> Any:
        self.given, self.goes_on_at = self.goes_on_at, 0
        self.order.begin = 4 * self.given
        for batch in DataLoader(NoisySamples(), batch_sampler=self.order):
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.goes_on_at = state["given"] % 7


class OfUnknownLength(Around):
    __len__ = None  # type: ignore[assignment]


LOADERS: dict[str, Callable[[], Any]] = {
    "here": Streaming,
    "that ends its pass first": EndsItsPass,
    "with workers": lambda: Streaming(num_workers=1),
    "around a loader": Around,
    "of unknown length": OfUnknownLength,
}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("name", LOADERS)
def test_what_the_model_draws_behind_a_resume_is_what_it_would_have_drawn(name: str, tmp_path: Path) -> None:
    def run(directory: str, path: Path | None = None) -> Any:
        saver = SeparatedCheckpoint(tmp_path / directory, every_n_train_steps=1, save_top_k=-1)
        module = ToyModule()
        module.train_dataloader = LOADERS[name]  # type: ignore[method-assign]
        with warnings.catch_warnings():
            warnings.simplefilter("error", CheckpointWarning)
            return fit(saver, module=module, loaders=False, validate=False, ckpt_path=path, max_steps=9)[1].history

    whole = run("a")
    saved = by_step(tmp_path / "a")
    for step in (3, 7):
        again = run(f"b{step}", saved[step].model_path)
        assert again == whole[step:], f"from step {step}"
        assert contents(by_step(tmp_path / f"b{step}")[9]) == contents(saved[9])
