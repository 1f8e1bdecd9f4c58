"""Forks a process for each line on standard input, which saves checkpoints until it is killed.

Forked, so that torch is imported once. A child says the version of each save that has returned, and how it was made::

    python saves_until_killed.py DIRECTORY FIRST_VERSION ...
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from neuromanifold_gpt.checkpoint.naming import paths_of_name
from neuromanifold_gpt.checkpoint.writer import stage_checkpoint, write_checkpoint

NUMBERS = 200_000


def save_forever(directory: Path, version: int) -> None:
    """Every other save goes over an existing name, every third is model-only."""
    while True:
        value = torch.full((NUMBERS,), float(version))
        model = {"state_dict": {"weight": value}, "config": {"version": version}}
        optimizer = {"optimizer_states": [{"moment": value + 0.5}], "lr_schedulers": []}
        name = "last" if version % 2 else f"step{version % 6}"
        staged = stage_checkpoint(version, model, None if version % 3 == 0 else optimizer)
        write_checkpoint(paths_of_name(directory, name), staged)
        os.write(1, f"{version} {name}\n".encode())  # in one piece: half a line would swallow the next
        version += 1


def main() -> None:
    """Serve ``first version`` lines until standard input ends."""
    directory = Path(sys.argv[1])
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            save_forever(directory, int(line))
        print("pid", child, flush=True)
        os.waitpid(child, 0)
        print("dead", flush=True)


if __name__ == "__main__":
    main()
