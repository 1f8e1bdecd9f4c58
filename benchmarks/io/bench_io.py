"""Speed and memory of saving and loading a checkpoint, against torch.save and torch.load of one unified file.

    python benchmarks/io/bench_io.py [--sizes-mb 100 500 1500] [--rounds 5] [--directory DIR]

Both ways save the same model and AdamW state durably (fsync) to new files, and load it from the page cache in a new
process, in paired rounds that alternate which goes first. Printed: a table of medians, the ratios of the pairs, and one
JSON line.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from neuromanifold_gpt import save_checkpoint

LAYER_BYTES = 3 * 4 * 2048 * 2048  # weight and two moments


def trained_state(size_mb: int) -> tuple[nn.Module, torch.optim.AdamW]:
    """A stack of linear layers after one AdamW step: ``size_mb`` of weights and moments."""
    layers = max(1, round(size_mb * 1e6 / LAYER_BYTES))
    model = nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(layers)))
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def save_unified(directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """What most loops do, made durable."""
    with (directory / "unified.pt").open("wb") as file:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1}, file)
        file.flush()
        os.fsync(file.fileno())


def timed(action: Callable[[], object]) -> float:
    """Seconds, after outstanding writes of others are done."""
    gc.collect()
    os.sync()
    started = time.perf_counter()
    result = action()
    duration_sec = time.perf_counter() - started
    del result
    return duration_sec


def load_in_new_process(name: str, path: Path) -> float:
    """Seconds of one load, without imports, in a process of its own, as a resume does it: into memory never used."""
    script = (
        "import sys, time, torch; from neuromanifold_gpt import load_checkpoint; "
        f"load = {'load_checkpoint' if name == 'load' else 'torch.load'}; "
        "started = time.perf_counter(); content = load(sys.argv[1]); print(time.perf_counter() - started)"
    )
    result = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    return float(result.stdout)


def peak_growth_bytes(action: Callable[[], object]) -> int:
    """How far the resident memory of this process rises above its level before, while ``action`` runs (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status_bytes("VmRSS")
    action()
    return max(0, _status_bytes("VmHWM") - before)


def _status_bytes(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def measure(size_mb: int, rounds: int, parent: Path) -> dict[str, float]:
    """Medians over the rounds; ratios are medians of the ratios of each pair."""
    model, optimizer = trained_state(size_mb)
    times: dict[str, list[float]] = {"save": [], "torch_save": [], "load": [], "torch_load": []}

    def in_new_directory(name: str, action: Callable[[Path], object]) -> Path:
        # New files each time: writing over old ones spares the file system work.
        directory = Path(tempfile.mkdtemp(dir=parent))
        times[name].append(timed(lambda: action(directory)))
        return directory

    for round_number in range(rounds):
        order = [
            ("save", lambda d: save_checkpoint(d, step=1, model=model, optimizers=optimizer)),
            ("torch_save", lambda d: save_unified(d, model, optimizer)),
        ]
        directories = {name: in_new_directory(name, action) for name, action in order[:: -1 if round_number % 2 else 1]}
        unified = directories["torch_save"] / "unified.pt"
        loads = [("load", directories["save"] / "checkpoint-step000001-model.pt"), ("torch_load", unified)]
        for name, path in loads[:: -1 if round_number % 2 else 1]:
            times[name].append(load_in_new_process(name, path))
        for directory in directories.values():
            shutil.rmtree(directory)

    directory = Path(tempfile.mkdtemp(dir=parent))
    growth = peak_growth_bytes(lambda: save_checkpoint(directory, step=1, model=model, optimizers=optimizer))
    shutil.rmtree(directory)
    result: dict[str, float] = {"size_mb": size_mb, "extra_memory_of_save_mib": growth / 2**20}
    for name, values in times.items():
        result[f"{name}_sec"] = statistics.median(values)
    for ours, theirs in (("save", "torch_save"), ("load", "torch_load")):
        result[f"{ours}_ratio"] = statistics.median(a / b for a, b in zip(times[ours], times[theirs], strict=True))
    return result


def main() -> None:
    """Measure each size and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes-mb", type=int, nargs="+", default=[100, 500, 1500])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    columns = ("size MB", "save s", "torch.save+fsync s", "ratio", "verified load s", "torch.load s", "ratio")
    print(" | ".join((*columns, "extra MiB")))
    results = []
    for size_mb in options.sizes_mb:
        parent = Path(tempfile.mkdtemp(prefix="bench_io_", dir=options.directory))
        try:
            r = measure(size_mb, options.rounds, parent)
        finally:
            shutil.rmtree(parent)
        results.append(r)
        print(
            f"{size_mb} | {r['save_sec']:.3f} | {r['torch_save_sec']:.3f} | {r['save_ratio']:.2f} | "
            f"{r['load_sec']:.3f} | "
            f"{r['torch_load_sec']:.3f} | {r['load_ratio']:.2f} | {r['extra_memory_of_save_mib']:.1f}",
            flush=True,
        )
    machine = {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "python": platform.python_version()}
    summary = {"benchmark": "io", "torch": torch.__version__, **machine, "rounds": options.rounds}
    print(json.dumps({**summary, "results": results}))


if __name__ == "__main__":
    main()
