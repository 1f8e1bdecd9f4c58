"""A process that does what it is told, line by line, and answers each line.

::

    python lock_holder.py DIRECTORY
    lock | unlock                   the whole directory, for a run
    save STEP                       one checkpoint
    slow STEP                       one checkpoint, whose save goes on when the file "go" appears
    workers                         starts data workers, which outlive their parent
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from neuromanifold_gpt import CheckpointError, lock_directory, save_checkpoint
from neuromanifold_gpt.checkpoint import writer
from neuromanifold_gpt.checkpoint.storage import LocalStorage


class Slow(LocalStorage):
    """Waits in the middle of a save."""

    def rename(self, source: Path, target: Path) -> None:
        """Say that the save is half done, and wait."""
        directory = target.parent.parent
        (directory / "half").touch()
        while not (directory / "go").exists():
            time.sleep(0.01)
        super().rename(source, target)


class Endless(torch.utils.data.Dataset):
    """Samples whose workers sleep on when their parent is gone."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, i: int) -> int:
        if i:
            time.sleep(1000)
        return torch.utils.data.get_worker_info().id


def main() -> None:
    """Serve lines until standard input ends."""
    directory = Path(sys.argv[1])
    lock, iterator = lock_directory(directory), None
    model = torch.nn.Linear(2, 2)
    print("ready", flush=True)
    for line in sys.stdin:
        action, *arguments = line.split()
        try:
            if action == "lock":
                lock.acquire()
            elif action == "unlock":
                lock.release()
            elif action in ("save", "slow"):
                writer.LocalStorage = Slow if action == "slow" else LocalStorage
                save_checkpoint(directory, step=int(arguments[0]), model=model)
            elif action == "workers":
                loader = torch.utils.data.DataLoader(Endless(), batch_size=1, num_workers=2, prefetch_factor=1)
                iterator = iter(loader)
                next(iterator)
                print(*(worker.pid for worker in iterator._workers), flush=True)
                continue
            print("done", flush=True)
        except CheckpointError as error:
            print(f"{type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    main()
