"""train.py over what a kill, a power loss or a bad disk left of the run before: it starts, and nothing is left over."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from neuromanifold_gpt import list_checkpoints
from neuromanifold_gpt.checkpoint.errors import CheckpointWriteError
from neuromanifold_gpt.checkpoint.storage import LocalStorage
from neuromanifold_gpt.cli import train_main
from neuromanifold_gpt.training.metrics_csv import COLUMNS, StepMetrics

from .train_process import SMALL, data_files


def run(out_dir: Path, **flags: object) -> int:
    settings = {**SMALL, "max_iters": 6, "save_interval": 2, "eval_interval": 2, "out_dir": out_dir, **flags}
    return train_main([f"--{key}={value}" for key, value in settings.items()])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = tmp_path_factory.mktemp("undisturbed")
    assert run(out_dir) == 0
    return out_dir


def names(out_dir: Path) -> set[str]:
    return {path.name for path in out_dir.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    "left",
    [
        {"checkpoint-step000002-optimizer.pt.nm-incomplete"},
        {
            "checkpoint-step000002-optimizer.pt.nm-incomplete",
            "checkpoint-step000002-model.pt.nm-incomplete",
            "checkpoint-step000002.json.nm-incomplete",
        },
        {
            "checkpoint-step000002-optimizer.pt",
            "checkpoint-step000002-model.pt.nm-incomplete",
            "checkpoint-step000002.json.nm-incomplete",
        },
    ],
    ids=["writing the first file", "before the first rename", "between renames"],
)
def test_a_kill_in_the_very_first_save_does_not_keep_it_from_starting(
    left: set[str], undisturbed: Path, tmp_path: Path
):
    for name in left:
        shutil.copy(undisturbed / name.removesuffix(".nm-incomplete"), tmp_path / name)
    assert run(tmp_path) == 0
    assert data_files(tmp_path) == data_files(undisturbed)
    assert names(tmp_path) == names(undisturbed)


def test_a_kill_after_the_last_commit_leaves_nothing_over_although_nothing_is_left_to_train(
    undisturbed: Path, tmp_path: Path
):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoint-step000006-model.pt.nm-previous").write_bytes(b"of the one that it replaced")
    assert run(tmp_path, keep_last=1) == 0
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [6]
    assert names(tmp_path) == {name for name in names(undisturbed) if "step000006" in name} | {"metrics.csv"}


def test_the_name_of_the_directory_is_durable_before_anything_is_saved_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    synced: list[Path] = []
    monkeypatch.setattr(LocalStorage, "sync_directory", lambda _, path: synced.append(path))
    assert run(tmp_path / "runs" / "out", max_iters=2) == 0
    assert synced.index(tmp_path) < synced.index(tmp_path / "runs") < synced.index(tmp_path / "runs" / "out")


def test_rows_of_metrics_csv_are_durable_before_they_replace_the_old_ones(tmp_path: Path, made_durable: list[str]):
    path = tmp_path / "metrics.csv"
    path.write_text(",".join(COLUMNS) + "\n1,2,3,4,\n2,4,3,4,\n3,6,3,4,\n")
    StepMetrics(path, tokens_per_step=2, flush_interval_steps=1).start_at(2)
    assert made_durable == ["fsync metrics.csv.nm-incomplete", "rename to metrics.csv", f"fsync {tmp_path.name}"]
    assert path.read_text() == ",".join(COLUMNS) + "\n1,2,3,4,\n2,4,3,4,\n"


def test_a_damaged_metrics_csv_keeps_each_step_that_is_whole_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "metrics.csv"
    path.write_bytes(
        (",".join(COLUMNS) + "\n1,2,3,4,\n2,4,3,4,\n2,4,3,4,\n").encode()
        + b"\xff\xfe\x00\n"
        + b"9" * 5000
        + b",2,3,4,\n4,8,3,4,\n5,10,3,4"
    )
    StepMetrics(path, tokens_per_step=2, flush_interval_steps=1).start_at(5)
    assert path.read_text() == ",".join(COLUMNS) + "\n1,2,3,4,\n2,4,3,4,\n4,8,3,4,\n"
    assert "2 rows up to step 5 are not there" in capsys.readouterr().out


def test_something_else_in_the_place_of_metrics_csv_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    os.mkfifo(tmp_path / "metrics.csv")
    assert run(tmp_path) == 1
    error = capsys.readouterr().err
    assert "metrics.csv: not a regular file" in error
    assert "Traceback" not in error


def test_rows_that_cannot_be_written_leave_what_was_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "metrics.csv"
    path.write_text(",".join(COLUMNS) + "\n1,2,3,4,\n")

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(CheckpointWriteError, match="No space left"):
        StepMetrics(path, tokens_per_step=2, flush_interval_steps=1).start_at(1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.csv"]
    assert path.read_text() == ",".join(COLUMNS) + "\n1,2,3,4,\n"
