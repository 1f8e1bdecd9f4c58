"""What was logged last can be read by a resumed program, as by one that was not interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from neuromanifold_gpt import SeparatedCheckpoint, list_checkpoints

from .toy import ToyModule, contents, fit


class ReadsWhatIsLogged(ToyModule):
    """``logged_metrics`` have what each step logs only at every third step."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        read = (self.trainer.logged_metrics.get("norm", 0.0), self.trainer.callback_metrics.get("norm", 0.0))
        return loss * (1 + 0.1 * float(read[0])) + 0.1 * float(read[1]) * self.net[0].weight.square().sum()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.log("norm", self.net[0].weight.grad.norm())


@pytest.mark.parametrize("end", [5, 7])
def test_within_an_epoch_and_at_its_end(end: int, tmp_path: Path) -> None:
    for folder, ends in (("whole", [15]), ("parts", [end, 15])):
        for number, last in enumerate(ends):
            saves = SeparatedCheckpoint(tmp_path / folder, every_n_train_steps=end)
            path = "last" if number else None
            torch.manual_seed(number)  # of the weights that each process begins with
            fit(saves, module=ReadsWhatIsLogged(), validate=False, max_steps=last, ckpt_path=path, log_every_n_steps=3)
    whole, parts = (list_checkpoints(tmp_path / folder)[-1] for folder in ("whole", "parts"))
    assert contents(whole) == contents(parts)
