"""torch's pruning ranks what the last forward pass has left: a resumed process has made none."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import prune

from neuromanifold_gpt import load_checkpoint, save_checkpoint


def pruned_model() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 1))
    for layer in model:
        prune.identity(layer, "weight")
    return model


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        model(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_plain_loop_has_what_its_last_pass_left(tmp_path: Path) -> None:
    model = pruned_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    trained(model, optimizer, 3)
    saved = save_checkpoint(tmp_path, step=3, model=model, optimizers=optimizer)
    resumed = pruned_model()
    load_checkpoint(saved).restore(model=resumed, optimizers=torch.optim.SGD(resumed.parameters(), 0.05))
    for layer, other in zip(model, resumed, strict=True):
        assert not torch.equal(layer.weight, layer.weight_orig), "the last step is not in it"
        assert torch.equal(layer.weight, other.weight)
        assert layer.weight.data_ptr() != other.weight.data_ptr()


def test_what_is_not_pruned_any_more_stays_as_it_is(tmp_path: Path) -> None:
    model = pruned_model()
    saved = save_checkpoint(tmp_path, step=1, model=model)
    for layer in model:
        prune.remove(layer, "weight")
    plain = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 1))
    load_checkpoint(saved).restore(model=plain, strict=False)
    assert all(isinstance(layer.weight, nn.Parameter) for layer in plain)
