"""What a user's object has in its ``state_dict`` of a dataset or sampler that has none itself."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from neuromanifold_gpt.state.inspection.flat_values import equal
from neuromanifold_gpt.state.inspection.plain_reading import CONTAINERS, values_in
from neuromanifold_gpt.state.rng import distributed
from neuromanifold_gpt.state.unsaved.shown_values import shown_tensors
from neuromanifold_gpt.state.unsaved.unsaved_objects import state_of

_MAXIMUM_DEPTH = 3
_LOOKED_AT = 100  # of one dict or list


class SavedWith:
    """Objects whose states the checkpoints have that have a position."""

    def __init__(self) -> None:
        self._things: list[weakref.ref[Any]] = []

    def note(self, things: Iterable[Any]) -> None:
        """These are they from now on."""
        self._things = [weakref.ref(thing) for thing in things if type(thing).__weakrefoffset__]

    def are_there(self) -> bool:
        """Whether there are some: else attributes need not be gathered for :meth:`left_out`."""
        return any(reference() is not None for reference in self._things)

    def left_out(self, paths: list[str], owners: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
        """Which of some attributes, by path, belong to none of them, and are not in the state of one: all tensors and
        arrays that are there, or an equal list or dict, be its tuples lists there.

        With several ranks no state is looked at: a ``state_dict`` may wait for that of each.
        """
        things = [thing for reference in self._things if (thing := reference()) is not None]
        kept = {*map(id, things)}
        left = [path for path in paths if id(owners.get(path.rpartition(".")[0])) not in kept]
        if not left or distributed():
            return left
        states = [state_of(thing) for thing in things]
        tensors, parts = {*shown_tensors(states)}, [*_parts(states, 0)]
        return [path for path in left if not _is_among(values.get(path), tensors, parts)]


def _is_among(value: Any, tensors: set[str], parts: list[Any]) -> bool:
    if own := shown_tensors(value):
        return {*own} <= tensors
    as_lists = _as_lists(value)
    return any(equal(as_lists, _as_lists(part)) for part in parts)


def _as_lists(value: Any) -> Any:
    """Tuples as lists, since a state may have them as such."""
    return [*map(_as_lists, value)] if type(value) in (list, tuple) else value


def _parts(value: Any, depth: int) -> Iterator[Any]:
    if issubclass(type(value), CONTAINERS):
        yield value
        for part in islice(values_in(value), _LOOKED_AT if depth < _MAXIMUM_DEPTH else 0):
            yield from _parts(part, depth + 1)
