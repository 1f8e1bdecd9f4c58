"""Settings of torch's layers that are others after a restore than at the save."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from neuromanifold_gpt import load_checkpoint, save_checkpoint
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning


def with_optimizer(layer: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.ModuleList([layer, nn.Bilinear(1, 1, 1)])
    return model, torch.optim.SGD(model.parameters())


def said_at_restore(directory: Path, saved: nn.Module, restored: nn.Module) -> str:
    model, optimizer = with_optimizer(saved)
    checkpoint = save_checkpoint(directory, step=1, model=model, optimizers=optimizer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, optimizer = with_optimizer(restored)
        load_checkpoint(checkpoint).restore(model=model, optimizers=optimizer)
    return " ".join(str(w.message) for w in caught if w.category is InexactResumeWarning)


@pytest.mark.parametrize(
    ("saved", "restored"),
    [
        (nn.Dropout(0.1), nn.Dropout(0.2)),
        (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)),
        (nn.BCEWithLogitsLoss(), nn.BCEWithLogitsLoss(reduction="sum")),
        (nn.MultiheadAttention(4, 2, dropout=0.1), nn.MultiheadAttention(4, 2, dropout=0.2)),
        (
            nn.TransformerDecoderLayer(4, 2, 4),
            nn.TransformerDecoderLayer(4, 2, 4, activation=functional.gelu),
        ),
        (nn.Embedding(3, 2), nn.Embedding(3, 2, scale_grad_by_freq=True)),
        (nn.AvgPool2d((2, 2), divisor_override=None), nn.AvgPool2d((2, 2), divisor_override=3)),
    ],
)
def test_those_that_decide_are_said(tmp_path: Path, saved: nn.Module, restored: nn.Module) -> None:
    assert f": settings of {type(saved).__name__}. " in said_at_restore(tmp_path, saved, restored)


def with_notes(layer: nn.Module, note: float) -> nn.Module:
    """What a program hangs on a layer of torch is no setting of it."""
    layer.note = note  # type: ignore[assignment]
    return layer


@pytest.mark.parametrize(
    ("saved", "restored"),
    [
        (nn.CrossEntropyLoss(label_smoothing=0.1), nn.CrossEntropyLoss(label_smoothing=0.1)),
        (nn.CrossEntropyLoss(weight=torch.ones(2)), nn.CrossEntropyLoss(weight=torch.ones(2))),
        (nn.ReLU(), nn.ReLU(inplace=True)),
        (
            nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 4), 1, enable_nested_tensor=False),
            nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 4), 1, enable_nested_tensor=False, mask_check=False),
        ),
        (nn.LSTM(2, 2), nn.LSTM(2, 2)),
        (with_notes(nn.Linear(2, 2), 1.5), with_notes(nn.Linear(2, 2), 2.5)),
    ],
)
def test_those_that_decide_nothing_are_not(tmp_path: Path, saved: nn.Module, restored: nn.Module) -> None:
    assert said_at_restore(tmp_path, saved, restored) == ""
