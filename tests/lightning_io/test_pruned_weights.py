"""Pruning between two epochs ranks what the last forward pass has left, which is older than the last step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.utils import prune

from neuromanifold_gpt import SeparatedCheckpoint

from .toy import ToyModule, fit


class PrunesByEpochs(ToyModule):
    def __init__(self) -> None:
        super().__init__()
        prune.identity(self.net[0], "weight")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)

    def on_train_epoch_start(self) -> None:
        if self.current_epoch > 0:
            prune.l1_unstructured(self.net[0], "weight", amount=0.2)


def trained(directory: Path, *ends: int) -> tuple[list[float], torch.Tensor]:
    """The losses of all steps, and the mask behind the last."""
    losses = []
    for end in ends:
        saves = SeparatedCheckpoint(directory, every_n_train_steps=7)  # an epoch has as many
        path = "last" if losses else None
        torch.manual_seed(len(losses))  # of the weights that each process begins with
        _, module = fit(saves, module=PrunesByEpochs(), validate=False, max_steps=end, ckpt_path=path)
        losses += [loss for _, loss, *_ in module.history]
    return losses, module.net[0].weight_mask


@pytest.mark.parametrize("end", [7, 14])
def test_between_two_epochs(end: int, tmp_path: Path) -> None:
    losses, mask = trained(tmp_path / "whole", 21)
    resumed_losses, resumed_mask = trained(tmp_path / "resumed", end, 21)
    assert losses == resumed_losses
    assert torch.equal(mask, resumed_mask)
