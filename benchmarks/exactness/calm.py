"""The tests' networks without dropout, so that a scenario needs no random numbers but where it is about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from tests.exactness.cell import Cell
from tests.exactness.ingredients.networks import NETWORKS

_HAVE_DROPOUT = ("plain", "dropout", "matrices", "tied", "buffers", "frozen", "equal layers", "equal layers, reordered")
_SUFFIX = ", no dropout"


def _without_dropout(make: Callable[[], nn.Module]) -> nn.Module:
    network = make()
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                setattr(module, name, nn.Identity())
    return network


NETWORKS.update({name + _SUFFIX: partial(_without_dropout, NETWORKS[name]) for name in _HAVE_DROPOUT})


def without_dropout(cell: Cell) -> Cell:
    """The same cell with a network that draws no random numbers."""
    changes: dict[str, Any] = dict(cell.changes)
    if changes.get("network") in _HAVE_DROPOUT:
        changes["network"] += _SUFFIX
    network = cell.network + _SUFFIX if cell.network in _HAVE_DROPOUT else cell.network
    return replace(cell, network=network, changes=changes)
