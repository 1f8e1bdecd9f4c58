"""What ``DistributedDataParallel`` keeps, or leaves different on each rank, is said."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.multiprocessing.spawn import spawn

from neuromanifold_gpt import load_checkpoint, save_checkpoint
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning

KINDS = ("fp16", "buffers", "powersgd")


def with_hook(model: nn.parallel.DistributedDataParallel, kind: str) -> None:
    if kind == "powersgd":
        state = powerSGD_hook.PowerSGDState(None, start_powerSGD_iter=2, min_compression_rate=0.1)
        model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    elif kind == "fp16":
        model.register_comm_hook(None, default_hooks.fp16_compress_hook)


def run(rank: int, directory: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{directory}/meet", rank=rank, world_size=2)
    for kind in KINDS:
        train(rank, directory / kind, kind)  # its models are gone before the group is: torch may wait forever otherwise
        dist.barrier()
    dist.destroy_process_group()


def train(rank: int, directory: Path, kind: str) -> None:
    """Save twice, and go on in a model made anew; rank 0 writes what is said."""
    torch.manual_seed(3)
    said = []
    for _ in range(2):
        inner = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        model = nn.parallel.DistributedDataParallel(inner, broadcast_buffers=kind != "buffers")
        with_hook(model, kind)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if said:
                load_checkpoint(directory / "saved").restore(model=model, optimizers=optimizer)
            for step in range(1, 5):
                model(torch.randn(4, 6) + rank).mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                if step % 2 == 0:
                    save_checkpoint(directory / "saved", step=step, model=model, optimizers=optimizer)
        said.append("\n".join(str(w.message) for w in caught if w.category is InexactResumeWarning))
    if rank == 0:
        (directory / "said").write_text("\n---\n".join(said))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))  # where spawned processes look for this module
    spawn(run, (tmp_path,), nprocs=2)
    said = {kind: (tmp_path / kind / "said").read_text().split("\n---\n") for kind in KINDS}
    assert said["fp16"] == ["", ""]
    assert "only that of rank 0 is saved: the model's buffers. " in said["buffers"][0]
    assert "no checkpoint has: the state of powerSGD_hook. " in said["powersgd"][0]
    assert "the state of powerSGD_hook. " in said["powersgd"][1]
