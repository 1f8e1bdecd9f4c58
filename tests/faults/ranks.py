"""One of two ranks that train together and save; at a chosen file operation of a save, a rank is killed.

::

    python -m tests.faults.ranks DIRECTORY RANK OPTIONS     options as JSON: kind, kill, at, refuse, stop, on_save_error
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import nn

from neuromanifold_gpt import (
    CheckpointError,
    ResumableDataLoader,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from neuromanifold_gpt.checkpoint import writer

from .storages import ObservedStorage

TIMEOUT_SEC = 20
LAST_STEP = 12
EVERY = 4


class KillingStorage(ObservedStorage):
    """Kills a rank before the file operation ``at``, such as ``rename checkpoint-step000008.json``, and goes on."""

    directory = Path()
    victim: int | None = None
    at = ""

    def before(self, operation: str, *paths: Path) -> None:
        """Kill when it is time."""
        if f"{operation} {paths[-1].name}" != self.at or self.victim is None:
            return
        pid = int((self.directory / f"pid{self.victim}").read_text())
        KillingStorage.victim = None
        os.kill(pid, signal.SIGKILL)
        while Path(f"/proc/{pid}").exists() and ") Z " not in Path(f"/proc/{pid}/stat").read_text():
            time.sleep(0.01)


def plain(directory: Path, rank: int, options: dict[str, Any]) -> None:
    """A plain loop under DistributedDataParallel."""
    torch.distributed.init_process_group(
        "gloo", init_method="env://", rank=rank, world_size=2, timeout=timedelta(seconds=TIMEOUT_SEC)
    )
    torch.manual_seed(7)
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, 1)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    loader = ResumableDataLoader([[float(i)] for i in range(14)], 2, shuffle=True, seed=3, collate_fn=torch.tensor)
    random.seed(rank)
    np.random.seed(rank)
    torch.manual_seed(100 + rank)
    parts: dict[str, Any] = {"model": model, "optimizers": optimizer, "loaders": loader}
    step = 0
    if (newest := latest_checkpoint(directory / "out")) is not None:
        step = load_checkpoint(newest).restore(**parts).global_step
        print("from", step, flush=True)
    torch.distributed.barrier()
    while step < LAST_STEP:
        for x in loader:
            optimizer.zero_grad()
            model(x).pow(2).mean().backward()
            optimizer.step()
            step += 1
            if step % EVERY == 0:
                if step == options.get("refuse"):
                    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
                try:
                    save_checkpoint(directory / "out", step=step, **parts)
                except CheckpointError as error:
                    print("refused", type(error).__name__, flush=True)
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            if step == LAST_STEP:
                break


def lightning(directory: Path, rank: int, options: dict[str, Any]) -> None:
    """The same in Lightning."""
    import warnings

    from lightning.pytorch import Callback
    from lightning.pytorch.strategies import DDPStrategy

    from neuromanifold_gpt import SeparatedCheckpoint, StopOnSignal
    from neuromanifold_gpt.checkpoint.errors import SaveFailedWarning
    from tests.lightning_io.toy import fit

    class Refuse(Callback):
        def on_save_checkpoint(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == options.get("refuse"):
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))

        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            if trainer.global_step == 5 and options.get("stop") == rank:
                os.kill(os.getpid(), signal.SIGTERM)

    saver = SeparatedCheckpoint(
        directory / "out",
        every_n_train_steps=EVERY,
        save_top_k=-1,
        monitor="train_loss",
        on_save_error=options.get("on_save_error", "raise"),
    )
    newest = latest_checkpoint(directory / "out")
    print("from", newest.step if newest else 0, flush=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            fit(
                saver,
                Refuse(),
                StopOnSignal(deadline_sec=60),
                ckpt_path=newest.model_path if newest else None,
                max_steps=LAST_STEP,
                validate=False,
                limit_train_batches=3,
                devices=2,
                strategy=DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=TIMEOUT_SEC)),
                use_distributed_sampler=False,
                default_root_dir=directory,
            )
        except CheckpointError as error:
            print("refused", type(error).__name__, flush=True)
    if any(warning.category is SaveFailedWarning for warning in caught):
        print("warned", flush=True)
    print("believes", sorted(Path(path).name for path in saver.best_k_models), flush=True)


def main() -> None:
    """Run one rank."""
    directory, rank, options = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    (directory / f"pid{rank}").write_text(str(os.getpid()))
    KillingStorage.directory = directory
    KillingStorage.victim, KillingStorage.at = options.get("kill"), options.get("at", "")
    writer.LocalStorage = KillingStorage
    {"plain": plain, "lightning": lightning}[options["kind"]](directory, rank, options)
    print("finished", flush=True)


if __name__ == "__main__":
    main()
