"""Who takes the batches of a loader: ``enumerate`` counts them, ``itertools.cycle`` keeps them, ``zip`` has others too.

Neither is part of a position, and neither can be asked, so the interpreter is.
"""

from __future__ import annotations

import gc
import inspect
import itertools
import re
import types
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.data.errors import DataOrderWarning
from neuromanifold_gpt.state.inspection.instructions import instructions_of
from neuromanifold_gpt.state.inspection.plain_reading import attribute_dict
from neuromanifold_gpt.state.inspection.script_functions import code_of_script, names_read_by
from neuromanifold_gpt.state.inspection.users_objects import loader_of_pass, variables_of_generator

_MAXIMUM_DEPTH = 4  # enumerate(tqdm(zip(loader, other)))
_KINDS = (enumerate, itertools.cycle, zip)
_RANGE_ITERATOR = type(iter(range(0)))
_OF_VARIABLES = frozenset({"locals", "vars", "globals", "eval", "exec"})
_READS = ("LOAD_FAST", "LOAD_NAME", "LOAD_DEREF")
_COUNT = re.compile(r"count\((-?\d+)(?:, (-?\d+))?\)")


def consumers_of(iterator: Iterator[Any] | None, asking: types.FrameType | None) -> list[Any]:
    """Each ``enumerate``, ``itertools.cycle`` and ``zip`` around an iterator, of those made shortly before.

    Args:
        iterator: of a loader.
        asking: the frame that asks it for a batch.
    """
    passing_on = generators_at(asking)
    objects = (thing for generation in (0, 1) for thing in gc.get_objects(generation))  # of all, it takes 0.1 s or more
    consumers = [thing for thing in objects if any(type(thing) is kind for kind in _KINDS)]
    return [consumer for consumer in consumers if any(_takes_from(consumer, iterator, passing_on))]


def warn_of_cycles(consumers: list[Any]) -> None:
    """Say that ``itertools.cycle`` is among the consumers of a loader.

    Warns:
        DataOrderWarning: it is.
    """
    if any(type(consumer) is itertools.cycle for consumer in consumers):
        warn_user(
            "a resume of this training cannot be exact: itertools.cycle gives the batches of its first pass again and "
            "again, which are in no position. Begin a pass for each epoch: while True: for batch in loader.",
            DataOrderWarning,
        )


def warn_of_other_counts(counted: dict[str, int], consumed: int) -> None:
    """Say that what counts the batches of an epoch begins anew where that goes on.

    Args:
        counted: as :func:`counted_from` gives it.
        consumed: batches of the epoch.

    Warns:
        DataOrderWarning: it does.
    """
    wrong = {name: number for name, number in counted.items() if number in {0, 1} - {consumed, consumed + 1}}
    if wrong:
        name = min(wrong)
        warn_user(
            f"{name} counts from {wrong[name]} here, while the epoch goes on behind {consumed} batches. Where the loop "
            "goes by that number (accumulation, the last batch), it does not do what it did: use enumerate(loader, "
            "loader.batches_consumed).",
            DataOrderWarning,
        )


def counted_from(consumers: list[Any], iterator: Iterator[Any], asking: types.FrameType | None) -> dict[str, int]:
    """The number that an ``enumerate``, or a ``range`` or ``itertools.count`` in a ``zip``, gives the next batch.

    Args:
        consumers: of an iterator, as :func:`consumers_of` finds them.
        iterator, asking: as for :func:`consumers_of`.
    """
    found: dict[str, int] = {}
    passing_on = generators_at(asking)
    for consumer in consumers:
        if type(consumer) is enumerate and _reads_number(passing_on[-1].f_back if passing_on else asking):
            number: Any = consumer.__reduce__()[1][1]
            found["enumerate"] = number
        parts = _parts_of_zip(consumer) if type(consumer) is zip else ()
        of_loader = [part is iterator or any(_takes_from((part,), iterator, passing_on)) for part in parts]
        for place, part in enumerate(parts):
            was_asked = place < of_loader.index(True)  # before the loader is, for this batch
            if (number_and_step := _number_and_step(part)) is not None:
                found["zip"] = number_and_step[0] - number_and_step[1] * was_asked
    return found


