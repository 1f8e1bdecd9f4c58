"""Local variables of the functions that run a plain loop: ``rng = random.Random(1)`` in ``main()``."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler

from neuromanifold_gpt.state.users_modules import is_users_code
from neuromanifold_gpt.state.users_objects import has_position, is_of_users_class

_REFERENCES_OF_FRAME = 3  # its own, a variable and an argument; with more, somebody has called locals()
_QUALIFIED_NAME: Any = vars(type)["__qualname__"]  # past metaclasses


def users_locals() -> Iterator[tuple[str, Any]]:
    """Of users' functions on the stack, those of the outermost first, by names that the function has no part in.

    A loop may save in one function and restore in another: both run inside the one that has made what they use. An
    object of a users' class has the name of that, since in its methods it is called ``self``.
    """
    names: dict[str, int] = {}
    seen: set[int] = set()
    for frame in reversed([*_frames()]):
        for variable, value in _variables_of(frame):
            if variable.isidentifier() and id(value) not in seen:  # others are the interpreter's, or a debugger's
                seen.add(id(value))
                is_object = is_of_users_class(value) and not issubclass(type(value), types.FunctionType)
                name = _QUALIFIED_NAME.__get__(type(value)) if is_object else f"locals.{variable}"
                number = names[name] = names.get(name, 0) + 1
                yield (name if number == 1 else f"{name}-{number}"), value


def _variables_of(frame: types.FrameType) -> list[tuple[str, Any]]:
    """A look that leaves nothing behind: up to Python 3.12, a frame keeps what it was asked for, tensors and all."""
    variables = frame.f_locals
    found = list(variables.items())
    if type(variables) is dict and sys.getrefcount(variables) <= _REFERENCES_OF_FRAME:
        variables.clear()
    return found


def parts_of_stock_loader(loader: Any) -> dict[str, Any]:
    """What a loader draws from that has no position, by name; nothing of other things."""
    if not issubclass(type(loader), DataLoader) or has_position(loader):
        return {}
    sampler = loader.batch_sampler if loader.batch_sampler is not None else loader.sampler
    parts = {"generator": loader.generator, "sampler": sampler, "dataset": loader.dataset}
    return {**parts, "collate_fn": loader.collate_fn}


def is_data(value: Any) -> bool:
    """Whether it is a dataset or sampler, which a loop may use without a loader."""
    return issubclass(type(value), Dataset | Sampler)


def _frames() -> Iterator[types.FrameType]:
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_flags & inspect.CO_OPTIMIZED and is_users_code(frame.f_globals):  # of functions
            yield frame
        frame = frame.f_back
