"""Whether a program may count its passes over a loader."""

from __future__ import annotations

import functools
import types

from neuromanifold_gpt.state.inspection.instructions import instructions_of
from neuromanifold_gpt.state.inspection.users_locals import users_frames


def may_count_epochs() -> bool:
    """Not if there is no other ``for`` than the one that asks for batches, and nothing is called after epochs."""
    codes = [frame.f_code for frame in users_frames(functions_only=False)]
    names = {name.lower() for code in codes for name in (*code.co_names, *code.co_varnames)}
    return sum(map(_for_loops, codes)) != 1 or any("epoch" in name for name in names)


@functools.lru_cache(maxsize=100)
def _for_loops(code: types.CodeType) -> int:
    return sum(step.opname == "FOR_ITER" for step in instructions_of(code))
