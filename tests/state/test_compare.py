"""compare_checkpoints names what differs, and nothing that does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from neuromanifold_gpt import Checkpoint, compare_checkpoints, save_checkpoint
from neuromanifold_gpt.cli import main


def saved(directory: Path, *, steps: int = 3, change: Any = None) -> Checkpoint:
    """A small training; ``change`` is called with its parts before the save."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 3)).square().mean().backward()
        optimizer.step()
        scheduler.step()
    if change is not None:
        change(model, optimizer, scheduler)
    return save_checkpoint(directory, step=steps, model=model, optimizers=optimizer, schedulers=scheduler)


def test_equal_states_are_equal_and_no_tensor_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    left, right = saved(tmp_path / "a"), saved(tmp_path / "b")

    def read(*arguments: Any) -> bool:
        raise AssertionError("a tensor was compared by its values")

    monkeypatch.setattr(torch, "equal", read)
    assert compare_checkpoints(left, right).equal
    assert main(["diff", str(left.model_path), str(right.paths.manifest)]) == 0


def change_weight(model: Any, optimizer: Any, scheduler: Any) -> None:
    with torch.no_grad():
        model[0].weight[1, 2] += 0.5


def change_buffer(model: Any, optimizer: Any, scheduler: Any) -> None:
    model[1].running_var[0] = 7.0


def change_momentum(model: Any, optimizer: Any, scheduler: Any) -> None:
    optimizer.state[model[0].bias]["exp_avg"].zero_()


def change_rate(model: Any, optimizer: Any, scheduler: Any) -> None:
    optimizer.param_groups[0]["lr"] *= 1 + 2**-52


def change_scheduler(model: Any, optimizer: Any, scheduler: Any) -> None:
    scheduler.last_epoch += 1


def change_random_state(model: Any, optimizer: Any, scheduler: Any) -> None:
    torch.rand(1)


@pytest.mark.parametrize(
    ("change", "component", "path", "largest"),
    [
        (change_weight, "weights and buffers", "state_dict/0.weight", 0.5),
        (change_buffer, "weights and buffers", "state_dict/1.running_var", None),
        (change_momentum, "optimizer state", "optimizer_states/0/state/1/exp_avg", None),
        (change_rate, "optimizer state", "optimizer_states/0/param_groups/0/lr", None),
        (change_scheduler, "learning-rate scheduler", "lr_schedulers/0/last_epoch", None),
        (change_random_state, "random number generators", "rng_states/0/torch", None),
    ],
)
def test_the_one_place_that_differs_is_named(
    change: Any, component: str, path: str, largest: float | None, tmp_path: Path
):
    comparison = compare_checkpoints(saved(tmp_path / "a"), saved(tmp_path / "b", change=change))
    assert [(d.component, d.path) for d in comparison.differences] == [(component, path)]
    assert comparison.first is not None
    if largest is not None:
        assert comparison.first.largest == pytest.approx(largest)


def test_the_cause_is_named_before_its_consequences(tmp_path: Path):
    comparison = compare_checkpoints(saved(tmp_path / "a", steps=3), saved(tmp_path / "b", steps=4))
    assert comparison.first is not None
    assert comparison.first.component == "learning-rate scheduler"
    assert {d.component for d in comparison.differences} >= {"weights and buffers", "optimizer state"}


def test_tensors_on_one_side_only_and_of_other_shapes(tmp_path: Path):
    left = save_checkpoint(tmp_path / "a", step=1, model=torch.nn.Linear(2, 3), save_model_only=True)
    right = save_checkpoint(tmp_path / "b", step=1, model=torch.nn.Linear(2, 4, bias=False), save_model_only=True)
    described = {d.path: (d.left, d.right) for d in compare_checkpoints(left, right).differences}
    assert described == {
        "state_dict/weight": ("float32 (3, 2)", "float32 (4, 2)"),
        "state_dict/bias": ("float32 (3,)", "absent"),
    }


def test_unified_files_are_compared_by_their_bytes(tmp_path: Path):
    for name, value in (("a", 0.0), ("b", 0.0), ("c", -0.0)):
        torch.save({"x": torch.tensor([float("nan"), value]), "step": 1}, tmp_path / f"{name}.pt")
    assert compare_checkpoints(tmp_path / "a.pt", tmp_path / "b.pt").equal
    assert [d.path for d in compare_checkpoints(tmp_path / "a.pt", tmp_path / "c.pt").differences] == ["x"]


def test_the_command_prints_json_and_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    left, right = saved(tmp_path / "a"), saved(tmp_path / "b", change=change_weight)
    assert main(["diff", str(left.model_path), str(right.model_path), "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["equal"] is False
    assert content["differences"][0]["path"] == "state_dict/0.weight"
    assert main(["diff", str(left.model_path), str(tmp_path / "missing.pt")]) == 1
    assert "error:" in capsys.readouterr().err
