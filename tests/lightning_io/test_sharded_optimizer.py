"""An optimizer whose state lies on several ranks is saved by the first, and each takes its part again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
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
        self.layers = nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 1))
    def training_step(self, batch, batch_idx):
        return self.layers(batch).square().mean()
    def configure_optimizers(self):
        return ZeroRedundancyOptimizer(self.parameters(), torch.optim.Adam, lr=0.01)

def fit(directory, max_steps):
    seed_everything(1, verbose=False)
    module = Module()
    Trainer(
        callbacks=[SeparatedCheckpoint(directory, every_n_train_steps=2)], max_steps=max_steps, logger=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu", devices=2,
        strategy=DDPStrategy(process_group_backend="gloo"),
    ).fit(module, ResumableDataLoader(torch.arange(1.0, 17.0).unsqueeze(1)), ckpt_path="last")
    return module.state_dict()

whole = fit(sys.argv[1] + "/whole", 6)
fit(sys.argv[1] + "/parts", 4)
parts = fit(sys.argv[1] + "/parts", 6)
assert all(value.equal(parts[name]) for name, value in whole.items())
"""


def test_in_two_processes(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    root = str(Path(__file__).parents[2])
    command, environment = [sys.executable, "program.py", str(tmp_path)], {**os.environ, "PYTHONPATH": root}
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, timeout=300, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
