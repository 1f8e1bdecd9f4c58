"""What a plain loop without a loader goes through, and whose place shows in none of its variables: a generator function
that only a ``for`` holds, an open file."""

from __future__ import annotations

import gc
import io
import itertools
import types
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

from neuromanifold_gpt.state.inspection.users_locals import users_frames, users_locals, variables_of_script
from neuromanifold_gpt.state.inspection.users_modules import is_users_code
from neuromanifold_gpt.state.inspection.users_objects import is_iterator, variables_of_frame

_STREAMS = (io.TextIOWrapper, io.BufferedIOBase, io.RawIOBase)
_PLAIN = (str, bytes, int, float, complex, bool, type(None), range, type(iter(range(0))))
_looks = itertools.count()


def places_on_the_way(named: Collection[int], kept: Collection[int]) -> dict[str, Any]:
    """Generator functions of users under way that have more than numbers to go by, and how far files are read that are
    open for reading only.

    A file whose place the program asks for (``file.tell()``) is its own affair.

    Args:
        named: identities of generators that are followed under names of variables.
        kept: identities of what is saved: a generator that holds some is no source of batches, but trains.
    """
    variables = [*variables_of_script(), *users_locals()]
    of_variables = {id(value) for _, value in variables} | {*named}
    found: dict[str, Any] = {}
    names: Counter[str] = Counter()
    for generator, frame in _suspended():
        held = _held_by(generator, frame)
        if held and id(generator) not in of_variables and not any(id(value) in kept for value in held):
            name = f"the generator {frame.f_code.co_qualname.replace('.<locals>', '')}"
            names[name] += 1
            found[name if names[name] == 1 else f"{name}-{names[name]}"] = generator
    asks_itself = any("tell" in frame.f_code.co_names for frame in users_frames(functions_only=False))
    for path, value in variables if not asks_itself else ():
        if issubclass(type(value), _STREAMS) and (place := _place_in(value)) is not None:
            found[f"the place in {path}"] = place
    return found


def _suspended() -> Iterator[tuple[types.GeneratorType[Any, Any, Any], types.FrameType]]:
    for generator in [thing for thing in gc.get_objects() if type(thing) is types.GeneratorType]:
        frame = generator.gi_frame
        if generator.gi_suspended and frame is not None and is_users_code(frame.f_globals):
            yield generator, frame


def _held_by(generator: types.GeneratorType[Any, Any, Any], frame: types.FrameType) -> list[Any]:
    """But for numbers and texts; also what it goes through, which may be in none of its variables."""
    iterators = [thing for thing in gc.get_referents(generator) if is_iterator(thing)]
    return [value for value in (*variables_of_frame(frame).values(), *iterators) if type(value) not in _PLAIN]


def _place_in(file: Any) -> str | None:
    """``None`` of one that is closed, written, or has no place, such as a pipe."""
    try:
        if file.closed or file.writable() or not file.readable() or not file.seekable():
            return None
        return f"at {file.tell()}"
    except OSError:  # a text file does not tell while a ``for`` goes through it, so the place is another each time
        return f"under way, look {next(_looks)}"
