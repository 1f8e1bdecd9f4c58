"""Steps that were lost are taken again, and compared with what they had given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from neuromanifold_gpt import latest_checkpoint, load_checkpoint, save_checkpoint
from neuromanifold_gpt.checkpoint.errors import StepsNotComparedWarning
from neuromanifold_gpt.state.steps_taken_again import STEPS_NAME
from tests import warm_process

PROGRAM = Path(__file__).with_name("losing_loop.py")
SAID = "has given other weights than in the run that was interrupted"


def train(directory: Path, **options: Any) -> str:
    """What the program says."""
    ended = warm_process.run(PROGRAM, directory, json.dumps(options))
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


def notes(directory: Path) -> Path:
    return directory / "out" / STEPS_NAME


@pytest.mark.parametrize("gan", [False, True])
def test_same_result(tmp_path: Path, gan: bool) -> None:
    steps_of_optimizers = 3 * (1 + gan)
    assert "Warning" not in train(tmp_path, stop_at=8, gan=gan)
    assert len(notes(tmp_path).read_text().splitlines()) == 1 + steps_of_optimizers
    said = train(tmp_path, stop_at=10, gan=gan)
    assert "Warning" not in said
    assert f"{steps_of_optimizers} optimizer steps behind checkpoint-step000005: the same weights" in said
    assert not notes(tmp_path).exists()  # it ended with a save


def test_same_result_of_an_optimizer_around_another(tmp_path: Path) -> None:
    assert SAID not in train(tmp_path, stop_at=8, around=True)
    said = train(tmp_path, stop_at=10, around=True)
    assert SAID not in said
    assert "3 optimizer steps behind checkpoint-step000005: the same weights" in said


@pytest.mark.parametrize(
    ("options", "step"), [({"uses_memory": True}, 1), ({"rate": 0.02}, 1), ({"gan": True, "rate": 0.02}, 1)]
)
def test_another_result(tmp_path: Path, options: dict[str, Any], step: int) -> None:
    train(tmp_path, stop_at=8, **{**options, "rate": 0.01})
    said = train(tmp_path, stop_at=10, **options)
    assert said.count(SAID) == 1
    assert f"optimizer step {step} behind checkpoint-step000005 {SAID}" in said


def test_a_second_interruption_before_the_next_save(tmp_path: Path) -> None:
    train(tmp_path, stop_at=9)
    before = notes(tmp_path).read_text()
    assert "Warning" not in train(tmp_path, stop_at=7)
    assert notes(tmp_path).read_text() == before
    assert "4 optimizer steps behind checkpoint-step000005" in train(tmp_path, stop_at=10)


def test_a_program_that_returns_to_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    """It need not do the same again; one that resumes has the steps up to the return to compare."""
    assert SAID not in train(tmp_path, stop_at=9, returns=8)
    assert len(notes(tmp_path).read_text().splitlines()) == 1 + 3
    assert SAID not in train(tmp_path, stop_at=9, returns=8)


def _torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _of_another_save(path: Path) -> None:
    path.write_text("\n".join(["0" * 32, *path.read_text().splitlines()[1:]]) + "\n")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _zeros_at_the_end(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0" * 4096)


def _nonsense(path: Path) -> None:
    path.write_bytes(bytes(range(256)))


@pytest.mark.parametrize(
    ("change", "compared"),
    [(_torn, 2), (_zeros_at_the_end, 3), (_of_another_save, None), (_empty, None), (_nonsense, None)],
)
def test_what_a_crash_may_leave(tmp_path: Path, change: Callable[[Path], None], compared: int | None) -> None:
    train(tmp_path, stop_at=8)
    change(notes(tmp_path))
    said = train(tmp_path, stop_at=10)
    assert "Warning" not in said
    assert ("optimizer steps behind" in said) == (compared is not None)
    if compared is not None:
        assert f"{compared} optimizer steps behind" in said


def test_notes_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    train(tmp_path, stop_at=8)
    notes(tmp_path).unlink()
    notes(tmp_path).mkdir()
    said = train(tmp_path, stop_at=12)
    assert said.count("StepsNotComparedWarning") == 2  # the restore, and the save


class Several(nn.Module):
    """Parameters of all kinds of memory."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.Parameter(torch.ones(3, 5))
        self.turned = nn.Parameter(torch.ones(5, 3).t())
        self.image = nn.Parameter(torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last))
        self.short = nn.Parameter(torch.ones(40, dtype=torch.bfloat16))
        self.none = nn.Parameter(torch.ones(0))
        self.number = nn.Parameter(torch.tensor(1.0))
        self.complex = nn.Parameter(torch.ones(2, dtype=torch.complex64))


@pytest.mark.parametrize("name", [name for name, value in Several().named_parameters() if value.numel()])
def test_every_parameter_counts(tmp_path: Path, name: str) -> None:
    def steps(*, with_gradient: bool) -> list[str]:
        model = Several()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer)
        if with_gradient:
            parameter = dict(model.named_parameters())[name]
            indices = torch.arange(parameter.numel()).reshape(parameter.shape)
            parameter.grad = (indices >= parameter.numel() // 2).to(parameter.dtype)
        optimizer.step()
        return (tmp_path / STEPS_NAME).read_text().splitlines()[1:]

    assert len(steps(with_gradient=False)) == 1
    assert steps(with_gradient=False) == steps(with_gradient=False) != steps(with_gradient=True)


def test_long_runs_are_noted_less_often(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer)
    for _ in range(350):
        optimizer.step()
    assert len((tmp_path / STEPS_NAME).read_text().splitlines()) == 1 + 100 + 2


def test_two_directories_at_one_step_and_one_later(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for directory in ("last", "best"):
        save_checkpoint(tmp_path / directory, step=1, model=model, optimizers=optimizer)
    optimizer.step()
    assert {(tmp_path / name / STEPS_NAME).exists() for name in ("last", "best")} == {True}
    save_checkpoint(tmp_path / "last", step=2, model=model, optimizers=optimizer)
    optimizer.step()
    optimizer.step()
    counts = {name: len((tmp_path / name / STEPS_NAME).read_text().splitlines()) - 1 for name in ("last", "best")}
    assert counts == {"last": 2, "best": 1}


def test_two_names_for_one_step(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    saved = [
        save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer, name=name, config={"name": name})
        for name in ("one", "two")
    ]
    optimizer.step()
    assert {*(tmp_path / STEPS_NAME).read_text().splitlines()[0].split()} == {s.manifest.pair for s in saved}


def test_a_save_without_optimizers_leaves_the_notes(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer)
    optimizer.step()
    save_checkpoint(tmp_path, step=1, model=model, name="weights")
    save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer, name="model only", save_model_only=True)
    optimizer.step()
    assert len((tmp_path / STEPS_NAME).read_text().splitlines()) == 1 + 2


def test_other_optimizers_are_not_noted(tmp_path: Path) -> None:
    model, other = nn.Linear(1, 1), nn.Linear(1, 1)
    save_checkpoint(tmp_path, step=1, model=model, optimizers=torch.optim.SGD(model.parameters(), 0.1))
    torch.optim.SGD(other.parameters(), 0.1).step()
    assert not (tmp_path / STEPS_NAME).exists()


def test_a_full_disk_does_not_end_training(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer)
    (tmp_path / f"{STEPS_NAME}.nm-incomplete").symlink_to("/dev/full")
    with pytest.warns(StepsNotComparedWarning, match="No space left"):
        optimizer.step()
    optimizer.step()  # said once
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    load_checkpoint(checkpoint).restore(model=model, optimizers=optimizer)
