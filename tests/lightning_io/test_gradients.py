"""Gradients behind a step: what waits for another optimizer, and what is zero rather than ``None``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neuromanifold_gpt import SeparatedCheckpoint
from neuromanifold_gpt.lightning_io.content import RESUME_KEY

from .toy import ToyModule, by_step, contents, fit


class StepsInTurns(ToyModule):
    """As GANs and multi-task models do: the second optimizer waits for every third batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Linear(8, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        first, second = self.optimizers()
        loss = nn.functional.mse_loss(self.net(batch[0]) + self.other(batch[0]), batch[1])
        self.history.append((self.global_step, loss.item(), 0.0, batch[2].tolist()))
        self.manual_backward(loss)
        first.step()
        first.zero_grad()
        if batch_idx % 3 == 2:
            second.step()
            second.zero_grad()
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), 1e-2), torch.optim.SGD(self.other.parameters(), 1e-2)


class HeadsInTurns(ToyModule):
    """A head that rests goes on moving by momentum, since its gradient is zeroed and not let go of."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(3))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        head = self.heads[self.global_step % 3]
        loss = nn.functional.mse_loss(self.net(batch[0]) + head(batch[0]), batch[1])
        self.history.append((self.global_step, loss.item(), 0.0, batch[2].tolist()))
        return loss

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        optimizer.zero_grad(set_to_none=False)


@pytest.mark.parametrize("kind", [StepsInTurns, HeadsInTurns])
def test_go_on(kind: type[ToyModule], tmp_path: Path) -> None:
    def run(name: str, path: Path | None = None) -> list[Any]:
        saver = SeparatedCheckpoint(tmp_path / name, every_n_train_steps=1, save_top_k=-1)
        return fit(saver, module=kind(), ckpt_path=path, validate=False, max_steps=20)[1].history

    whole = run("a")
    saved = by_step(tmp_path / "a")
    last = max(saved)
    for step in sorted(saved)[4:9:4]:
        again = run(f"b{step}", saved[step].model_path)
        assert again == whole[-len(again) :], f"from step {step}"
        assert contents(by_step(tmp_path / f"b{step}")[last]) == contents(saved[last]), f"from step {step}"


def test_those_that_a_step_has_used_are_not_stored(tmp_path: Path) -> None:
    fit(SeparatedCheckpoint(tmp_path, every_n_train_steps=2), validate=False, max_steps=2)
    content = torch.load(by_step(tmp_path)[2].optimizer_path, weights_only=True)
    [gradients] = content[RESUME_KEY]["gradients"]
    assert gradients["unused"] == {}
    assert len(gradients["used"]) == 6
