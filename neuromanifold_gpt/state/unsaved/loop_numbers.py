"""Numbers that a plain loop carries from one round to the next: the best loss so far, for how long it is the best, a
temperature that anneals, a mean.

Of tensors and objects the save can tell that nobody saves them. Of numbers it cannot: most loops set them by what the
checkpoint has, as they do with their step. Only the resumed run shows that, when it asks for its first batch: there,
what has changed in training is compared with what it was at the save. A loop that asks no loader of this package shows
it in its first step, behind which numbers may be those of the next round; so there only those are said that begin again
as they began at first.
"""

from __future__ import annotations

import array
import contextlib
import contextvars
import enum
import inspect
import re
import types
import weakref
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor

from neuromanifold_gpt.state.in_steps import in_next_step
from neuromanifold_gpt.state.inspection.clocks import is_of_a_clock
from neuromanifold_gpt.state.inspection.flat_values import SCALARS
from neuromanifold_gpt.state.inspection.kept_variables import names_set_by
from neuromanifold_gpt.state.inspection.loop_attributes import attributes_of_variables, kinds_of_variables
from neuromanifold_gpt.state.inspection.loop_carried import carried_by_loops, only_added_to, set_by_loops
from neuromanifold_gpt.state.inspection.plain_reading import (
    FUNCTIONS,
    name_of_function,
    qualified_name_of,
    values_in,
)
from neuromanifold_gpt.state.inspection.script_functions import (
    attributes_added_to_and_read,
    code_of_script,
    globals_set_by,
    names_asked_for,
    names_only_added_to,
    names_read_by,
    names_set_by_signals,
)
from neuromanifold_gpt.state.inspection.users_locals import users_frames, variables_of_script
from neuromanifold_gpt.state.inspection.users_objects import (
    is_a_time,
    is_of_users_class,
    is_stateful,
    variables_of_frame,
)
from neuromanifold_gpt.state.unsaved.compared_numbers import (
    ENTRIES,
    KEYS,
    OBJECT,
    begun_again,
    goes_on,
    is_made_or_dropped,
    is_memo,
    marked,
    warn_of_other_numbers,
)
from neuromanifold_gpt.state.unsaved.followed_values import FollowedValues
from neuromanifold_gpt.state.unsaved.shown_values import RESULT, holds_tensors, shown_value

LOOP_NUMBERS_KEY = "loop_numbers"  # of a manifest's details
FIRST_NUMBERS_KEY = "loop_numbers_at_first"  # of a loop without loaders
_NUMBERS = (bool, int, float, complex, np.generic, Tensor, tuple, set)
_SEQUENCES = (list, deque, array.array)
_CHANGED_WITHIN = (*_SEQUENCES, dict, set, Tensor, contextvars.ContextVar)
_STOPS = re.compile(r"stop|interrupt|preempt|exit|quit|terminat|shutdown|signal|sigterm|requeue", re.IGNORECASE)
_MAXIMUM_DEPTH = 3  # of objects in objects, and dicts in dicts
_LOOKED_AT = 100  # of one dict or list
_LONGEST_TEXT = 100
_Carried = tuple[types.FrameType, frozenset[str]]


