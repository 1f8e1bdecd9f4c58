"""What is of one rank only: an optimizer's part of the state is put back; of buffers those of the first are saved."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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

def fit(directory, max_steps, module, data=None, *callbacks):
    Trainer(
        callbacks=[SeparatedCheckpoint(directory, every_n_train_steps=2), *callbacks], max_steps=max_steps,
        logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu", devices=2,
        strategy=DDPStrategy(process_group_backend="gloo"),
    ).fit(module, data or ResumableDataLoader(torch.arange(1.0, 17.0).unsqueeze(1), 2), ckpt_path="last")
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
STATES = """
import time
from lightning.pytorch import Callback, LightningDataModule

class Means(Callback):
    seen, seconds = 0.0, 0.0
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.seen += batch.mean().item()
        self.seconds = time.time()
    def state_dict(self):
        return {"seen": self.seen if own else 1.0, "seconds": self.seconds}
    def load_state_dict(self, state):
        self.seen = state["seen"]

class Data(LightningDataModule):
    def train_dataloader(self):
        return ResumableDataLoader(torch.arange(1.0, 17.0).unsqueeze(1), 2)
    def state_dict(self):
        return {"rank": self.trainer.global_rank * own}
    def load_state_dict(self, state):
        pass

class Counts(nn.Identity):
    def get_extra_state(self):
        return {"rank": torch.distributed.get_rank() * own}
    def set_extra_state(self, state):
        pass

class Slows(Module):
    def __init__(self):
        super().__init__()
        self.layers.append(Counts())
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "loss", "interval": "step"}}
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("loss", batch.mean() * (-1 if self.global_rank and own else 1), sync_dist=not own)
        return loss

fit(sys.argv[1], 4, Slows(), Data(), Means())
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


@pytest.mark.parametrize("own", [False, True])
def test_states_that_are_others_on_each_rank_are_said(own: bool, tmp_path: Path) -> None:
    text = said(tmp_path, f"own = {own}\n{STATES}")
    assert (SAID in text) == own
    names = (
        "layers.3._extra_state",
        *("the state of Means", "the state of Data", "the state of scheduler 0"),
        "the settings of optimizer 0, group 0",
    )
    assert (f"{SAID}{'; '.join(names)}. " in text) == own
