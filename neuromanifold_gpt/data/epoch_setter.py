"""What a loader shows as its sampler, to those who set epochs there."""

from __future__ import annotations

import sys
from typing import Any

from torch.utils.data.distributed import DistributedSampler

from neuromanifold_gpt.data.position import Position

_FABRIC_WRAPPERS = ("lightning.fabric.wrappers", "lightning_fabric.wrappers")


class EpochSetter(DistributedSampler[Any]):
    """Passes ``set_epoch`` on."""

    def __init__(self, position: Position) -> None:  # not super(): that one wants a process group
        self._position = position

    def set_epoch(self, epoch: int) -> None:
        """See :meth:`Position.set_epoch`; Fabric begins to count at 0 in each process, however far training is."""
        asking = sys._getframe(2).f_globals.get("__name__")  # it calls a function that it shares with the Trainer
        if asking in _FABRIC_WRAPPERS:
            self._position.set_counted_epoch(epoch)
        else:
            self._position.set_epoch(epoch)
