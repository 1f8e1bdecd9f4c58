"""Passes over loaders that begin in the middle of an epoch.

``CombinedLoader`` cycles through the shorter ones. A stock ``DataLoader`` then draws the seed of its order, or of its
workers, from torch's global generator, in which the model has drawn meanwhile: reading the epoch's batches again does
not repeat that. So the generators are noted.

A pass that a resume continues may begin only with the first batch: :func:`continued`.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from neuromanifold_gpt.data.positioned_loader import PositionedLoader
from neuromanifold_gpt.data.sample_seeds import isolated_generators
from neuromanifold_gpt.state.rng import capture_rng_state, restore_rng_state


class CycledPasses:
    """Follows the passes that loaders begin within an epoch. The last of each decides its batches to come."""

    def __init__(self) -> None:
        self._last: dict[int, dict[str, Any]] = {}  # by number of the loader
        self._repeated: dict[int, dict[str, Any]] = {}

    def current(self) -> list[dict[str, Any]]:
        """The last of each loader that has begun another, as plain values and tensors."""
        return [*self._last.values()]

    def epoch_begins(self) -> None:
        """No loader has."""
        self._last, self._repeated = {}, {}

    def repeat(self, saved: list[dict[str, Any]]) -> None:
        """The batches up to :meth:`current` of a save are about to be read again, until :meth:`are_repeated`."""
        self._last, self._repeated = {}, {last["loader"]: last for last in saved}

    def are_repeated(self) -> None:
        """Passes to come begin with what is drawn then."""
        self._repeated = {}

    def follow(self, combined: CombinedLoader) -> None:
        """Follow the iterator that there is now, unless it is already."""
        iterator: Any = combined._iterator
        if combined._mode != "max_size_cycle" or len(combined.flattened) == 1 or iterator is None:
            return
        if not any(isinstance(loader, _Followed) for loader in iterator.iterables):
            iterator.iterables = [
                loader if isinstance(loader, PositionedLoader) else _Followed(loader, partial(self._begins, number))
                for number, loader in enumerate(iterator.iterables)
            ]

    def _begins(self, number: int) -> None:
        passes = self._last[number]["passes"] + 1 if number in self._last else 1
        if number in self._repeated and self._repeated[number]["passes"] == passes:
            restore_rng_state(self._repeated[number]["rng"])
        self._last[number] = {"loader": number, "passes": passes, "rng": capture_rng_state()}


def leave_cut_passes(combined: CombinedLoader) -> None:
    """Before an iterator is made for another epoch: a pass that the last one cut short is left, as after a resume."""
    if combined._iterator is not None:
        combined._iterator.reset()  # else its passes would end within the next ones
    for loader in combined.flattened:
        if isinstance(loader, PositionedLoader) and not loader.batches_consumed:  # else a program has put it there
            loader.leave_pass()


def continued(loader: Any, batches: Iterator[Any]) -> Iterator[Any]:
    """The rest of a pass that another process has begun.

    If it is that of a generator function, with a ``DataLoader`` in it, asking for a batch makes an iterator, which
    draws a seed from torch's global generator. The other process has drawn it when the pass began.
    """
    begins_late = type(batches) is types.GeneratorType and not isinstance(loader, PositionedLoader)
    return _without_seed(batches) if begins_late else batches


def _without_seed(batches: Iterator[Any]) -> Iterator[Any]:
    with _iterators_leave_generators():
        first = [*islice(batches, 1)]
    yield from first
    yield from batches


@contextmanager
def _iterators_leave_generators() -> Iterator[None]:
    """Inside, making one of torch's iterators leaves the global generators as they are; giving batches does not."""
    make = _BaseDataLoaderIter.__init__

    def make_beside(*arguments: Any) -> None:
        with isolated_generators():
            make(*arguments)

    _BaseDataLoaderIter.__init__ = make_beside  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        _BaseDataLoaderIter.__init__ = make  # type: ignore[method-assign]


class _Followed:
    """A loader that tells when a pass over it begins."""

    def __init__(self, loader: Any, begins: Callable[[], None]) -> None:
        self._loader, self._begins = loader, begins

    def __iter__(self) -> Iterator[Any]:
        self._begins()
        return iter(self._loader)

    def __len__(self) -> int:
        return len(self._loader)
