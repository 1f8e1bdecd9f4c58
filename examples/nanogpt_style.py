"""A loop in the style of nanoGPT, written for this purpose: one ``ckpt.pt`` that is overwritten, random batches.

It resumes weights, optimizer and step number, and no random numbers; so batches and dropout are others after a resume.

    python examples/nanogpt_style.py --out_dir=OUT [--resume]
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from torch import nn

TEXT = Path(__file__).read_text()
BLOCK, BATCH, STEPS, SAVE_EVERY = 16, 8, 60, 10


def batch(data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Random pieces of the text, and the same pieces one letter further on."""
    starts = torch.randint(len(data) - BLOCK - 1, (BATCH,))
    return (
        torch.stack([data[start : start + BLOCK] for start in starts]),
        torch.stack([data[start + 1 : start + BLOCK + 1] for start in starts]),
    )


def learning_rate(step: int) -> float:
    """Warm-up, then cosine."""
    return 1e-2 * min((step + 1) / 10, 0.5 * (1 + math.cos(math.pi * step / STEPS)))


def main() -> None:
    """Train, from ``ckpt.pt`` if it is asked for and there."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out_dir", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(1337)
    torch.set_num_threads(1)
    data = torch.tensor([min(ord(letter), 127) for letter in TEXT])
    model = nn.Sequential(nn.Embedding(128, 16), nn.Dropout(0.1), nn.Linear(16, 128))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    step, path = 0, options.out_dir / "ckpt.pt"
    if options.resume and path.exists():
        checkpoint = torch.load(path, weights_only=True)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        step = checkpoint["iter_num"]
    with (options.out_dir / "log.jsonl").open("a") as log:
        while step < STEPS:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step)
            inputs, targets = batch(data)
            loss = nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            log.write(json.dumps({"iter": step, "loss": loss.item(), "lr": learning_rate(step - 1)}) + "\n")
            log.flush()
            if step % SAVE_EVERY == 0:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iter_num": step}
                torch.save(state, path)


if __name__ == "__main__":
    main()
