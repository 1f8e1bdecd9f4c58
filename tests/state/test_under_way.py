"""Batches of a plain loop that come from a generator function which only its ``for`` holds, or from an open file."""

from __future__ import annotations

import contextlib
import csv
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neuromanifold_gpt import ResumableDataLoader, latest_checkpoint, load_checkpoint, save_checkpoint
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning

SAID = "no checkpoint has: "


def batches(count: int) -> Iterator[Tensor]:
    for i in torch.randperm(count).tolist():
        yield torch.tensor([float(i)])


class Trains:
    """Saves behind every second step."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.step = directory, 0
        torch.manual_seed(3)
        self.model = nn.Linear(1, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        if checkpoint := latest_checkpoint(directory):
            loaded = load_checkpoint(checkpoint).restore(model=self.model, optimizers=self.optimizer)
            self.step = loaded.global_step

    def on(self, batch: Any, **parts: Any) -> None:
        self.optimizer.zero_grad()
        self.model(torch.as_tensor(batch).reshape(1)).square().mean().backward()
        self.optimizer.step()
        self.step += 1
        if self.step % 2 == 0:
            save_checkpoint(self.directory, step=self.step, model=self.model, optimizers=self.optimizer, **parts)


def said(loop: Any, *arguments: Any) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop(*arguments)
    return "\n".join(str(warning.message) for warning in caught if warning.category is InexactResumeWarning)


def over_a_generator(directory: Path, steps: int) -> None:
    train = Trains(directory)
    for number, batch in enumerate(batches(12)):
        train.on(batch)
        if number + 1 == steps:
            break


def over_lines(directory: Path, path: Path) -> None:
    train = Trains(directory)
    with path.open() as lines:
        for line in lines:
            train.on(float(line))


def over_rows(directory: Path, path: Path) -> None:
    train = Trains(directory)
    with path.open(newline="") as file:
        for (number,) in csv.reader(file):
            train.on(float(number))


def by_bytes(directory: Path, path: Path) -> None:
    train = Trains(directory)
    file = path.open("rb")
    while line := file.readline():
        train.on(float(line))
    file.close()


def by_a_place_of_its_own(directory: Path, path: Path) -> None:
    train = Trains(directory)
    file = path.open("rb")
    place = 0
    while line := file.readline():
        place = file.tell()
        train.on(float(line))
    assert place
    file.close()


def writes(directory: Path, path: Path) -> None:
    train = Trains(directory)
    with path.with_name("losses").open("w") as file:
        for number in torch.arange(6.0):
            train.on(number)
            file.write(f"{number}\n")


@contextlib.contextmanager
def in_a_context() -> Iterator[None]:
    yield


def in_contexts(directory: Path, path: Path) -> None:
    train = Trains(directory)
    assert path
    with in_a_context():
        for number in torch.arange(6.0):
            train.on(number)


def counted(last: int) -> Iterator[int]:
    yield from range(last)


def by_a_counter(directory: Path, path: Path) -> None:
    train = Trains(directory)
    assert path
    for number in counted(6):
        train.on(float(number))


def rounds_of(train: Trains, model: nn.Module) -> Iterator[None]:
    for number in torch.arange(6.0):
        train.on(number)
        assert model is train.model
        yield


def that_trains(directory: Path, path: Path) -> None:
    train = Trains(directory)
    assert path
    for _ in rounds_of(train, train.model):
        pass


def over_a_loader(directory: Path, path: Path) -> None:
    train = Trains(directory)
    loader = ResumableDataLoader(torch.arange(6.0))
    with path.open() as unread:
        for batch in (batch for batch in loader):
            train.on(batch, loaders=loader)
        assert unread.read()


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    path = tmp_path / "numbers"
    path.write_text("".join(f"{i}\n" for i in range(6)))
    return path


def test_a_generator_is_said_once(tmp_path: Path) -> None:
    whole = said(over_a_generator, tmp_path, 8)
    assert whole.count(SAID) == 1
    assert f"{SAID}the generator batches. " in whole


def test_one_that_was_saved_once_is_said_by_the_resumed_run(tmp_path: Path) -> None:
    assert said(over_a_generator, tmp_path, 2) == ""
    assert "the generator batches. " in said(over_a_generator, tmp_path, 4)


@pytest.mark.parametrize(
    ("loop", "name"),
    [(over_lines, "over_lines.lines"), (over_rows, "over_rows.file"), (by_bytes, "by_bytes.file")],
)
def test_a_place_in_a_file_is_said(loop: Any, name: str, tmp_path: Path, numbers: Path) -> None:
    assert f"{SAID}the place in locals.{name}. " in said(loop, tmp_path, numbers)


@pytest.mark.parametrize("loop", [by_a_place_of_its_own, writes, in_contexts, by_a_counter, that_trains, over_a_loader])
def test_what_is_not(loop: Any, tmp_path: Path, numbers: Path) -> None:
    assert said(loop, tmp_path, numbers) == ""
