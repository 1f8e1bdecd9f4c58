"""train.py, ended by real signals at steps that are multiples of nothing, ends in the same bytes."""

from __future__ import annotations

import csv
import re
import signal
from pathlib import Path

import pytest
import torch

from .train_process import data_files, last_step, train, train_and_stop

COMPARED = re.compile(r"^\d+ optimizer steps? behind checkpoint-step\d+: the same weights.*\.$", re.MULTILINE)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = tmp_path_factory.mktemp("uninterrupted")
    result = train(out_dir)
    assert result.returncode == 0, result.stderr
    return out_dir


def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bytes(uninterrupted: Path, tmp_path: Path):
    """SIGKILL and SIGTERM in turn, other worker numbers each time; metrics.csv included."""
    out_dir = tmp_path / "interrupted"
    stops = [(3, signal.SIGKILL), (17, signal.SIGTERM), (23, signal.SIGKILL), (31, signal.SIGINT)]
    expected_exit = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
    for number_of_stop, (step, number) in enumerate(stops):
        exit_code, output = train_and_stop(out_dir, step, number, num_workers=number_of_stop % 3)
        assert exit_code == expected_exit[number], output
        if number is not signal.SIGKILL:
            stopped = re.search(f"Stopped by {number.name} after step (\\d+), which is saved", output)
            assert stopped, output
            assert f"checkpoint-step{int(stopped[1]):06d}-optimizer.pt" in data_files(out_dir)
        assert "InexactResumeWarning" not in output
        assert bool(COMPARED.search(output)) == (number_of_stop >= 2), output  # the first was killed before it saved
    finished = train(out_dir)
    assert finished.returncode == 0, finished.stderr
    assert "Resuming from step" in finished.stdout
    assert COMPARED.search(finished.stdout)[0].startswith("1 optimizer step behind")  # what a signal leaves
    expected, found = data_files(uninterrupted), data_files(out_dir)
    assert {name: found[name] == content for name, content in expected.items()} == dict.fromkeys(expected, True)


@pytest.mark.slow
def test_resuming_with_workers_continues_with_the_same_batches(uninterrupted: Path, tmp_path: Path):
    assert train(tmp_path, max_iters=20).returncode == 0
    assert train(tmp_path, num_workers=2).returncode == 0
    expected, found = data_files(uninterrupted), data_files(tmp_path)
    assert {name: found[name] == expected[name] for name in expected} == dict.fromkeys(expected, True)


@pytest.mark.slow
def test_gradient_accumulation_and_cosine_decay_resume_exactly(tmp_path: Path):
    flags = {"gradient_accumulation_steps": 3, "lr_decay_iters": 25, "max_iters": 20, "eval_interval": 7}
    assert train(tmp_path / "a", **flags).returncode == 0
    exit_code, output = train_and_stop(tmp_path / "b", 13, signal.SIGTERM, **flags)
    assert exit_code == 143, output
    assert train(tmp_path / "b", **flags).returncode == 0
    expected, found = data_files(tmp_path / "a"), data_files(tmp_path / "b")
    assert {name: found[name] == expected[name] for name in expected} == dict.fromkeys(expected, True)


@pytest.mark.slow
def test_unified_checkpoints_resume_exactly_too(tmp_path: Path):
    flags = {"save_separate_optimizer": False, "eval_interval": 5}
    assert train(tmp_path / "a", **flags).returncode == 0
    exit_code, output = train_and_stop(tmp_path / "b", 17, signal.SIGKILL, **flags)
    assert exit_code == -9, output
    result = train(tmp_path / "b", **flags)
    assert "Resuming from step" in result.stdout, result.stderr
    last = [torch.load(tmp_path / run / "checkpoint-step000040.ckpt", weights_only=True) for run in "ab"]
    for name, tensor in last[0]["state_dict"].items():
        assert torch.equal(tensor, last[1]["state_dict"][name]), name
    states = [content["optimizer_states"][0]["state"] for content in last]
    for index, state in states[0].items():
        assert all(torch.equal(value, states[1][index][key]) for key, value in state.items())
    assert (tmp_path / "a/metrics.csv").read_bytes() == (tmp_path / "b/metrics.csv").read_bytes()


def test_metrics_csv_has_each_step_once(uninterrupted: Path):
    with (uninterrupted / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 41))
    assert [float(row["learning_rate"]) for row in rows[:10]] == [1e-3 * ((i + 1) / 10) for i in range(10)]
    assert [int(row["step"]) for row in rows if row["val_loss"]] == [15, 30]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])


@pytest.mark.slow
def test_a_finished_run_says_so_and_a_larger_max_iters_goes_on(uninterrupted: Path, tmp_path: Path):
    assert train(tmp_path, max_iters=10).returncode == 0
    before = data_files(tmp_path)
    again = train(tmp_path, max_iters=10)
    assert again.returncode == 0
    assert "Finished already" in again.stdout
    assert data_files(tmp_path) == before
    more = train(tmp_path, max_iters=12)
    assert "Resuming from step 10" in more.stdout
    assert "learning rate 1.00e-03" in more.stdout
    assert last_step(tmp_path) == 12
    assert (tmp_path / "checkpoint-step000012-model.pt").exists()


def test_a_damaged_newest_checkpoint_is_passed_over_in_one_line(uninterrupted: Path, tmp_path: Path):
    assert train(tmp_path).returncode == 0
    damaged = tmp_path / "checkpoint-step000040-model.pt"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    result = train(tmp_path)
    assert result.returncode == 0, result.stderr
    warnings = [line for line in result.stderr.splitlines() if "passing over checkpoint-step000040" in line]
    assert len(warnings) == 1
    assert "state_dict/gpt." in warnings[0]
    assert "Resuming from step 30" in result.stdout
    expected = data_files(uninterrupted)
    assert {name: data_files(tmp_path)[name] == expected[name] for name in expected} == dict.fromkeys(expected, True)
