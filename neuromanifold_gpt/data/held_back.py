"""Batches that a generator around a loader has taken and not given on, such as a prefetcher or a buffer that shuffles.
The position counts them, since it cannot tell that they were not trained on.

The generator that a ``for`` goes through is in no variable, so the interpreter is asked.
"""

from __future__ import annotations

import gc
import inspect
import operator
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.data.consumers import generators_at
from neuromanifold_gpt.data.errors import DataOrderWarning
from neuromanifold_gpt.state.inspection.instructions import instructions_of
from neuromanifold_gpt.state.inspection.loop_carried import carried_by_loops, held_back_by, read_for_more
from neuromanifold_gpt.state.inspection.plain_reading import values_in
from neuromanifold_gpt.state.inspection.users_modules import is_users_code
from neuromanifold_gpt.state.inspection.users_objects import (
    attributes_of,
    is_iterator,
    is_of_users_class,
    variables_of_frame,
)

_MOST_LOOKS = 10  # for one loader: a look at all objects takes some 50 ms
_LOOKED_AT_ITEMS = (100, 100, 10, 10)  # of the variables, of what they hold, and so on


class _Asking(NamedTuple):
    """A generator when it asked for a batch. Its frame by identity: a reference would keep its variables alive."""

    frame: int
    code: types.CodeType
    offset: int


class HeldBack:
    """Follows the generators that pass the batches of one loader on."""

    def __init__(self) -> None:
        self._asking: list[_Asking] = []
        self._had_before: frozenset[int] = frozenset()  # identities of tensors, such as those that normalize
        self._known: dict[int, weakref.ref[types.GeneratorType[Any, Any, Any]]] = {}  # by their frames
        self._looks_left = _MOST_LOOKS
        self._is_said = False
        self._taken_beside: list[str] = []

    def __reduce__(self) -> tuple[type[HeldBack], tuple[()]]:
        return HeldBack, ()  # a copy of the loader has no pass under way

    def pass_begins(self, asking: types.FrameType | None) -> None:
        """The first batch of a pass is asked for."""
        variables = [variables_of_frame(frame).values() for frame in generators_at(asking)]
        self._had_before = frozenset().union(*map(_identities_of_tensors, variables))
        self.batch_is_asked_for(asking)
        if self._asking:
            self._find(thing for generation in (0, 1) for thing in gc.get_objects(generation))  # it is new, perhaps

    def batch_is_asked_for(self, asking: types.FrameType | None) -> None:
        """By a frame, and the generators that this passes it on to."""
        self._asking = [_Asking(id(frame), frame.f_code, frame.f_lasti) for frame in generators_at(asking)]

    def goes_with(self, others: Iterable[Any]) -> None:
        """A ``zip`` takes from others too, each time that it takes a batch; see :func:`begin_anew`."""
        self._taken_beside = sorted({getattr(other, "__qualname__", "itertools.cycle") for other in others})

    def warn(self, *, is_within_epoch: bool) -> None:
        """Say, once, where batches are, and what begins anew.

        Warns:
            DataOrderWarning: a generator has some; or, within an epoch, a ``zip`` takes from others.
        """
        if is_within_epoch:
            self._warn_of_what_begins_anew()
        for asking, generator in self._generators() if not self._is_said else ():
            if places := self._places(generator, asking.offset):
                self._is_said = True
                warn_user(
                    f"{asking.code.co_qualname} holds batches back ({', '.join(places)}): it has taken them from the "
                    "loader and not given them on, or keeps them for later. They count as trained on, and a resume goes"
                    " on without them. Save where it holds none; or let num_workers prefetch, a sampler shuffle or "
                    "sort, and a collate_fn mix.",
                    DataOrderWarning,
                )
                return

    def _warn_of_what_begins_anew(self) -> None:
        names, self._taken_beside = self._taken_beside, []
        if names:
            warn_user(
                f"a zip takes from {', '.join(names)} beside this loader. A resume goes on in the middle of the epoch, "
                "but there that begins anew, unless the loop goes to its place by itself. Derive it from "
                "loader.batches_consumed, or from what the checkpoint has.",
                DataOrderWarning,
            )

    def carried(self, *, is_over: bool) -> list[tuple[types.FrameType, frozenset[str]]]:
        """Frames of users' generators, the innermost first, and what each reads later as this round has left it.

        Args:
            is_over: the pass is, and with it the loop over it in a generator, and all of one that gives nothing more.
        """
        found = []
        for asking, generator in self._generators():
            if (frame := generator.gi_frame) is None:
                continue
            exit_at = _exit_of_loop(asking) if is_over else None
            is_over = exit_at is not None and not read_for_more(asking.code, exit_at)
            read = read_for_more(asking.code, frame.f_lasti if exit_at is None else asking.offset)
            if is_users_code(frame.f_globals):
                found.append((frame, read & carried_by_loops(frame, exit_at)))
        return found

    def _generators(self) -> list[tuple[_Asking, types.GeneratorType[Any, Any, Any]]]:
        """Those that asked, as far as they are alive, the innermost first."""
        if not self._all_known() and self._looks_left > 0:
            self._looks_left -= 1
            self._find(gc.get_objects())
        known = [(asking, self._alive(asking.frame)) for asking in self._asking]
        found = [(asking, generator) for asking, generator in known if generator is not None]
        self._asking = [asking for asking, _ in found]
        return found

    def _find(self, things: Iterable[Any]) -> None:
        """Among all that there are, or some of them."""
        if self._all_known():
            return
        codes = {asking.frame: asking.code for asking in self._asking}
        generators = [thing for thing in things if type(thing) is types.GeneratorType]
        found = {id(thing.gi_frame): thing for thing in generators if thing.gi_code in codes.values()}
        self._known = {frame: weakref.ref(found[frame]) for frame in codes if frame in found}

    def _all_known(self) -> bool:
        return all(self._alive(asking.frame) is not None for asking in self._asking)

    def _alive(self, frame: int) -> types.GeneratorType[Any, Any, Any] | None:
        generator = reference() if (reference := self._known.get(frame)) is not None else None
        return generator if generator is not None and id(generator.gi_frame) == frame else None

    def _places(self, generator: types.GeneratorType[Any, Any, Any], taken_at: int) -> list[str]:
        frame = generator.gi_frame
        if frame is None or inspect.getgeneratorstate(generator) != inspect.GEN_SUSPENDED:
            return []
        names, iterators = held_back_by(frame.f_code, taken_at=taken_at, given_at=frame.f_lasti)
        variables = variables_of_frame(frame)
        held = {name: _identities_of_tensors([variables[name]]) for name in sorted(names & variables.keys())}
        holding = [name for name, tensors in held.items() if not tensors <= self._had_before]
        return holding or ["in a loop"] * any(_has_items_left(found) for found in _innermost(generator, iterators))