class LoopNumbers:
    """Follows the loops of this process, by the names of their variables."""

    def __init__(self) -> None:
        self._followed = FollowedValues({})
        self._asked: weakref.ref[Any] | None = None
        self._is_in_first_step = False
        self._told_before: frozenset[str] = frozenset()  # by the saves before the restore: equal runs tell the same

    def training_begins(self, asked: Any) -> None:
        """A first batch is asked for.

        Args:
            asked: of whom. While one that was asked before is alive, training is under way.
        """
        if self._asked is None or self._asked() is None:
            self._followed, self._asked, self._is_in_first_step = FollowedValues({}), weakref.ref(asked), True
            self._told_before = frozenset()
        self._followed.look(_shown(carried_only=True))

    def training_is_under_way(self, asked: Any) -> None:
        """A further batch is asked for: an object that the first step has made begins as it is now."""
        if self._is_in_first_step and self._asked is not None and self._asked() is asked:
            self._is_in_first_step = False
            self._followed.look(_shown(carried_only=True))

    def has_stepped(self) -> None:
        """An optimizer has, for the first time: where no loader was asked for a batch, training begins here."""
        if self._asked is None:
            self._followed.look(_shown(carried_only=True))

    def at_save(self, around: Iterable[_Carried] = ()) -> dict[str, str]:
        """Which have changed since training began, as they are now.

        Args:
            around: frames of generators that pass batches on, and wait, the innermost first; what they carry.
        """
        now = _shown(carried_only=True, around=around)
        changed = self._followed.changed(now)
        told = [path for path in changed if not is_memo(path, now, changed)]
        told = [path for path in told if not is_made_or_dropped(now[path], self._followed.first(path))]
        told += self._told_before & now.keys() - {*told}
        return {path: marked(now[path], self._followed.first(path)) for path in sorted(told)}

    def at_first(self, paths: Iterable[str]) -> dict[str, str]:
        """Of some that :meth:`at_save` gives, as they were when training began without a loader."""
        return {path: self._followed.first(path) for path in paths} if self._asked is None else {}

    def compare_in_first_step(self, saved: Mapping[str, str], first: Mapping[str, str]) -> None:
        """For a loop without loaders that was restored.

        Args:
            saved, first: what :meth:`at_save` and :meth:`at_first` gave.
        """

        def compare() -> None:
            if self._asked is not None:
                return
            now = _shown(carried_only=False)
            self._told_before = frozenset(saved)
            warn_of_other_numbers(begun_again(saved, first, now))

        in_next_step(compare)

    def training_goes_on(self, asked: Any, saved: Mapping[str, str], counts: Collection[str]) -> None:
        """The first batch behind a restore is asked for.

        Args:
            asked: as for :meth:`training_begins`.
            saved: what :meth:`at_save` gave; on ranks that did not write it, nothing.
            counts: that the checkpoint has, as they are shown.

        Warns:
            InexactResumeWarning: names what was otherwise at the save.
        """
        shown = _shown(carried_only=False)
        self._followed, self._asked, self._is_in_first_step = FollowedValues({}), weakref.ref(asked), True
        self._told_before = frozenset(saved)
        self._followed.look(_shown(carried_only=True))
        asked_for = names_asked_for(kinds_of_variables())
        now = {path: found for path in saved if (found := _found_at(path, shown, asked_for)) is not None}
        others = (path for path in now if not goes_on(path, saved[path], now[path], counts))
        warn_of_other_numbers({path: (saved[path], now[path]) for path in others})


LOOP_NUMBERS = LoopNumbers()


def _found_at(path: str, shown: Mapping[str, str], asked_for: Collection[str]) -> str | None:
    """What is shown there, if anything; of an object that is not made yet, that its owner has ``None``."""
    owner, _, name = path.rpartition(".")
    if path in shown or not owner or name.isdecimal():  # of a list: it may be a record
        return shown.get(path)
    if name in asked_for:  # so the next step makes it
        return "not there"
    return "None" if _found_at(owner, shown, ()) == "None" else None


def _shown(*, carried_only: bool, around: Iterable[_Carried] = ()) -> dict[str, str]:
    found: dict[str, str] = {}
    for path, value in _variables(carried_only, around):
        found.update(_numbers_at(path, value, 0))
    read = attributes_added_to_and_read(kinds_of_variables())
    for path, value, is_of_function in attributes_of_variables():
        # Of what a function has around itself, records are left out; this one it reads, too.
        may_be_record = not (_is_growing(value) and (is_of_function or path.rpartition(".")[2] in read))
        counted = ENTRIES if is_of_function else KEYS
        found.update(_numbers_at(path, value, 0, may_be_record=may_be_record, counted=counted))
    flags = names_set_by_signals()
    return {path: shown for path, shown in found.items() if flags.isdisjoint(path.split("."))}


def _numbers_at(
    path: str, value: Any, depth: int, *, may_be_record: bool = False, counted: str = KEYS
) -> Iterator[tuple[str, str]]:
    """Of a variable; of what may be a record, to which items are added, each item by itself."""
    kind, name = type(value), path.rpartition(".")[2]  # isinstance() would ask proxies
    if is_a_time(name, value) or (kind is float and is_of_a_clock(value)) or (kind is bool and _STOPS.search(name)):
        return
    if value is None:
        yield path, "None"  # as it is before the first
    elif kind is str and len(value) <= _LONGEST_TEXT and "/" not in value:  # a phase, not a path
        yield path, repr(value)
    elif issubclass(kind, FUNCTIONS):
        yield path, name_of_function(value)
    elif kind is contextvars.ContextVar:
        with contextlib.suppress(LookupError):  # not set yet, as each round may set it
            yield from _numbers_at(path, value.get(), depth, may_be_record=may_be_record)
    elif issubclass(kind, list | tuple) and value and _all_functions(values_in(value)):
        yield path, f"[{','.join(map(name_of_function, islice(values_in(value), _LOOKED_AT)))}]"
    elif issubclass(kind, dict) or (may_be_record and _is_growing(value)):
        yield from _items_of(path, value, depth, "" if may_be_record and _is_by_number(value) else counted)
    elif issubclass(kind, (*_NUMBERS, *_SEQUENCES)):
        text = None if holds_tensors(value) else shown_value(value, is_setting=not _is_of_texts(value))
        if text is not None and text != RESULT:
            yield path, text
    elif depth == 0 and is_of_users_class(value) and not issubclass(kind, enum.Enum) and not is_stateful(kind):
        yield path, qualified_name_of(kind) + OBJECT


