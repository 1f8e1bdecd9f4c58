"""train.py: one process per directory, full disks, what stays, and the signals of a cluster."""

from __future__ import annotations

import contextlib
import csv
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from neuromanifold_gpt import list_checkpoints, verify_checkpoint
from neuromanifold_gpt.certify.command import stopped
from neuromanifold_gpt.checkpoint.lock import LOCK_NAME
from neuromanifold_gpt.cli import train_main

from ..checkpoint.small_saves import temporary_files
from ..warm_process import WarmProcess
from .train_process import command, data_files, last_step, train, train_and_stop


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = tmp_path_factory.mktemp("undisturbed")
    result = train(out_dir)
    assert result.returncode == 0, result.stderr
    return out_dir


def assert_same_files(out_dir: Path, undisturbed: Path, *names: str) -> None:
    expected, found = data_files(undisturbed), data_files(out_dir)
    assert {name: found[name] == expected[name] for name in names} == dict.fromkeys(names, True)


def test_a_second_process_is_refused_in_one_line_and_the_first_is_not_disturbed(undisturbed: Path, tmp_path: Path):
    first = WarmProcess(*command(tmp_path, num_workers=2))
    while last_step(tmp_path) < 2:
        assert first.poll() is None
        time.sleep(0.002)
    first.send_signal(signal.SIGSTOP)  # so that it holds the directory for as long as this takes
    while not stopped(first.pid):  # a thread that writes TensorBoard's file may be in the middle of it
        time.sleep(0.0001)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    second = train(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert second.returncode == 3
    assert second.stdout == ""
    assert len(second.stderr.splitlines()) == 1
    assert re.search(
        rf"error: {tmp_path}: another process .* {first.pid} on \S+, since .*train\.py.*free", second.stderr
    )
    first.send_signal(signal.SIGCONT)
    first.communicate()
    assert first.returncode == 0
    assert_same_files(tmp_path, undisturbed, *data_files(undisturbed))
    assert not (tmp_path / LOCK_NAME).exists()


@pytest.mark.slow
def test_after_a_kill_the_directory_is_free_at_once(undisturbed: Path, tmp_path: Path):
    code, _ = train_and_stop(tmp_path, 12, signal.SIGKILL, num_workers=2)
    assert code == -9
    result = train(tmp_path)
    assert result.returncode == 0, result.stderr
    assert_same_files(tmp_path, undisturbed, *data_files(undisturbed))
    assert not (tmp_path / LOCK_NAME).exists()


def test_sigusr1_to_every_process_of_the_job_finishes_the_step_and_saves(undisturbed: Path, tmp_path: Path):
    process = WarmProcess(*command(tmp_path, num_workers=2, gradient_accumulation_steps=2), own_session=True)
    while last_step(tmp_path) < 3:
        assert process.poll() is None
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGUSR1)
    output, _ = process.communicate()
    assert process.returncode == 138, output
    step = int(re.search(r"Stopped by SIGUSR1 after step (\d+), which is saved", output)[1])
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)][-1] == step
    assert last_step(tmp_path) == step


@pytest.mark.slow
def test_what_stays_is_said_by_flags_and_does_not_change_the_bytes(undisturbed: Path, tmp_path: Path):
    flags = {"keep_last": 2, "keep_best": 1, "keep_optimizer_last": 1, "eval_interval": 5, "save_interval": 5}
    code, output = train_and_stop(tmp_path, 23, signal.SIGTERM, **flags)
    assert code == 143, output
    result = train(tmp_path, **flags)
    assert result.returncode == 0, result.stderr
    there = {checkpoint.step: checkpoint.model_only for checkpoint in list_checkpoints(tmp_path)}
    with (tmp_path / "metrics.csv").open() as file:
        losses = {int(row["step"]): float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]}
    assert set(there) == {35, 40, min(losses, key=losses.__getitem__)}
    assert {step for step, model_only in there.items() if not model_only} == {40}
    whole = tmp_path / "whole"
    assert train(whole, **flags).returncode == 0
    assert_same_files(
        tmp_path, whole, "checkpoint-step000035-model.pt", "checkpoint-step000040-model.pt", "metrics.csv"
    )
    assert_same_files(tmp_path, whole, "checkpoint-step000040-optimizer.pt")


