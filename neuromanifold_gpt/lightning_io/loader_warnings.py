"""Say at the start of training which loaders no checkpoint can take back to where they were."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from lightning.fabric.utilities.types import _Stateful
from lightning.pytorch import Trainer
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.data.positioned_loader import PositionedLoader


def warn_of_inexact_loaders(loaders: list[Any]) -> None:
    """Look at the loaders that are read again on a resume.

    Warns:
        InexactResumeWarning: names each loader, why it cannot be repeated, and what to do.
    """
    for loader in loaders:
        if not isinstance(loader, _Stateful):
            for reason in _reasons(loader):
                warnings.warn(
                    f"a resume of this training cannot be exact: {reason}", InexactResumeWarning, stacklevel=2
                )


def warn_of_shared_loaders(trainer: Trainer) -> None:
    """A loader that gives both training and validation batches has only one position.

    Warns:
        InexactResumeWarning: there is one.
    """
    training = tree_leaves(trainer.train_dataloader)
    for loader in tree_leaves(trainer.val_dataloaders):
        if isinstance(loader, PositionedLoader) and any(loader is other for other in training):
            warnings.warn(
                f"a resume of this training cannot be exact: one {type(loader).__name__} gives the batches of training "
                "and of validation, and its position is that of whichever came last. Make one for each.",
                InexactResumeWarning,
                stacklevel=2,
            )


def _reasons(loader: Any) -> Iterator[str]:
    name = type(loader).__name__
    if isinstance(loader, Iterator):
        yield (
            f"{name} is an iterator, which cannot be begun again. Give an iterable, best resumable(DataLoader(...)), "
            "or one with state_dict and load_state_dict."
        )
    if not isinstance(loader, DataLoader):
        return
    if loader.num_workers and loader.persistent_workers:
        yield (
            f"with persistent_workers, what the samples of {name} draw from random number generators depends on all "
            "epochs before. Use resumable(loader), or persistent_workers=False."
        )
    for sampler in (loader.sampler, loader.batch_sampler):
        if not (sampler is None or isinstance(sampler, _Stateful) or _is_stock(sampler)):
            yield (
                f"the order of {type(sampler).__name__} is repeated from the beginning of the epoch, which fails "
                "if it draws random numbers while it goes on. Use resumable(loader), which keeps its draws apart "
                "and checks the order."
            )


def _is_stock(sampler: Any) -> bool:
    return type(sampler).__module__.split(".")[0] in ("torch", "lightning")
