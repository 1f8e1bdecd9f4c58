"""Who takes the batches of a loader: ``enumerate`` counts them, and ``itertools.cycle`` keeps them.

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


def counted_from(iterator: Iterator[Any], asking: types.FrameType | None) -> int | None:
    """The number that an ``enumerate`` around an iterator gives next; ``None`` if there is none.

    Args:
        iterator: of a loader.
        asking: the frame that asks it for a batch.
    """
    passing_on = _generators_at(asking)
    for counting in _objects_of(enumerate):
        if any(_takes_from(counting, iterator, passing_on)):
            number: int = counting.__reduce__()[1][1]
            return number
    return None


def is_cycled(iterator: Iterator[Any], asking: types.FrameType | None) -> bool:
    """Whether an ``itertools.cycle`` is around an iterator."""
    passing_on = _generators_at(asking)
    return any(any(_takes_from(cycle, iterator, passing_on)) for cycle in _objects_of(itertools.cycle))


def _objects_of(kind: type) -> list[Any]:
    """Of the young ones, as they are when the first batch is asked for; to search all takes 0.1 s."""
    return [thing for generation in (0, 1) for thing in gc.get_objects(generation) if type(thing) is kind]


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
        elif depth < _MAXIMUM_DEPTH and (type(part) is tuple or isinstance(part, Iterator)):
            yield from _takes_from(part, iterator, passing_on, depth + 1)