def test_without_flags_everything_stays(undisturbed: Path):
    assert [checkpoint.step for checkpoint in list_checkpoints(undisturbed)] == [10, 20, 30, 40]
    assert not any(checkpoint.model_only for checkpoint in list_checkpoints(undisturbed))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, on which one checkpoint of 0.3 MB has room, and no second."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", directory], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode()}")
    yield directory
    subprocess.run(["umount", directory], check=True)


@pytest.mark.parametrize("on_save_error", [pytest.param("raise", marks=pytest.mark.slow), "warn"])
def test_on_a_full_disk_the_older_checkpoint_stays_and_training_ends_or_goes_on_as_asked(
    on_save_error: str, small_disk: Path, undisturbed: Path
):
    out_dir = small_disk / "out"
    result = train(out_dir, on_save_error=on_save_error)
    assert result.returncode == 1  # the last save must succeed in any case
    lines = result.stderr.splitlines()
    refused = r"checkpoint-step0000{}-optimizer\.pt\.nm-incomplete: .*No space left on device\. Free space"
    warned = [line for line in lines if line.startswith("warning: ")]
    if on_save_error == "warn":
        assert [bool(re.search(refused.format(step), line)) for step, line in zip((20, 30, 40), warned, strict=True)]
        assert last_step(out_dir) == 40
    else:
        assert not warned
    last = 40 if on_save_error == "warn" else 20
    assert re.search("^error: .*" + refused.format(last), lines[-1])
    (only,) = list_checkpoints(out_dir)
    assert only.step == 10
    verify_checkpoint(only)
    assert temporary_files(out_dir) == []
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    result = train(out_dir, on_save_error=on_save_error)
    assert result.returncode == 0, result.stderr
    assert_same_files(out_dir, undisturbed, *data_files(undisturbed))


def test_on_a_disk_without_any_space_it_is_one_line(small_disk: Path):
    with (small_disk / "filler").open("wb") as file:
        file.write(bytes(400 << 10))
    result = train(small_disk)
    assert result.returncode in (1, 2)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "No space left on device" in errors[0]


@pytest.mark.slow
def test_logs_that_cannot_be_written_do_not_end_a_run(small_disk: Path):
    """Room for the first logs; then for nothing, and then for all again, rows of metrics.csv included."""
    with Path(os.devnull).open("w") as nowhere:
        flags = {"max_iters": 100_000, "save_interval": 10_000, "on_save_error": "warn"}
        process = WarmProcess(*command(small_disk, **flags), stdout=nowhere)
    wait_until(process, lambda: last_step(small_disk) > 5)
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))
    stuck_at = last_step(small_disk)
    said = next(line for line in process.stderr if "TensorBoard logs cannot be written" in line)
    assert said.startswith("warning: ")
    (small_disk / "filler").unlink()
    wait_until(process, lambda: last_step(small_disk) > stuck_at + 50)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143
    with (small_disk / "metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == list(range(1, len(steps) + 1))


def wait_until(process: WarmProcess, condition: Callable[[], bool]) -> None:
    while not condition():
        assert process.poll() is None
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--keep_last=0"], "keep_last: expected more than 0"),
        (["--keep_best=1", "--eval_interval=0"], "keep_best goes by the validation loss"),
        (["--keep_last=1", "--save_separate_optimizer=False"], "--keep_optimizer_last are about separated"),
        (["--on_save_error=warn", "--save_separate_optimizer=False"], "--on_save_error=warn is about separated"),
        (["--on_save_error=ignore"], "on_save_error"),
        (["--stop_deadline_sec=0"], "stop_deadline_sec: expected more than 0"),
    ],
)
def test_flags_that_make_no_sense_are_refused(
    flags: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    assert train_main([f"--out_dir={tmp_path}", *flags]) == 2
    assert message in capfd.readouterr().err
