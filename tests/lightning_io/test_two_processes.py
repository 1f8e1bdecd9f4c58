"""What is of one rank only: an optimizer's part of the state is put back; of buffers those of the first are saved."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMMON = """
import sys
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from neuromanifold_gpt import ResumableDataLoader, SeparatedCheckpoint

class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    def training_step(self, batch, batch_idx):
        return self.layers(batch).square().mean()
    def configure_optimizers(self):
        return ZeroRedundancyOptimizer(self.parameters(), torch.optim.Adam, lr=0.01)

def fit(directory, max_steps, module):
    Trainer(
        callbacks=[SeparatedCheckpoint(directory, every_n_train_steps=2)], max_steps=max_steps, logger=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu", devices=2,
        strategy=DDPStrategy(process_group_backend="gloo"),
    ).fit(module, ResumableDataLoader(torch.arange(1.0, 17.0).unsqueeze(1), 2), ckpt_path="last")
    return module.state_dict()
"""
SHARDED_OPTIMIZER = """
def run(directory, max_steps):
    seed_everything(1, verbose=False)
    return fit(sys.argv[1] + directory, max_steps, Module())

whole = run("/whole", 6)
run("/parts", 4)
parts = run("/parts", 6)
assert all(value.equal(parts[name]) for name, value in whole.items())
"""
BUFFERS = """
class Queues(Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("queue", torch.zeros(1))
        self._ddp_params_and_buffers_to_ignore = ["queue"]
    def training_step(self, batch, batch_idx):
        self.queue += batch.mean()
        return super().training_step(batch, batch_idx) + self.queue.sum()

fit(sys.argv[1] + "/a", 2, Module())
print("AND NOW", file=sys.stderr)
fit(sys.argv[1] + "/b", 4, Queues())
"""
SAID = "only that of rank 0 is saved: "


def said(directory: Path, program: str) -> str:
    (directory / "program.py").write_text(COMMON + program)
    root = str(Path(__file__).parents[2])
    command, environment = [sys.executable, "program.py", str(directory)], {**os.environ, "PYTHONPATH": root}
    ended = subprocess.run(
        command, cwd=directory, env=environment, timeout=300, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


def test_an_optimizer_that_is_sharded(tmp_path: Path) -> None:
    said(tmp_path, SHARDED_OPTIMIZER)


def test_buffers_that_are_not_broadcast_are_said_once(tmp_path: Path) -> None:
    before, after = said(tmp_path, BUFFERS).rsplit("AND NOW", 1)  # the other rank says it too
    assert SAID not in before
    assert after.count(SAID) == after.count(f"{SAID}queue. ") == 1
