"""Hugging Face's Trainer, resumed as its documentation says.

python examples/hf_trainer.py --out_dir=OUT
"""

from __future__ import annotations

import argparse

import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint


class Classifier(nn.Module):
    """Two layers with dropout, in the form that Trainer asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 2))

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Loss and logits."""
        logits = self.layers(inputs)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def main() -> None:
    """Train 60 steps, from the last checkpoint if there is one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out_dir", required=True)
    out_dir = parser.parse_args().out_dir
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(160, 8, generator=generator)
    data = [{"inputs": row, "labels": (row.sum() > 0).long()} for row in inputs]
    settings = TrainingArguments(
        out_dir,
        max_steps=60,
        per_device_train_batch_size=8,
        save_steps=9,
        logging_steps=1,
        seed=1,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    torch.manual_seed(1)
    trainer = Trainer(Classifier(), settings, train_dataset=data)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(out_dir))


if __name__ == "__main__":
    main()
