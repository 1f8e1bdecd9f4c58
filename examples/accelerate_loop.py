"""A loop with Hugging Face's accelerate, saved and resumed with ``save_state`` and ``skip_first_batches``.

python examples/accelerate_loop.py --out_dir=OUT
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

STEPS, SAVE_EVERY = 60, 9


def main() -> None:
    """Train 60 steps, from the newest state if there is one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out_dir", type=Path, required=True)
    out_dir = parser.parse_args().out_dir
    set_seed(1)
    inputs = torch.randn(160, 8)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    loader = DataLoader(TensorDataset(inputs, (inputs.sum(1) > 0).long()), batch_size=8, shuffle=True)
    accelerator = Accelerator(cpu=True)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    saved = sorted(out_dir.glob("step_*"), key=lambda path: int(path.name.split("_")[1]))
    step = 0
    if saved:
        accelerator.load_state(str(saved[-1]))
        step = int(saved[-1].name.split("_")[1])
    with (out_dir / "log.jsonl").open("a") as log:
        while step < STEPS:
            skipped = step % len(loader)
            for batch, labels in accelerator.skip_first_batches(loader, skipped) if skipped else loader:
                loss = nn.functional.cross_entropy(model(batch), labels)
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                step += 1
                log.write(json.dumps({"step": step, "loss": loss.item(), "lr": scheduler.get_last_lr()[0]}) + "\n")
                log.flush()
                if step % SAVE_EVERY == 0:
                    accelerator.save_state(str(out_dir / f"step_{step}"))
                if step == STEPS:
                    break


if __name__ == "__main__":
    main()
