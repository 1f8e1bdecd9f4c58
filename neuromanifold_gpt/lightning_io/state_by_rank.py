"""What each rank of ``DistributedDataParallel`` may have by itself: that of rank 0 is saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from neuromanifold_gpt.state.inspection.users_objects import is_a_time, is_of_users_class
from neuromanifold_gpt.state.unsaved.shown_values import shown_value


def shown_by_rank(trainer: Trainer, checkpoint: Mapping[str, Any]) -> dict[str, str | None]:
    """What is shown of it on this rank, by name.

    Buffers that are broadcast may differ by rank at a save: the next step begins with those of rank 0.

    Args:
        trainer: that saves.
        checkpoint: Lightning's, as this rank would write it.
    """
    wrapped = trainer.strategy.model
    if not isinstance(wrapped, DistributedDataParallel):
        return {}
    saved, ignored = wrapped.module.state_dict(), wrapped.parameters_to_ignore
    own_buffers = {} if wrapped.broadcast_buffers else dict(wrapped.module.named_buffers())
    found = {
        name: shown_value(value.detach() if isinstance(value, Tensor) else value)
        for name, value in saved.items()
        if name in ignored or name in own_buffers or not isinstance(value, Tensor)
    }
    for name, state in _states(trainer, checkpoint):
        found[name] = shown_value({key: value for key, value in state.items() if not is_a_time(str(key), value)})
    return found


def _states(trainer: Trainer, checkpoint: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Of callbacks and data module, schedulers, and settings of optimizers."""
    callbacks, data = trainer.callbacks, trainer.datamodule  # type: ignore[attr-defined]
    found = {
        f"the state of {type(callback).__name__}": checkpoint["callbacks"].get(callback.state_key)
        for callback in callbacks
        if is_of_users_class(callback) or isinstance(callback, EarlyStopping)
    }
    if isinstance(data, LightningDataModule):
        found[f"the state of {type(data).__name__}"] = checkpoint.get(type(data).__qualname__)
    for number, config in enumerate(trainer.lr_scheduler_configs):
        found[f"the state of scheduler {number}"] = config.scheduler.state_dict()
    for number, optimizer in enumerate(trainer.optimizers):
        for index, group in enumerate(optimizer.param_groups):
            settings = {key: value for key, value in group.items() if key != "params"}
            found[f"the settings of optimizer {number}, group {index}"] = settings
    yield from ((name, state) for name, state in found.items() if isinstance(state, Mapping))
