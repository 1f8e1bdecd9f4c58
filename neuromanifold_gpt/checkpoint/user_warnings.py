"""Warnings that name the line of the user's program which brought them about, however many functions are between."""

from __future__ import annotations

import sys
import warnings

_BETWEEN = frozenset(
    {"neuromanifold_gpt", "lightning", "lightning_fabric", "torch", "contextlib", "functools", "threading"}
)


def warn_user(message: str, category: type[Warning]) -> None:
    """Warn at the line that trains, iterates or saves.

    That is in the innermost function that is neither of this package nor of torch or Lightning. Where there is none, it
    is the line that calls this function.
    """
    warnings.warn(message, category, stacklevel=_level_of_user())


def _level_of_user() -> int:
    """As :func:`warn_user` has to give it."""
    frame, level = sys._getframe(1).f_back, 2
    while frame is not None:
        if str(frame.f_globals.get("__name__")).partition(".")[0] not in _BETWEEN:
            return level
        frame, level = frame.f_back, level + 1
    return 2
