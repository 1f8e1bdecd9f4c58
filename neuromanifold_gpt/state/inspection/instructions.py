"""The instructions of functions, by which it is read off what they do."""

from __future__ import annotations

import dis
import types


def instructions_of(code: types.CodeType | types.FunctionType) -> list[dis.Instruction]:
    """Each with its whole argument, without the ``EXTENDED_ARG`` in front of one whose argument is above 255.

    So a jump may lead to an offset where none is: that of the first one behind it is meant.
    """
    return [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
