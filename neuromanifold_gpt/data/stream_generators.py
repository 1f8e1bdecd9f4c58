"""What a stream draws from while it is read: random number generators that go on from sample to sample.

Those of the process and the stream's own are seeded where a pass begins, and put in place whenever it is read. Their
states go with the position of a stream with ``state_dict``; one that is read again draws the same again.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from neuromanifold_gpt.data.sample_seeds import OwnGenerators, seed_generators
from neuromanifold_gpt.state.inspection.flat_values import equal
from neuromanifold_gpt.state.own_generators import what_is_drawn_from
from neuromanifold_gpt.state.owned_state import OwnedState
from neuromanifold_gpt.state.rng import capture_cpu_rng_state, restore_cpu_rng_state

_SEARCHED_DEPTH = 5
_SEARCHED_ITEMS = 1000  # of one container


class StreamGenerators:
    """Of one pass, in the process that reads it.

    Args:
        seed: of the pass.
        roots: what is read, by name, as for :func:`what_is_drawn_from`; empty if it draws nothing.
    """

    def __init__(self, seed: int, roots: dict[str, Any]) -> None:
        self._seed, self._roots = seed, dict(roots)
        self._owned = what_is_drawn_from(self._roots) if roots else OwnedState({})
        self._own = OwnGenerators(seed, self._owned)
        self._is_first_sample = True
        self._made_by_first_sample: dict[str, Any] = {}  # their states, by path

    def in_place(self) -> AbstractContextManager[None]:
        """What is drawn inside, is drawn from these."""
        return self._own.in_place()

    def begin(self) -> None:
        """In place: whatever a ``worker_init_fn`` has seeded, it is this pass's seed."""
        seed_generators(self._seed, self._owned)

    def states(self) -> dict[str, Any]:
        """In place: plain values and arrays, which workers hand over at once; :func:`as_tensors` makes them storable.

        Empty if nothing is drawn.
        """
        if not self._roots:
            return {}
        states = {"process": capture_cpu_rng_state(), "own": self._owned.generator_states()}
        return tree_map_only(Tensor, Tensor.numpy, states)

    def iterator_is_made(self, iterator: Any, saved: Mapping[str, Any]) -> None:
        """In place, before the first sample: let the generators go on from :meth:`states`, and seed those that are new.

        Args:
            iterator: of the stream, which may have some itself.
            saved: as a position has them; empty where the pass begins.
        """
        if self._roots and type(iterator) is not types.GeneratorType:  # what is in its variables, its code makes
            self._roots["iterator"] = iterator
        new = self._find_new()
        self._owned.reseed(self._seed, new)
        if saved:
            restore_cpu_rng_state(saved["process"])
            self._owned.restore_generators(saved["own"])  # others will be made by the first sample

    def sample_is_made(self, *, goes_on: bool) -> None:
        """In place: behind the first one in this process, find those that it has made.

        Args:
            goes_on: behind a position; then only the stream can have put them where they were. Else all of the stream's
                own are seeded again, since another process may make here what this one has made in an earlier pass.
        """
        if not self._is_first_sample:
            return
        self._is_first_sample = False
        new = self._find_new()
        if not goes_on:
            self._owned.reseed(self._seed ^ 1)  # not as before the first one
        self._made_by_first_sample = {path: self._owned.generator_states()[path] for path in new}

    def not_in(self, state: Any) -> list[str]:
        """In place: which of those that the first sample has made have gone on since the last call, and are not in the
        state of the stream: the first sample behind a resume makes them anew.
        """
        if not self._made_by_first_sample:
            return []
        before, now = self._made_by_first_sample, self._owned.generator_states()
        self._made_by_first_sample = {path: now[path] for path in before}
        moved = [path for path in before if not equal(before[path], now[path])]
        raw = self._owned.raw_generator_states()
        return [path for path in moved if not _holds(state, raw[path], 0)]

    def _find_new(self) -> list[str]:
        if not self._roots:
            return []
        found = what_is_drawn_from(self._roots)
        new = found.generators_that_are_new_since(self._owned)
        if new:
            self._owned = found
            self._own.follow(found)
        return new


def as_tensors(states: Mapping[str, Any]) -> Any:
    """:meth:`StreamGenerators.states` with tensors in place of arrays."""
    return tree_map_only(np.ndarray, torch.from_numpy, states)


def _holds(state: Any, raw: Any, depth: int) -> bool:
    """Whether the state of a generator, as it describes itself, is somewhere in that of a stream; bytes may be it."""
    if isinstance(state, bytes) or _plain(state) == _plain(raw):
        return True
    if depth == _SEARCHED_DEPTH or not isinstance(state, Mapping | list | tuple):
        return False
    parts = list(state.values() if isinstance(state, Mapping) else state)[:_SEARCHED_ITEMS]
    return any(_holds(part, raw, depth + 1) for part in parts)


def _plain(state: Any) -> Any:
    """In lists, in which a ``state_dict`` may have put it."""
    if isinstance(state, Tensor | np.ndarray):
        return state.tolist()
    if isinstance(state, list | tuple):
        return [_plain(part) for part in state]
    return {key: _plain(part) for key, part in state.items()} if isinstance(state, Mapping) else state
