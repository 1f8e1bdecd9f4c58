"""Say at the start of training which loaders no checkpoint can take back to where they were."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric.utilities.types import _Stateful
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, RandomSampler

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.data.errors import DataOrderWarning, ReadAgainWarning
from neuromanifold_gpt.data.positioned_loader import PositionedLoader


def warn_of_inexact_loaders(loaders: list[Any]) -> None:
    """Look at the loaders that are read again on a resume.

    Warns:
        InexactResumeWarning: names each loader, why it cannot be repeated, and what to do.
    """
    for loader in loaders:
        if not isinstance(loader, _Stateful):
            for reason in _reasons(loader):
                warn_user(f"a resume of this training cannot be exact: {reason}", InexactResumeWarning)


class SamplersOnTheWay:
    """Follows the generators of torch's samplers that go on drawing, of loaders that are read again on a resume.

    Reading again repeats what such a sampler draws, but not what others draw from its generator meanwhile.
    """

    def __init__(self, loaders: list[Any]) -> None:
        samplers: list[Any] = [loader.sampler for loader in loaders if type(loader) is DataLoader]
        self._generators = [sampler.generator for sampler in samplers if _draws_on_the_way(sampler)]
        self._behind_fetch: list[Tensor] = []

    def batch_is_fetched(self) -> None:
        """A batch is about to be fetched.

        Warns:
            InexactResumeWarning: somebody else has drawn since the last one was; said once.
        """
        states = zip(self._generators, self._behind_fetch, strict=False)
        if any(not torch.equal(generator.get_state(), before) for generator, before in states):
            self._generators = []
            warn_user(
                "a resume of this training cannot be exact: others draw from the generator of a RandomSampler, which "
                "draws while it goes on. Give it its own, or use resumable(loader), which keeps its draws apart.",
                InexactResumeWarning,
            )

    def batch_was_fetched(self) -> None:
        """It is there."""
        self._behind_fetch = [generator.get_state() for generator in self._generators]


def warn_of_reading_again(loaders: list[Any], batches: int) -> None:
    """It takes time.

    Warns:
        ReadAgainWarning: names the loaders that cannot go to a position.
    """
    if batches:
        names = ", ".join(type(loader).__name__ for loader in loaders if not isinstance(loader, _Stateful))
        warn_user(
            f"{names} cannot go to a position: the {batches} batches of this epoch that were trained on are read again "
            "and passed over. resumable(loader) goes there at once.",
            ReadAgainWarning,
        )


def warn_of_other_workers(now: list[int], saved: list[int]) -> None:
    """What samples draw depends on their number.

    Warns:
        InexactResumeWarning: it is another one than at the save.
    """
    if now != saved:
        warn_user(
            f"the data was read by {saved} workers, and is read by {now} now: what samples draw from random number "
            "generators differs. Use as many as before, or resumable(loader), where their number does not matter.",
            InexactResumeWarning,
        )


def warn_of_other_settings(now: list[dict[str, Any]], saved: list[dict[str, Any]]) -> None:
    """Of loaders that cannot tell by themselves.

    Warns:
        DataOrderWarning: lists those that are not as at the save.
    """
    changed = [
        f"{key} was {before[key]} and is {value}"
        for settings, before in zip(now, saved, strict=False)
        for key, value in settings.items()
        if key in before and before[key] != value
    ]
    if changed:
        warn_user(
            f"the data goes on, but not as before, with other samples in its batches: {', '.join(changed)}.",
            DataOrderWarning,
        )


@contextmanager
def sizes_pass(if_others_come: bool) -> Iterator[None]:
    """Inside, a dataset of another size than at the save is nothing to say, if another one is about to come anyway."""
    with warnings.catch_warnings():
        if if_others_come:
            only_size = r".* not as before: dataset_size was \d+ and is \d+\.$"
            warnings.filterwarnings("ignore", only_size, DataOrderWarning)
        yield


def warn_of_shared_loaders(trainer: Trainer) -> None:
    """A loader that gives both training and validation batches has only one position.

    Warns:
        InexactResumeWarning: there is one.
    """
    training = tree_leaves(trainer.train_dataloader)
    for loader in tree_leaves(trainer.val_dataloaders):
        if isinstance(loader, PositionedLoader) and any(loader is other for other in training):
            warn_user(
                f"a resume of this training cannot be exact: one {type(loader).__name__} gives the batches of training "
                "and of validation, and its position is that of whichever came last. Make one for each.",
                InexactResumeWarning,
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


def _draws_on_the_way(sampler: Any) -> bool:
    if type(sampler) is not RandomSampler or sampler.generator is None:
        return False
    return sampler.replacement or sampler.num_samples > len(sampler.data_source)


def _is_stock(sampler: Any) -> bool:
    return type(sampler).__module__.split(".")[0] in ("torch", "lightning")
