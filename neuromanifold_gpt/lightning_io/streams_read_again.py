"""Whether reading a stream again, or a loader that iterates in its own way, has come to the same samples.

A stream that shuffles in a buffer may draw from the global generators while it goes on, and so does the model: read
again without the model, it draws other numbers. One that only augments its samples comes to the same place. What tells
is the last batch, made again with the random numbers that it had, and of streams the ids, labels and texts of all
batches. Of one that draws nothing behind its first batch, but may begin with what training has changed, such as a
buffer, the latter.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import xxhash
from lightning.fabric.utilities.types import _Stateful
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.data.ids_digest import IdsDigest
from neuromanifold_gpt.state.inspection.flat_values import equal
from neuromanifold_gpt.state.rng import cpu_generator_states
from neuromanifold_gpt.state.unsaved.shown_values import shown_value

_MOST_LEAVES = 100  # of a batch, that are looked at


class StreamsReadAgain:
    """Follows the stock loaders that read a stream in this process, and others that iterate in their own way.

    Args:
        loaders: all that training reads.
    """

    def __init__(self, loaders: list[Any]) -> None:
        self._loaders = {number: loader for number, loader in enumerate(loaders) if _is_followed(loader)}
        self._followed: dict[int, _FollowedStream] = {}

    def __bool__(self) -> bool:
        return bool(self._loaders)

    def follow(self, combined: CombinedLoader) -> None:
        """Follow the iterators that there are now."""
        iterators: list[Any] = combined._iterator.iterators if combined._iterator is not None else []
        for number in self._loaders if iterators else ():
            if not isinstance(iterators[number], _FollowedStream):
                of_all = _reads_stream_here(self._loaders[number])
                iterators[number] = self._followed[number] = _FollowedStream(iterators[number], of_all)

    def current(self) -> dict[int, list[str]]:
        """Digests of what was read, by number of the loader."""
        return {number: stream.digests() for number, stream in self._followed.items()}

    def check(self, saved: dict[int, list[str]]) -> None:
        """Compare with :meth:`current` of the save up to which the streams were read again.

        Warns:
            InexactResumeWarning: names those that have come to other samples.
        """
        other = [
            number for number, stream in self._followed.items() if stream.has_come_to_others(saved.get(number, []))
        ]
        if other:
            loaders = [self._loaders[number] for number in other]
            names = [type(loader.dataset if _reads_stream_here(loader) else loader).__name__ for loader in loaders]
            warn_user(
                f"this resume is not exact: {', '.join(names)}, begun again, has come to other samples than before. "
                "Either it draws from random number generators while it goes on, and others draw from them too: "
                "resumable(loader) keeps the draws of a stream apart, and a loader that iterates in its own way needs "
                "a generator of its own. Or it reads what training has changed since it began, such as a buffer: give "
                "it state_dict and load_state_dict, and use resumable(loader) if it is a stream.",
                InexactResumeWarning,
            )


class _FollowedStream(Iterator[Any]):
    """An iterator over batches; notices whether making them draws, behind the first.

    Args:
        batches: the iterator.
        of_all: whether all batches are compared; else the last one, since others may be masked anew.
    """

    def __init__(self, batches: Iterator[Any], of_all: bool) -> None:
        self._batches, self._of_all = batches, of_all
        self._has_begun = False
        self._whole = xxhash.xxh3_64()  # of what augmentation leaves alone
        self._ids = IdsDigest()
        self._last = ""
        self.draws = False

    def digests(self) -> list[str]:
        """Of the last batch, and of ids, labels and texts of all; of a stream that draws nothing, of the latter."""
        return [self._last, self._whole.hexdigest()] if self.draws or not self._of_all else [self._ids.digest()]

    def has_come_to_others(self, saved: list[str]) -> bool:
        """Whether there are :meth:`digests`, and they are those of other batches."""
        drawing = [self._last, self._whole.hexdigest()]
        return bool(saved) and saved != (drawing if len(saved) == len(drawing) else [self._ids.digest()])

    def __next__(self) -> Any:
        before = None if self.draws else cpu_generator_states()
        batch = next(self._batches)
        if not self.draws and self._has_begun:
            self.draws = not equal(before, cpu_generator_states())
        self._has_begun = True
        shown = _shown(batch)
        self._last = xxhash.xxh3_64_hexdigest(repr(shown).encode())
        if self._of_all:
            self._whole.update(repr([text for text, has_fractions in shown if not has_fractions]).encode())
        self._ids.add(batch)
        return batch


def shown_batch(batch: Any) -> str:
    """What shows whether it is another one."""
    return xxhash.xxh3_64_hexdigest(repr(_shown(batch)).encode())


def _is_followed(loader: Any) -> bool:
    iterates_itself = isinstance(loader, DataLoader) and type(loader).__iter__ is not DataLoader.__iter__
    return _reads_stream_here(loader) or (iterates_itself and not isinstance(loader, _Stateful))


def _reads_stream_here(loader: Any) -> bool:
    return type(loader) is DataLoader and isinstance(loader.dataset, IterableDataset) and not loader.num_workers


def _shown(batch: Any) -> list[tuple[str | None, bool]]:
    """Of what can be compared in a batch, and whether it has fractions."""
    leaves = islice(tree_leaves(batch), _MOST_LEAVES)
    return [(shown_value(leaf, is_data=True), _has_fractions(leaf)) for leaf in leaves]


def _has_fractions(leaf: Any) -> bool:
    if isinstance(leaf, Tensor):
        return leaf.is_floating_point() or leaf.is_complex()
    return isinstance(leaf, float)
