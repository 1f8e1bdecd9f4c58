"""What users' callbacks and data module keep beside a state dict: generators are stored, the rest is said.

As in modules (``state/unsaved_values.py``), most of what changes in them is a record that nobody reads again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset, Sampler

from neuromanifold_gpt.state.owned_state import OwnedState
from neuromanifold_gpt.state.shown_values import shown_value
from neuromanifold_gpt.state.unsaved_values import values_beside_state
from neuromanifold_gpt.state.users_objects import is_of_users_class, plain_attributes

# The hyper-parameters are in the checkpoint.
_OF_EVERY_MODULE = frozenset({*vars(LightningModule()), "_hparams", "_hparams_initial"})
_OF_EVERY_DATA_MODULE = frozenset({*vars(LightningDataModule()), "_hparams", "_hparams_initial"})


def values_left_out(trainer: Trainer) -> dict[str, str]:
    """What :func:`shown_value` shows of all that has no hook of its own that may save it, by path."""
    module = trainer.lightning_module
    found: dict[str, str] = {}
    if not is_overridden("on_save_checkpoint", module):
        found = values_beside_state(module, with_followed=False, ignored=_OF_EVERY_MODULE)
    shown = {path: shown_value(value) for path, value in _attributes(trainer)}
    return {**found, **{path: text for path, text in shown.items() if text is not None}}


def owners_of_generators(trainer: Trainer) -> dict[str, Any]:
    """Attributes that may be, or have, generators, by path; those of training loaders go with the position."""
    kinds = (Dataset, DataLoader, Sampler)
    return {path: value for path, value in _attributes(trainer) if not isinstance(value, kinds)}


def _attributes(trainer: Trainer) -> Iterator[tuple[str, Any]]:
    """Of users' callbacks and data module that save nothing themselves."""
    seen: Counter[str] = Counter()
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if _saves_nothing(callback, Callback) and not isinstance(callback, Checkpoint):
            name = type(callback).__name__
            seen[name] += 1
            owner = name if seen[name] == 1 else f"{name}-{seen[name]}"
            yield from (
                (f"{owner}.{attribute}", value) for attribute, value in (plain_attributes(callback) or {}).items()
            )
    module: LightningDataModule | None = trainer.datamodule  # type: ignore[attr-defined]
    if module is not None and _saves_nothing(module, LightningDataModule) and not _is_held_by_loaders(module, trainer):
        for attribute, value in (plain_attributes(module) or {}).items():
            if attribute not in _OF_EVERY_DATA_MODULE:
                yield f"{type(module).__name__}.{attribute}", value


def _saves_nothing(thing: Any, base: type) -> bool:
    hooks = ("state_dict", "on_save_checkpoint")
    inherited = all(getattr(type(thing), hook, None) is getattr(base, hook, None) for hook in hooks)
    return inherited and is_of_users_class(thing)


def _is_held_by_loaders(module: LightningDataModule, trainer: Trainer) -> bool:
    """By their ``collate_fn``, say: then what it counts goes with their position."""
    owners = (OwnedState({"loader": loader}).objects() for loader in tree_leaves(trainer.train_dataloader))
    return any(thing is module for things in owners for thing in things)
