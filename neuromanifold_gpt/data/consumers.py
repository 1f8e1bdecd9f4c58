"""Who takes the batches of a loader: ``enumerate`` counts them, ``itertools.cycle`` keeps them, ``zip`` has others too.

Neither is part of a position, and neither can be asked, so the interpreter is.
"""

from __future__ import annotations

import gc
import inspect
import itertools
import types
from collections.abc import Iterator
from typing import Any

_MAXIMUM_DEPTH = 4  # enumerate(tqdm(zip(loader, other)))
_KINDS = (enumerate, itertools.cycle, zip)


def consumers_of(iterator: Iterator[Any], asking: types.FrameType | None) -> list[Any]:
    """Each ``enumerate``, ``itertools.cycle`` and ``zip`` around an iterator, of those made shortly before.

    Args:
        iterator: of a loader.
        asking: the frame that asks it for a batch.
    """
    passing_on = _generators_at(asking)
    objects = (thing for generation in (0, 1) for thing in gc.get_objects(generation))  # of all, it takes 0.1 s or more
    consumers = [thing for thing in objects if type(thing) in _KINDS]
    return [consumer for consumer in consumers if any(_takes_from(consumer, iterator, passing_on))]


def next_number(counting: Any) -> int:
    """That an ``enumerate`` gives."""
    number: int = counting.__reduce__()[1][1]
    return number


def zipped_with(consumers: list[Any], iterator: Iterator[Any]) -> list[types.GeneratorType[Any, Any, Any]]:
    """Generators that are in a ``zip`` with an iterator."""
    zips = [consumer for consumer in consumers if type(consumer) is zip]
    parts = [part for found in zips for held in gc.get_referents(found) if type(held) is tuple for part in held]
    return [part for part in parts if type(part) is types.GeneratorType and part is not iterator]


def _generators_at(frame: types.FrameType | None) -> list[types.FrameType]:
    """Frames of generator functions that pass batches on, such as tqdm's; what they hold shows only from outside."""
    found = []
    while frame is not None and frame.f_code.co_flags & inspect.CO_GENERATOR:
        found.append(frame)
        frame = frame.f_back
    return found


def _takes_from(
    consumer: Any, iterator: Iterator[Any], passing_on: list[types.FrameType], depth: int = 0
) -> Iterator[bool]:
    for part in gc.get_referents(consumer):
        if part is iterator or (type(part) is types.GeneratorType and part.gi_frame in passing_on):
            yield True
        elif depth < _MAXIMUM_DEPTH and (type(part) is tuple or hasattr(type(part), "__next__")):
            yield from _takes_from(part, iterator, passing_on, depth + 1)
