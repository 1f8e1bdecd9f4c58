"""Local variables of the functions that run a plain loop: ``rng = random.Random(1)`` in ``main()``."""

from __future__ import annotations

import inspect
import sys
import types
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch.utils.data import Dataset, Sampler

from neuromanifold_gpt.state.inspection.loop_carried import carried_by_loops
from neuromanifold_gpt.state.inspection.plain_reading import qualified_name_of
from neuromanifold_gpt.state.inspection.script_functions import code_of_script, names_read_by
from neuromanifold_gpt.state.inspection.users_modules import is_users_code
from neuromanifold_gpt.state.inspection.users_objects import is_of_users_class, variables_of_frame


def users_locals() -> Iterator[tuple[str, Any]]:
    """Of users' functions on the stack, by names such as ``locals.main.rng``.

    A loop may save in one function and restore in another: both run inside the one that has made what they use, so a
    value has the name that the outermost gives it. An object of a users' class has the name of that, if it is the only
    one: in its methods it is called ``self``.
    """
    found: dict[int, tuple[str, Any]] = {}
    for frame in reversed([*users_frames()]):
        passed_on = _arguments_passed_on(frame.f_code)
        for variable, value in variables_of_frame(frame).items():
            if variable.isidentifier() and variable not in passed_on:  # others are the interpreter's
                function = frame.f_code.co_qualname.replace(".<locals>", "")
                found.setdefault(id(value), (f"{function}.{variable}", value))
    kinds = Counter(id(type(value)) for _, value in found.values())  # metaclasses may have hashes of their own
    names: Counter[str] = Counter()
    for path, value in found.values():
        kind = type(value)
        is_object = is_of_users_class(value)
        class_name = qualified_name_of(kind).replace(".<locals>", "") if is_object else "locals"
        name = class_name if is_object and kinds[id(kind)] == 1 else f"{class_name}.{path}"
        names[name] += 1  # a function may run within itself
        yield (name if names[name] == 1 else f"{name}-{names[name]}"), value


def variables_of_script() -> Iterator[tuple[str, Any]]:
    """Of the script that runs, by names such as ``__main__.rng``."""
    variables = vars(sys.modules["__main__"])
    if is_users_code(variables):
        yield from ((f"__main__.{name}", value) for name, value in list(variables.items()))


def values_carried_by_loops() -> Iterator[Any]:
    """Of variables of users' functions on the stack, and of the script, see :func:`carried_by_loops`."""
    for frame in users_frames(functions_only=False):
        is_function = frame.f_code.co_flags & inspect.CO_OPTIMIZED
        variables = variables_of_frame(frame) if is_function else frame.f_globals
        yield from (variables[name] for name in carried_by_loops(frame) if name in variables)
    script = dict(variables_of_script())
    shared = (f"__main__.{name}" for name in names_read_by(code_of_script()))
    yield from (script[path] for path in shared if path in script)


def _arguments_passed_on(code: types.CodeType) -> tuple[str, ...]:
    """``*args`` and ``**kwargs``, as decorators have them: what is in them has a name further in."""
    first = code.co_argcount + code.co_kwonlyargcount
    number = bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    return code.co_varnames[first : first + number]


def is_data(value: Any) -> bool:
    """Whether it is a dataset or sampler, which a loop may use without a loader."""
    return issubclass(type(value), Dataset | Sampler)


def users_frames(*, functions_only: bool = True) -> Iterator[types.FrameType]:
    """The functions of users that run, the innermost first, and other code of theirs, such as a script."""
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        is_function = frame.f_code.co_flags & inspect.CO_OPTIMIZED
        if (is_function or not functions_only) and is_users_code(frame.f_globals):
            yield frame
        frame = frame.f_back
