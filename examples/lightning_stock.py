"""A plain Lightning script with the stock ModelCheckpoint, resumed as Lightning's documentation says.

python examples/lightning_stock.py --out_dir=OUT
"""

from __future__ import annotations

import argparse
import logging
import warnings
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Classifier(LightningModule):
    """Two layers with dropout, Adam with a schedule by step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 2))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Log the loss of every step."""
        loss = nn.functional.cross_entropy(self.layers(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        """Adam, its learning rate falling by step."""
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def main() -> None:
    """Train 60 steps, from the last checkpoint if there is one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out_dir", required=True)
    out_dir = parser.parse_args().out_dir
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    seed_everything(1, verbose=False)
    inputs = torch.randn(160, 8)
    loader = DataLoader(TensorDataset(inputs, (inputs.sum(1) > 0).long()), batch_size=8, shuffle=True)
    trainer = Trainer(
        max_steps=60,
        max_epochs=-1,
        accelerator="cpu",
        logger=CSVLogger(out_dir, name="logs", flush_logs_every_n_steps=1),
        callbacks=[ModelCheckpoint(out_dir, save_last=True, save_top_k=-1, every_n_train_steps=9)],
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(), loader, ckpt_path="last")


if __name__ == "__main__":
    main()
