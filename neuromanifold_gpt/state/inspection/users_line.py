"""Where in a user's program a warning belongs, however many functions of libraries are between."""

from __future__ import annotations

import sys

_BETWEEN = frozenset({"neuromanifold_gpt", "lightning", "lightning_fabric", "torch", "contextlib", "functools"})


def stacklevel_of_user() -> int:
    """For ``warnings.warn`` of the caller: its level of the line of the program that brought it about.

    That is who trains, iterates or saves: the innermost function that is neither of this package nor of torch or
    Lightning. There is none in data workers; then it is the caller's own caller.
    """
    frame, level = sys._getframe(1).f_back, 2
    while frame is not None:
        if str(frame.f_globals.get("__name__")).partition(".")[0] not in _BETWEEN:
            return level
        frame, level = frame.f_back, level + 1
    return 2
