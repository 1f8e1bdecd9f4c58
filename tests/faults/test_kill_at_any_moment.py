"""A real process, a real ``SIGKILL``, at moments nobody chose."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import neuromanifold_gpt
from neuromanifold_gpt import latest_checkpoint, list_checkpoints, load_checkpoint

from ..checkpoint.small_saves import Save, files_of_checkpoints, names_in, temporary_files
from .tally import Tally

SCRIPT = Path(__file__).with_name("saves_until_killed.py")
KILLS = 15


@pytest.fixture
def forker(tmp_path):
    package = Path(neuromanifold_gpt.__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout.readline() == "ready\n"
    yield process
    process.stdin.close()
    assert process.wait(timeout=20) == 0
    process.stdout.close()


def next_line(forker: subprocess.Popen) -> str:
    line = forker.stdout.readline()
    assert line, "the process that forks has ended"
    return line


def killed(forker: subprocess.Popen, first_version: int, after_saves: int, sec: float) -> list[tuple[int, str]]:
    """Save from a version on, kill some time after some saves; the saves that had returned, as version and name."""
    print(first_version, file=forker.stdin, flush=True)
    pid, lines = None, []
    while pid is None or len(lines) < after_saves:
        line = next_line(forker)
        if line.startswith("pid"):
            pid = int(line.split()[1])
        else:
            lines.append(line)
    time.sleep(sec)
    os.kill(pid, signal.SIGKILL)
    while (line := next_line(forker)) != "dead\n":
        lines.append(line)
    return [(int(version), name) for version, name in map(str.split, lines)]


def test_after_a_kill_at_any_moment_nothing_that_was_saved_is_lost(forker, tally: Tally, tmp_path):
    """What a save returned for is there, whole; or a newer one has taken its name. Nothing is ever found broken."""
    directory = tmp_path / "run"
    chosen = random.Random()
    version, returned, interrupted = 1, {}, 0
    for number in range(KILLS):
        with tally.trial("kills at any moment", number):
            for done, name in killed(forker, version, number % 3, chosen.uniform(0, 0.05)):
                returned[name] = version = done
            version += 2  # the one after the last that returned may have become complete without having said so
            there = {checkpoint.name: checkpoint for checkpoint in list_checkpoints(directory)}
            assert set(returned) <= set(there)
            for name, checkpoint in there.items():
                assert checkpoint.step >= returned.get(name, 0)
                loaded = load_checkpoint(checkpoint, load_optimizer=not checkpoint.model_only)
                assert checkpoint.model_only == (checkpoint.step % 3 == 0)
                assert loaded.config == {"version": checkpoint.step}
                assert loaded.model_state["weight"].unique().tolist() == [checkpoint.step]
                if not checkpoint.model_only:
                    assert loaded.optimizer_states[0]["moment"].unique().tolist() == [checkpoint.step + 0.5]
            newest = latest_checkpoint(directory)
            assert newest is None or newest.step == max(checkpoint.step for checkpoint in there.values())
            interrupted += bool(directory.exists() and temporary_files(directory))
    assert returned
    assert interrupted > 1, "hardly a kill hit a save: nothing has been tested"
    before = {checkpoint.name: checkpoint.step for checkpoint in list_checkpoints(directory)}
    Save("final999999", 1).write(directory)
    after = {checkpoint.name: checkpoint.step for checkpoint in list_checkpoints(directory)}
    assert after == {**before, "final999999": 999999}
    assert names_in(directory) == files_of_checkpoints(directory)
