"""Tensors of the module that each rank of ``DistributedDataParallel`` changes by itself: those of rank 0 are saved."""

from __future__ import annotations

from lightning.pytorch import Trainer
from torch.nn.parallel import DistributedDataParallel

from neuromanifold_gpt.state.unsaved.shown_values import shown_value


def shown_tensors_of_rank(trainer: Trainer) -> dict[str, str | None]:
    """What is shown of those that it neither broadcasts nor averages, by name.

    Other buffers may differ by rank at a save: the next step begins with those of rank 0.
    """
    wrapped = trainer.strategy.model
    if not isinstance(wrapped, DistributedDataParallel):
        return {}
    buffers, saved = dict(wrapped.module.named_buffers()), wrapped.module.state_dict()
    ignored = wrapped.parameters_to_ignore
    names = [name for name in saved if name in ignored or (name in buffers and not wrapped.broadcast_buffers)]
    return {name: shown_value(saved[name].detach()) for name in names}
