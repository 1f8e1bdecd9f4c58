"""Two real ranks: one of them is killed in the middle of a save, or its disk is full; the other does not hang."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from neuromanifold_gpt import latest_checkpoint, list_checkpoints, verify_checkpoint

from ..checkpoint.small_saves import files_of_checkpoints, names_in
from .ranks import TIMEOUT_SEC

REPOSITORY = Path(__file__).parents[2]


def train(directory: Path, **options: Any) -> list[tuple[int, str]]:
    """Both ranks to their end: exit code and output of each. Neither outlasts the process group's timeout for long."""
    directory.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "NODE_RANK": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.faults.ranks", str(directory), str(rank), json.dumps(options)],
            cwd=REPOSITORY,
            env={**environment, "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        # Starting takes a while where other processes are busy; a rank that waits forever does not come back.
        outputs = [rank.communicate(timeout=TIMEOUT_SEC + 100)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [(rank.returncode, output) for rank, output in zip(ranks, outputs, strict=True)]


@pytest.fixture(scope="module", params=["plain", pytest.param("lightning", marks=pytest.mark.slow)])
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    directory = tmp_path_factory.mktemp("undisturbed")
    for code, output in train(directory, kind=request.param):
        assert code == 0, output
    return request.param, directory


WRITING = "write checkpoint-step000008-optimizer.pt.nm-incomplete"
RENAMING = "rename checkpoint-step000008-model.pt"
COMMITTING = "rename checkpoint-step000008.json"
COMMITTED = "remove checkpoint-step000008-model.pt.nm-previous"


@pytest.mark.parametrize(
    ("kill", "at"),
    [
        (0, COMMITTING),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [(1, RENAMING), (0, WRITING), (0, RENAMING), (0, COMMITTED), (1, WRITING), (1, COMMITTED)]
        ),
    ],
)
def test_a_rank_that_is_killed_during_the_save_takes_nothing_along(kill: int, at: str, undisturbed, tmp_path: Path):
    kind, expected = undisturbed
    ended = train(tmp_path, kind=kind, kill=kill, at=at)
    assert ended[kill][0] == -signal.SIGKILL
    assert ended[1 - kill][0] not in (0, -signal.SIGKILL), ended[1 - kill][1]
    assert "finished" not in ended[1 - kill][1]
    out = tmp_path / "out"
    newest = latest_checkpoint(out)  # nothing damaged is passed over: that would be a warning, which is an error here
    assert newest.step == (8 if kill == 1 or at == COMMITTED else 4)
    for checkpoint in list_checkpoints(out):
        verify_checkpoint(checkpoint)
    for code, output in train(tmp_path, kind=kind):
        assert code == 0, output
        assert f"from {newest.step}" in output
    names = [f"checkpoint-step0000{step}-{part}.pt" for step in ("08", "12") for part in ("model", "optimizer")]
    assert [name for name in names if (out / name).read_bytes() != (expected / "out" / name).read_bytes()] == []
    assert names_in(out) == files_of_checkpoints(out)


@pytest.mark.parametrize("on_save_error", ["raise", pytest.param("warn", marks=pytest.mark.slow)])
def test_in_lightning_every_rank_learns_of_a_full_disk(on_save_error: str, tmp_path: Path):
    ended = train(tmp_path, kind="lightning", refuse=8, on_save_error=on_save_error)
    for code, output in ended:
        assert code == 0, output
        assert ("refused CheckpointWriteError" in output) == (on_save_error == "raise")
        assert ("warned" in output) == (on_save_error == "warn")
        steps = [4, 12] if on_save_error == "warn" else [4]
        assert f"believes {[f'checkpoint-step{step:06d}-model.pt' for step in steps]}" in output
        assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path / "out")] == steps


@pytest.mark.slow
def test_in_a_plain_loop_every_rank_learns_of_a_full_disk(tmp_path: Path):
    for code, output in train(tmp_path, kind="plain", refuse=8):
        assert code == 0, output
        assert output.count("refused CheckpointWriteError") == 1
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path / "out")] == [4, 12]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_stops_all_after_the_same_step(rank: int, tmp_path: Path):
    for code, output in train(tmp_path, kind="lightning", stop=rank):
        assert code == 143, output
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path / "out")] == [4, 6]
    for code, output in train(tmp_path, kind="lightning"):
        assert code == 0, output
        assert "from 6" in output
