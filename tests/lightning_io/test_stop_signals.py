"""Real signals to real Lightning processes: the step is finished and saved, whatever comes when."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from neuromanifold_gpt import SeparatedCheckpoint, StopOnSignal, latest_checkpoint, load_checkpoint, verify_checkpoint
from neuromanifold_gpt.lightning_io.signal_watch import ShieldedChildren
from neuromanifold_gpt.lightning_io.stop_signals import StoppedBySignal
from neuromanifold_gpt.state import steps_taken_again
from neuromanifold_gpt.state.steps_taken_again import STEPS_NAME

from ..checkpoint.small_saves import Save, files_of_checkpoints, names_in, temporary_files
from ..record import Record
from ..warm_process import WarmProcess
from .toy import by_step, contents, fit

STOPPABLE = Path(__file__).with_name("stoppable.py")


class Run:
    """A process that trains, and says what it does."""

    def __init__(self, directory: Path, environment: dict[str, str] | None = None, **options: Any) -> None:
        self.process = WarmProcess(STOPPABLE, directory, json.dumps(options), environment=environment, own_session=True)

    def until(self, start: str) -> str:
        for line in self.process.stdout:
            if line.startswith(start):
                return line.strip()
        raise AssertionError(f"it ended before {start!r}: {self.process.stderr.read()}")

    def send(self, *numbers: signal.Signals) -> None:
        for number in numbers:
            self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        output, errors = self.process.communicate()
        return self.process.returncode, output + errors

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed")
    fit(SeparatedCheckpoint(directory, every_n_train_steps=5, save_top_k=-1), max_steps=20)
    return directory


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGUSR1, 138, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_step_is_finished_and_saved_and_a_resume_is_exact(
    number, exit_code, undisturbed, tmp_path, caplog, monkeypatch
):
    with Run(tmp_path, every=5, workers=2) as run:
        run.until("step 7")
        os.killpg(run.process.pid, number)  # data workers get it too, as with Ctrl-C and from Slurm
        code, output = run.end()
    assert code == exit_code, output
    out = tmp_path / "out"
    newest = latest_checkpoint(out)
    assert newest.step in (8, 9)
    assert names_in(out) == {*files_of_checkpoints(out), STEPS_NAME}
    monkeypatch.setattr(steps_taken_again, "_known_here", set())  # as in a process that has not seen these bytes
    with caplog.at_level(logging.INFO):
        fit(SeparatedCheckpoint(out, every_n_train_steps=5, save_top_k=-1), ckpt_path="last", max_steps=20)
    assert f"1 optimizer step behind {newest.name}: the same weights" in caplog.text
    for step in (10, 15, 20):
        assert contents(by_step(out)[step]) == contents(by_step(undisturbed)[step])


def test_signals_during_the_save_are_noted_and_do_not_disturb_it(tmp_path):
    with Run(tmp_path, every=1000, slow=True) as run:
        run.until("step 3")
        run.send(signal.SIGTERM)
        run.until("half")
        run.send(signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)
        (tmp_path / "go").touch()
        code, output = run.end()
    assert code == 143, output
    assert latest_checkpoint(tmp_path / "out").step in (4, 5)
    assert len(by_step(tmp_path / "out")) == 1
    assert names_in(tmp_path / "out") == {*files_of_checkpoints(tmp_path / "out"), STEPS_NAME}


def test_a_signal_during_a_save_that_is_due_anyway_is_honoured_when_it_is_done(tmp_path):
    with Run(tmp_path, every=4, slow=True) as run:
        run.until("half checkpoint-step000004-optimizer")
        run.send(signal.SIGUSR1)
        (tmp_path / "go").touch()
        code, output = run.end()
    assert code == 138, output
    assert list(by_step(tmp_path / "out")) == [4]
    assert "step 4" not in output.split("half")[0]
    verify_checkpoint(by_step(tmp_path / "out")[4])


@pytest.mark.parametrize("options", [{"hang_at": 7}, {"every": 8, "slow": True}], ids=["in a step", "in a save"])
def test_past_the_deadline_the_process_ends_without_and_older_checkpoints_stay(options, tmp_path):
    """The step hangs in C code, where no signal handler of Python ever runs."""
    (tmp_path / "out").mkdir()
    Save("checkpoint-step000005", 5).write(tmp_path / "out")
    with Run(tmp_path, deadline_sec=0.5, **{"every": 1000, **options}) as run:
        run.until("step 7")
        run.send(signal.SIGTERM)
        code, output = run.end()
    assert code == 4, output
    assert "was not finished and saved within 0.5 seconds; the process ends without. Older checkpoints" in output
    assert list(by_step(tmp_path / "out")) == [5]
    load_checkpoint(latest_checkpoint(tmp_path / "out"))
    assert bool(temporary_files(tmp_path / "out")) == ("slow" in options)
    Save("checkpoint-step000006", 6).write(tmp_path / "out")
    assert names_in(tmp_path / "out") == files_of_checkpoints(tmp_path / "out")


def test_a_slurm_job_is_requeued_when_the_step_is_saved(tmp_path):
    """Lightning does it inside its handler of the signal, saving in the middle of whatever it interrupts."""
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\nls {tmp_path}/out > {tmp_path}/saved; echo "$@" > {tmp_path}/called\n')
    scontrol.chmod(0o755)
    names = {"NTASKS": "1", "JOB_ID": "1234", "JOB_NAME": "a", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    slurm = {**{f"SLURM_{key}": value for key, value in names.items()}, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    with Run(tmp_path, slurm, every=1000) as run:
        run.until("step 3")
        run.send(signal.SIGUSR1)
        code, output = run.end()
    assert code == 138, output
    assert (tmp_path / "called").read_text() == "requeue 1234\n"
    newest = latest_checkpoint(tmp_path / "out")
    assert newest.step in (4, 5)
    assert newest.paths.manifest.name in (tmp_path / "saved").read_text()
    lightnings_own = load_checkpoint(tmp_path / "hpc_ckpt_1.ckpt")
    assert lightnings_own.global_step == newest.step


class SignalsItself(Callback):
    """In the middle of a step; then notes the hooks that follow."""

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._record = Record(hooks=[])

    @property
    def hooks(self) -> list[str]:
        return self._record.hooks

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == self._batch:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.hooks.append(f"batch {trainer.fit_loop.epoch_loop.total_batch_idx}")

    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
        self.hooks.append("validation")

    def on_train_epoch_start(self, *_: Any) -> None:
        self.hooks.append("epoch")


@pytest.mark.parametrize(
    ("batch", "options", "saved_step", "hooks_behind"),
    [
        (3, {}, 4, ["batch 4"]),  # not what is due at step 5: a save and a validation
        (6, {"one_more_step": False}, 7, []),
        (6, {}, 7, ["epoch", "batch 7"]),
        (3, {"accumulate_grad_batches": 4}, 1, ["batch 4", "validation", "batch 5", "batch 6"]),
        (3, {"max_steps": 4}, 4, []),
        (6, {"max_epochs": 1}, 7, []),
        (3, {"save_weights_only": True}, 4, []),
        (3, {"beside": ModelCheckpoint(filename="stock", save_on_exception=True, save_top_k=0)}, 4, []),
    ],
)
def test_one_more_step_is_left_for_the_resume_to_compare(tmp_path, batch, options, saved_step, hooks_behind):
    options = dict(options)
    own = {name: options.pop(name) for name in ("save_weights_only",) if name in options}
    saver = SeparatedCheckpoint(tmp_path, every_n_train_steps=5, save_top_k=-1, save_on_exception=True, **own)
    stop = StopOnSignal(**{name: options.pop(name) for name in ("one_more_step",) if name in options})
    signals = SignalsItself(batch)
    beside = [options.pop("beside")] if "beside" in options else []
    options = {"max_epochs": -1, "val_check_interval": 5, "check_val_every_n_epoch": None, **options}
    with pytest.raises(StoppedBySignal) as stopped:
        fit(saver, *beside, signals, stop, default_root_dir=tmp_path / "root", **options)
    assert (stopped.value.code, stopped.value.global_step) == (143, saved_step)
    assert signals.hooks[signals.hooks.index(f"batch {batch}") + 1 :] == hooks_behind
    assert max(by_step(tmp_path)) == saved_step
    steps = tmp_path / STEPS_NAME
    assert (steps.exists() and len(steps.read_text().splitlines()) == 2) == bool(hooks_behind)


def test_signals_are_given_back(tmp_path):
    """Also to whoever listens to them through a file descriptor."""
    reader, other = os.pipe()
    os.set_blocking(other, False)
    os.set_blocking(reader, False)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    previous = signal.set_wakeup_fd(other)
    stop = StopOnSignal(deadline_sec=60)
    try:
        fit(SeparatedCheckpoint(tmp_path), stop, max_steps=2)
        os.kill(os.getpid(), signal.SIGCHLD)
        assert signal.set_wakeup_fd(previous) == other
    finally:
        os.close(reader)
        os.close(other)
    assert {number: signal.getsignal(number) for number in before} == before
    assert stop.received is None


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="deadline_sec: expected more than 0"):
        StopOnSignal(deadline_sec=0)


def test_forked_children_obey_their_parent_and_nobody_else():
    children = ShieldedChildren([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
    children.start()
    try:
        process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,), daemon=True)
        process.start()
        time.sleep(0.2)
        for name in ("TERM", "USR1", "INT"):
            subprocess.run(["kill", f"-{name}", str(process.pid)], check=True)
        process.join(timeout=0.5)
        assert process.is_alive()
        process.terminate()
        process.join(timeout=60)
        assert process.exitcode == 0
    finally:
        children.stop()
        process.kill()
