"""Two ranks with DistributedDataParallel; ``--bug`` restores rank 0's random numbers on every rank.

``torchrun --standalone --nproc_per_node 2 ddp_program.py OUT [--bug]``
"""

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

STEPS, SAVE = 30, 5


def every_rank(value: torch.Tensor) -> list[torch.Tensor]:
    found = [torch.zeros_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(found, value)
    return found


def main() -> None:
    out, bug = Path(sys.argv[1]), "--bug" in sys.argv
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
    model = DistributedDataParallel(layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(100 + rank)
    step = 0
    checkpoint = out / "ckpt.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"][0 if bug else rank])
        step = state["step"]
    while step < STEPS:
        x = torch.randn(8, 4)
        loss = (model(x) - x.sum(1, keepdim=True)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        mean = torch.stack(every_rank(loss.detach())).mean().item()
        rng = every_rank(torch.get_rng_state())
        if rank == 0:
            with (out / "log.csv").open("a") as log:
                log.write(f"{'' if log.tell() else 'step,loss' + chr(10)}{step},{mean!r}\n")
            if step % SAVE == 0:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": rng, "step": step}
                torch.save(state, checkpoint.with_suffix(".tmp"))
                os.replace(checkpoint.with_suffix(".tmp"), checkpoint)  # noqa: PTH105
        time.sleep(0.02)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
