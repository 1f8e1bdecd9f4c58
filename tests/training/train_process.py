"""Run train.py as a user does, in processes of its own, and end them at a given step."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

from .. import warm_process
from ..warm_process import WarmProcess

SMALL = {
    "n_layer": 1,
    "n_embd": 32,
    "n_head": 2,
    "block_size": 32,
    "batch_size": 4,
    "eval_interval": 15,
    "eval_iters": 2,
    "save_interval": 10,
    "log_interval": 1,
    "sample_tokens": 0,
    "max_iters": 40,
}


def command(out_dir: Path, **flags: object) -> list[str]:
    """The command line behind ``python``, for a small model, with some flags changed."""
    settings = {**SMALL, "out_dir": out_dir, **flags}
    return ["train.py", *(f"--{key}={value}" for key, value in settings.items())]


def train(out_dir: Path, **flags: object) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    return warm_process.run(*command(out_dir, **flags))


def train_and_stop(out_dir: Path, at_step: int, number: signal.Signals, **flags: object) -> tuple[int, str]:
    """Run until metrics.csv has a row for ``at_step``, then send a signal; return exit code and output."""
    process = WarmProcess(*command(out_dir, **flags), merged=True)
    deadline_sec = time.monotonic() + 120
    while last_step(out_dir) < at_step:
        assert process.poll() is None, f"ended before step {at_step}: {process.communicate()[0]}"
        assert time.monotonic() < deadline_sec, f"step {at_step} was not reached"
        time.sleep(0.002)
    process.send_signal(number)
    output, _ = process.communicate()
    return process.wait(), output


def last_step(out_dir: Path) -> int:
    """The last complete row of metrics.csv."""
    path = out_dir / "metrics.csv"
    rows = path.read_text().split("\n")[1:-1] if path.exists() else []
    return int(rows[-1].split(",")[0]) if rows else 0


def data_files(out_dir: Path) -> dict[str, bytes]:
    """Everything of a run that is a function of its training state."""
    return {
        path.name: path.read_bytes()
        for path in sorted(out_dir.iterdir())
        if path.suffix in (".pt", ".csv", ".ckpt") and path.is_file()
    }