def _reads_number(asking: types.FrameType | None) -> bool:
    """Whether a ``for`` over an ``enumerate`` reads its numbers; also where that is not clear."""
    if asking is None:
        return True
    code = asking.f_code
    steps = instructions_of(code)
    place = next((place for place, step in enumerate(steps) if step.offset == asking.f_lasti), 0)
    if [step.opname for step in steps[place : place + 2]] != ["FOR_ITER", "UNPACK_SEQUENCE"]:
        return True
    keeps = steps[place + 2]
    if not keeps.opname.startswith(("STORE_FAST", "STORE_NAME")):
        return True
    name = keeps.argval[0] if isinstance(keeps.argval, tuple) else keeps.argval  # two in one step from 3.13 on
    reads = (step.argval for step in steps if any(kind in step.opname for kind in _READS))
    read = {part for value in reads for part in (value if isinstance(value, tuple) else (value,))}
    of_script = names_read_by(code_of_script()) if keeps.opname == "STORE_NAME" else set()
    return name in read or name in of_script or bool(_OF_VARIABLES & {*code.co_names})


def _number_and_step(counting: Any) -> tuple[int, int] | None:
    """The number that a ``range`` or ``itertools.count`` gives next."""
    if type(counting) is _RANGE_ITERATOR:
        parts: Any = counting.__reduce__()
        left, given = parts[1][0], parts[2] if len(parts) > 2 else None
        return left.start + left.step * (given or 0), left.step
    if type(counting) is itertools.count and (shown := _COUNT.fullmatch(repr(counting))):
        return int(shown[1]), int(shown[2] or 1)
    return None


def _parts_of_zip(zipped: Any) -> tuple[Any, ...]:
    return next(held for held in gc.get_referents(zipped) if type(held) is tuple)


def zipped_with(consumers: list[Any], iterator: Iterator[Any]) -> list[types.GeneratorType[Any, Any, Any]]:
    """Generators that are in a ``zip`` with an iterator."""
    zips = [consumer for consumer in consumers if type(consumer) is zip]
    parts = [part for found in zips for part in _parts_of_zip(found)]
    return [part for part in parts if type(part) is types.GeneratorType and part is not iterator]


def begin_anew(
    consumers: list[Any], iterator: Iterator[Any], asking: types.FrameType | None
) -> list[itertools.cycle[Any] | types.GeneratorType[Any, Any, Any]]:
    """What is in a ``zip`` with an iterator, and begins anew in a process that resumes: cycles, and users' generators.

    Args:
        consumers: of an iterator, as :func:`consumers_of` finds them.
        iterator, asking: as for :func:`consumers_of`.

    Returns:
        Nothing that goes through a loader, which has its own position, or is said to have none.
    """
    passing_on = generators_at(asking)
    parts = [part for consumer in consumers if type(consumer) is zip for part in _parts_of_zip(consumer)]
    others = [part for part in parts if part is not iterator and not any(_takes_from((part,), iterator, passing_on))]
    return [part for part in others if type(part) is itertools.cycle or _is_users_generator(part)]


def _is_users_generator(thing: Any) -> bool:
    variables = variables_of_generator(thing) if type(thing) is types.GeneratorType else None
    if not variables:
        return False
    attributes = [part for value in variables.values() for part in (attribute_dict(value) or {}).values()]
    things = [*variables.values(), *attributes, *gc.get_referents(thing)]
    return not any(_is_loader(thing) or loader_of_pass(thing) is not None for thing in things)


def _is_loader(thing: Any) -> bool:
    return issubclass(type(thing), DataLoader | _BaseDataLoaderIter)


def generators_at(frame: types.FrameType | None) -> list[types.FrameType]:
    """Frames of generator functions that pass batches on, such as tqdm's; what they hold shows only from outside."""
    found = []
    while frame is not None and frame.f_code.co_flags & inspect.CO_GENERATOR:
        found.append(frame)
        frame = frame.f_back
    return found


def _takes_from(
    consumer: Any, iterator: Iterator[Any] | None, passing_on: list[types.FrameType], depth: int = 0
) -> Iterator[bool]:
    for part in gc.get_referents(consumer):
        if part is iterator or (type(part) is types.GeneratorType and part.gi_frame in passing_on):
            yield True
        elif depth < _MAXIMUM_DEPTH and (type(part) is tuple or hasattr(type(part), "__next__")):
            yield from _takes_from(part, iterator, passing_on, depth + 1)
