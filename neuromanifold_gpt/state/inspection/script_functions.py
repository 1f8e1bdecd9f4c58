"""The functions of the script that runs, and what they do with its variables."""

from __future__ import annotations

import functools
import itertools
import signal
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

from neuromanifold_gpt.state.inspection.instructions import instructions_of
from neuromanifold_gpt.state.inspection.loop_carried import added_and_read, globals_read_by
from neuromanifold_gpt.state.inspection.plain_reading import attribute_dict, module_name_of, variables_of_class
from neuromanifold_gpt.state.inspection.users_modules import is_users_code

_ASK_TO_STOP = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGCONT")
_SIGNALS = [number for number in signal.Signals if number.name in _ASK_TO_STOP]  # not every system has them all
_NO_FUNCTIONS = (types.ModuleType, str, int, float, bool, type(None), list, dict, tuple, set)
_ASK_BY_NAME = {"hasattr", "getattr", "vars", "__dict__", "globals"}
_ERRORS_OF_NAMES = {"AttributeError", "NameError"}
_ADDING = ("append", "appendleft", "extend")
_SETTING = ("STORE_ATTR", "STORE_GLOBAL", "STORE_DEREF")


def code_of_script() -> list[types.CodeType]:
    """Of its functions, also those that decorators are around, and of the methods of its classes."""
    script = vars(sys.modules["__main__"])
    if not is_users_code(script):
        return []
    found: list[types.FunctionType] = []
    for value in list(script.values()):
        if issubclass(type(value), type) and module_name_of(value) == "__main__":
            for part in list(variables_of_class(value).values()):
                found.extend(_functions_in(part))
        elif type(value) not in _NO_FUNCTIONS:
            found.extend(_functions_in(value))
    return [function.__code__ for function in found if function.__globals__ is script]


def names_asked_for(kinds: Iterable[type] = ()) -> frozenset[str]:
    """Variables and attributes of which functions ask whether they are there yet: ``hasattr(self, "mean")``.

    Args:
        kinds: classes whose methods are such functions too.
    """
    values = [value for kind in kinds for value in list(variables_of_class(kind).values())]
    methods = [part for value in values for part in _functions_in(value)]
    codes = [*code_of_script(), *(function.__code__ for function in methods)]
    return frozenset().union(*map(_names_asked_for_in, codes))


@functools.lru_cache(maxsize=1000)
def _names_asked_for_in(whole: types.CodeType) -> frozenset[str]:
    found: set[str] = set()
    for code in _with_inner(whole):
        used = set(code.co_names)
        if used & _ASK_BY_NAME:
            found.update(value for value in code.co_consts if type(value) is str)
        if used & _ERRORS_OF_NAMES:
            found.update(step.argval for step in instructions_of(code) if step.opname in _SETTING)
    return frozenset(found)


@functools.lru_cache(maxsize=1000)
def globals_set_by(code: types.CodeType) -> frozenset[str]:
    """Variables of the script that a function of it sets."""
    return frozenset(step.argval for step in instructions_of(code) if step.opname == "STORE_GLOBAL")


def names_read_by(functions: Iterable[types.CodeType]) -> frozenset[str]:
    """Variables of the script that some of its functions read."""
    return frozenset().union(*map(globals_read_by, functions))


def names_only_added_to(functions: Iterable[types.CodeType], running: set[types.CodeType]) -> frozenset[str]:
    """Variables of the script to which its functions add items and of which they read none: records.

    Args:
        functions: all of them.
        running: those that run. Of these the loops count; what stands behind them, such as a report, does not. What
            others do, loops may do by calling them.
    """
    added: set[str] = set()
    read: set[str] = set()
    for code in [part for whole in functions for part in _with_inner(whole)]:
        some_added, some_read = added_and_read(code, in_loops_only=code in running)
        added |= some_added
        read |= some_read
    return frozenset(added - read)


def attributes_added_to_and_read(kinds: Iterable[type]) -> frozenset[str]:
    """Attributes to which a function adds items and that it reads as well: a list of norms, by which it clips the next.

    One that has loops, as what trains has, may read a record behind them: it does not count.

    Args:
        kinds: classes whose methods count, beside the functions of the script.
    """
    methods = [
        part for kind in kinds for value in list(variables_of_class(kind).values()) for part in _functions_in(value)
    ]
    codes = {*code_of_script(), *(function.__code__ for function in methods)}
    return frozenset().union(*map(_attributes_added_to_and_read_in, codes))


@functools.lru_cache(maxsize=1000)
def _attributes_added_to_and_read_in(whole: types.CodeType) -> frozenset[str]:
    added: set[str] = set()
    read: set[str] = set()
    for code in _with_inner(whole):
        steps = instructions_of(code)
        if any(step.opname.startswith("JUMP_BACKWARD") for step in steps):
            continue
        for step, following in itertools.pairwise(steps):
            if step.opname == "LOAD_ATTR":
                adds = following.opname in ("LOAD_METHOD", "LOAD_ATTR") and following.argval in _ADDING
                (added if adds else read).add(step.argval)
    return frozenset(added & read)


def names_set_by_signals() -> frozenset[str]:
    """Variables and attributes that handlers of signals set, such as a flag by which a loop stops."""
    handlers = [signal.getsignal(number) for number in _SIGNALS]
    functions = [handler.__func__ if type(handler) is types.MethodType else handler for handler in handlers]
    return frozenset().union(
        *(_names_set_in(function.__code__) for function in functions if type(function) is types.FunctionType)
    )


@functools.lru_cache(maxsize=100)
def _names_set_in(code: types.CodeType) -> frozenset[str]:
    """Also those of what it changes, and its keys (``stop["now"] = True``)."""
    changed, _ = added_and_read(code, in_loops_only=False)
    instructions = instructions_of(code)
    is_set = {step.argval for step in instructions if step.opname in _SETTING}
    keys = {key.argval for key, step in itertools.pairwise(instructions) if step.opname == "STORE_SUBSCR"}
    return changed | is_set | {key for key in keys if type(key) is str}


def _functions_in(value: Any) -> list[types.FunctionType]:
    kind = type(value)
    if kind is property:
        found = [value.fget, value.fset]
    elif kind in (staticmethod, classmethod):
        found = [value.__func__]
    else:
        found = [value, (attribute_dict(value) or {}).get("__wrapped__")]
    return [part for part in found if type(part) is types.FunctionType]


def _with_inner(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            yield from _with_inner(part)
