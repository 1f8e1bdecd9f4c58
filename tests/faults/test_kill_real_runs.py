"""train.py and a Lightning run, killed at some system call of a later save, end in the bytes of an undisturbed run."""

from __future__ import annotations

import random
import shutil
import signal
import sys
import warnings
from pathlib import Path

import pytest

from neuromanifold_gpt import latest_checkpoint, list_checkpoints

from ..checkpoint.small_saves import temporary_files
from ..training.train_process import command, data_files
from ..training.train_process import train as train_py
from ..warm_process import ENVIRONMENT
from .fork_server import ForkServer
from .invariant import require
from .lightning_run import STEPS
from .parts import Part, in_parts
from .strace import Call, calls_of, calls_of_program, inject, inject_into_program
from .tally import Tally
from .tiny_training import Bytes, bytes_of

RUN = "tests.faults.lightning_run:run"
FLAGS = {"max_iters": 30, "eval_interval": 0}


def after_the_first_save(calls: list[Call]) -> list[Call]:
    """The calls that change something, from the first commit on, and that no earlier one is taken for."""
    first = next(i for i, call in enumerate(calls) if call.name.startswith("rename") and ".json" in call.path)
    before = set(calls[: first + 1])  # threads of several saves that write to one path: strace counts in each
    return [call for call in calls[first + 1 :] if call.changes and call not in before]


@pytest.fixture(scope="module")
def undisturbed_train_py(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = tmp_path_factory.mktemp("undisturbed")
    assert train_py(out_dir, **FLAGS).returncode == 0
    return out_dir


@pytest.mark.usefixtures("strace")
@in_parts(20, in_suite=0)
def test_train_py_killed_at_a_call_of_a_later_save(
    part: Part, undisturbed_train_py: Path, tally: Tally, tmp_path: Path
):
    out_dir = tmp_path / "out"
    command_line = [sys.executable, *command(out_dir, **FLAGS)]
    calls = after_the_first_save(calls_of_program(command_line, ENVIRONMENT, out_dir))
    checkpoints = [call for call in calls if "checkpoint-step" in call.path or call.path == str(out_dir)]
    chosen = random.Random(1).sample(checkpoints, 20)
    for call in part.choose(chosen):
        with tally.trial("kills of train.py", call):
            shutil.rmtree(out_dir)
            exit_code, reached = inject_into_program(command_line, ENVIRONMENT, call, "signal=KILL")
            require(reached and exit_code == -signal.SIGKILL, f"not killed at {call}: {exit_code}")
            newest = latest_checkpoint(out_dir)
            require(newest is not None, "the first checkpoint is lost")
            finished = train_py(out_dir, **FLAGS)
            require(finished.returncode == 0, finished.stderr)
            require(f"Resuming from step {newest.step}" in finished.stdout, finished.stdout)
            require("warning" not in finished.stderr, finished.stderr)
            require(data_files(out_dir) == data_files(undisturbed_train_py), "the run ends in other bytes")
            require(not temporary_files(out_dir), f"left over: {temporary_files(out_dir)}")


def saved_by(server: ForkServer, directory: Path) -> dict[str, Bytes]:
    """The checkpoints of a Lightning run."""
    outcome = server.run(RUN, str(directory))
    require(outcome.error is None and outcome.killed_by is None, str(outcome))
    return {checkpoint.name: bytes_of(checkpoint) for checkpoint in list_checkpoints(directory)}


@pytest.mark.slow
@pytest.mark.usefixtures("strace")
@in_parts(20)
def test_a_lightning_run_killed_at_a_call_of_a_later_save(part: Part, server: ForkServer, tally: Tally, tmp_path: Path):
    """With ``last`` overwritten and the best one kept: in the middle of replacements and removals as well."""
    directory = tmp_path / "run"
    undisturbed = saved_by(server, directory)
    shutil.rmtree(directory)
    calls = after_the_first_save(calls_of(server, directory, RUN, str(directory)))
    assert any(call.name.startswith("unlink") for call in calls)
    for call in part.choose(random.Random(1).sample(calls, min(200, len(calls)))):
        with tally.trial("kills of a Lightning run", call):
            shutil.rmtree(directory)
            outcome, reached = inject(server, call, "signal=KILL", RUN, str(directory))
            require(reached and outcome.killed_by == signal.SIGKILL, f"not killed at {call}: {outcome}")
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                newest = latest_checkpoint(directory)
            require(newest is not None and newest.step >= 3, f"lost: {newest}")
            saved = saved_by(server, directory)
            require(saved == undisturbed, f"ends with {saved.keys()}, not {undisturbed.keys()}, or in other bytes")
            newest = latest_checkpoint(directory)
            require(newest is not None and newest.step == STEPS, f"ends at {newest}")
            require(not temporary_files(directory), f"left over: {temporary_files(directory)}")