def _items_of(path: str, container: Any, depth: int, counted: str) -> Iterator[tuple[str, str]]:
    """Also how many there are, if all are shown, and are no functions, which may be a memo."""
    if depth >= _MAXIMUM_DEPTH:
        return
    is_dict = issubclass(type(container), dict)
    items = [*(dict.items(container) if is_dict else enumerate(values_in(container)))][:_LOOKED_AT]  # threads change it
    named = [(_name_of_key(key, number), part) for number, (key, part) in enumerate(items)]
    shown = [[*_numbers_at(f"{path}.{key}", part, depth + 1, may_be_record=is_dict)] for key, part in named]
    if counted and all(shown) and not any(issubclass(type(part), FUNCTIONS) for _, part in named):
        yield path, f"{len(container)}{counted}"
    yield from (pair for pairs in shown for pair in pairs)


def _is_of_texts(value: Any) -> bool:
    few = [*islice(values_in(value), _LOOKED_AT)] if issubclass(type(value), list | tuple | deque) else []
    return bool(few) and all(type(part) is str and "/" not in part for part in few)  # a pool, not paths


def _all_functions(values: Iterable[Any]) -> bool:
    return all(issubclass(type(value), FUNCTIONS) for value in values)


def _name_of_key(key: Any, number: int) -> str:
    """Texts of users' objects, and of parameters, may fail or change."""
    is_plain = all(type(part) in SCALARS for part in (key if type(key) is tuple else (key,)))
    return str(key) if is_plain else f"{type(key).__name__} {number}"


def _is_by_number(value: Any) -> bool:
    """A list and the like, or a dict by whole numbers."""
    if not issubclass(type(value), dict):
        return _is_growing(value)
    return any(issubclass(type(key), int) for key in [*dict.keys(value)][:_LOOKED_AT])


def _is_growing(value: Any) -> bool:
    """A list and the like, without a window."""
    return issubclass(type(value), _SEQUENCES) and getattr(value, "maxlen", None) is None


def _variables(carried_only: bool, around: Iterable[_Carried]) -> Iterator[tuple[str, Any]]:
    """Local variables of the functions that run, and those of the script that loops, or functions, set.

    Without records: lists, and dicts by numbers, with which nothing but adding to them is done.
    """
    script, functions = dict(variables_of_script()), code_of_script()
    of_script: set[str] = set().union(*map(globals_set_by, functions))
    running: set[types.CodeType] = set()
    read_by_script: set[str] = set()
    running_frames = ((frame, carried_by_loops(frame)) for frame in users_frames(functions_only=False))
    for frame, carried in reversed([*around, *running_frames]):
        code, is_set = frame.f_code, carried & set_by_loops(frame)
        running.add(code)
        if code.co_flags & inspect.CO_OPTIMIZED:
            function, is_set = code.co_qualname.replace(".<locals>", ""), is_set | _set_by_functions_in(code)
            records = only_added_to(code)
            for name, value in variables_of_frame(frame).items():
                is_carried = name in (carried if issubclass(type(value), _CHANGED_WITHIN) else is_set)
                if (is_carried or not carried_only) and not (name in records and _is_by_number(value)):
                    yield f"locals.{function}.{name}", value
        else:
            of_script |= carried
            read_by_script |= carried - only_added_to(code)
    found = {name for name in of_script if name in read_by_script or not _is_by_number(script.get(f"__main__.{name}"))}
    for name in names_read_by(functions) - of_script - names_only_added_to(functions, running):
        if issubclass(type(script.get(f"__main__.{name}")), _CHANGED_WITHIN):  # they may change what it holds
            found.add(name)
    yield from ((path, script[path]) for path in (f"__main__.{name}" for name in found) if path in script)


def _set_by_functions_in(code: types.CodeType) -> frozenset[str]:
    """Variables of a function that others in it set (``nonlocal``)."""
    return frozenset().union(*(names_set_by(part) for part in code.co_consts if isinstance(part, types.CodeType)))