def _exit_of_loop(asking: _Asking) -> int | None:
    """The instruction behind a ``for`` or ``yield from`` that has asked."""
    steps = instructions_of(asking.code)
    asked = (step for step in steps if step.offset == asking.offset)
    behind = next((step.argval for step in asked if step.opname in ("FOR_ITER", "SEND")), None)
    return None if behind is None else next(step.offset for step in steps if step.offset >= behind)


def _innermost(generator: types.GeneratorType[Any, Any, Any], number: int) -> list[Any]:
    """The iterators of the loops that a generator is in: what it refers to ends with its stack."""
    iterators = [thing for thing in gc.get_referents(generator) if hasattr(type(thing), "__next__")]
    return iterators[-number:] if number else []


def _has_items_left(iterator: Any) -> bool:
    """As far as it shows; of a ``zip`` and the like, whether all that it goes through have."""
    left = operator.length_hint(iterator, -1) if is_iterator(iterator) else -1
    if left >= 0:
        return left > 0
    referents = [part for found in gc.get_referents(iterator) for part in (found if type(found) is tuple else [found])]
    within = [found for found in referents if is_iterator(found) and operator.length_hint(found, -1) >= 0]
    return bool(within) and all(map(_has_items_left, within))


def _identities_of_tensors(values: Iterable[Any]) -> frozenset[int]:
    try:
        return frozenset(id(tensor) for tensor in _tensors_in(values, 0))
    except Exception:  # noqa: BLE001 - tensors of other libraries, what a thread changes
        return frozenset()


def _tensors_in(values: Iterable[Any], depth: int) -> Iterator[Any]:
    for value in islice(values, _LOOKED_AT_ITEMS[depth]):
        kind = type(value)
        if issubclass(kind, Tensor | np.ndarray):
            if len(value.shape) > 0 and not issubclass(kind, nn.Parameter):
                yield value
        elif depth + 1 < len(_LOOKED_AT_ITEMS):
            yield from _tensors_in(values_in(value), depth + 1)
            if depth == 0 and is_of_users_class(value):  # what its ``self`` collects
                yield from _tensors_in(filter(_is_container, (attributes_of(value) or {}).values()), depth)


def _is_container(value: Any) -> bool:
    return issubclass(type(value), list | dict | deque)
