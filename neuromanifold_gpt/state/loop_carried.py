"""Which variables of a function go from one round of a loop to the next: the hidden state of a recurrent model, a batch
that was fetched ahead, the best weights so far. Those that each round makes anew, such as its batch, do not.

That is read off the function's instructions: live variables, as compilers call them (A. W. Appel, Modern Compiler
Implementation, chapter 10).
"""

from __future__ import annotations

import dis
import functools
import re
import types
from collections.abc import Iterator

_ACCESS = re.compile(r"(LOAD|STORE|DELETE)_(?:FAST|NAME|DEREF|CLOSURE|CLASSDEREF|GLOBAL)(?!_AND_CLEAR)")
_JUMPS = {*dis.hasjrel, *dis.hasjabs}
_NEVER_GO_ON = re.compile(r"JUMP_(FORWARD|BACKWARD|BACKWARD_NO_INTERRUPT|ABSOLUTE)$|RETURN_|RAISE_VARARGS|RERAISE")
_MOST_INSTRUCTIONS = 20_000  # for more, it would take seconds
_Live = dict[int, set[str]]  # names of the variables that are read later, by number of an instruction


def carried_by_loops(frame: types.FrameType) -> frozenset[str]:
    """Variables that a loop, which a function is in, may read as an earlier round left them, in it or behind it."""
    carried, _ = _carried(frame.f_code, frame.f_lasti)
    return carried


def set_by_loops(frame: types.FrameType) -> frozenset[str]:
    """Those of :func:`carried_by_loops` that the loop itself sets; of others it may change what they hold."""
    carried, set_in_loops = _carried(frame.f_code, frame.f_lasti)
    return carried & set_in_loops


@functools.lru_cache(maxsize=1000)
def _carried(code: types.CodeType, offset: int) -> tuple[frozenset[str], frozenset[str]]:
    function = _Function(code)
    if len(function.instructions) > _MOST_INSTRUCTIONS:
        return frozenset(), frozenset()
    live = function.live(range(len(function.instructions)))
    carried: set[str] = set()
    set_in_loops: set[str] = set()
    for rounds in function.loops_around(offset):
        behind = {name for after in function.exits_of(rounds) for name in live[after]}
        carried |= function.live(rounds, behind)[rounds.start]
        set_in_loops |= function.set_in(rounds)
    return frozenset(carried), frozenset(set_in_loops)


class _Function:
    def __init__(self, code: types.CodeType) -> None:
        self.instructions = list(dis.get_instructions(code))
        number_at = {instruction.offset: number for number, instruction in enumerate(self.instructions)}
        self._next = [
            [
                *([number_at[instruction.argval]] if instruction.opcode in _JUMPS else []),
                *([] if _NEVER_GO_ON.match(instruction.opname) else [number + 1]),
            ]
            for number, instruction in enumerate(self.instructions)
        ]

    def loops_around(self, offset: int) -> Iterator[range]:
        """From the instruction that a loop begins with to the last one that goes back to it."""
        ends: dict[int, int] = {}
        for number, following in enumerate(self._next):
            ends.update((start, number) for start in following if start <= number)
        for start, end in ends.items():
            if self.instructions[start].offset <= offset <= self.instructions[end].offset:
                yield range(start, end + 1)

    def exits_of(self, rounds: range) -> set[int]:
        """The instructions behind a loop."""
        return {after for number in rounds for after in self._next[number]} - {*rounds}

    def set_in(self, part: range) -> set[str]:
        """The variables that are set there."""
        accesses = (access for number in part for access in _accesses(self.instructions[number]))
        return {name for action, name in accesses if action == "STORE"}

    def live(self, part: range, behind: set[str] | None = None) -> _Live:
        """The variables that are live before each instruction.

        Args:
            part: what is looked at; nothing that is read outside counts. ``for`` loops within it have one round: not
                none, by which all that they make would be carried around them.
            behind: if this is a loop, what is live behind it. It counts where a round is over, not where the loop ends:
                what each round makes anew is not carried, although it may be read behind the loop.
        """
        live: _Live = {number: set() for number in part}
        is_final = False
        while not is_final:
            is_final = True
            for number in reversed(part):
                now: set[str] = set()
                for following in self._next_within(part, number):
                    now |= behind if behind is not None and following == part.start else live.get(following, set())
                for action, name in reversed([*_accesses(self.instructions[number])]):
                    now = now | {name} if action == "LOAD" else now - {name}
                if now != live[number]:
                    live[number], is_final = now, False
        return live

    def _next_within(self, part: range, number: int) -> list[int]:
        if self._is_for(number) and number != part.start:
            return [number + 1]
        return [
            max(self._next[following])
            if following < number and following != part.start and self._is_for(following)
            else following
            for following in self._next[number]
        ]

    def _is_for(self, number: int) -> bool:
        return self.instructions[number].opname == "FOR_ITER"


def _accesses(instruction: dis.Instruction) -> Iterator[tuple[str, str]]:
    """What an instruction does with variables; some do two things."""
    actions = _ACCESS.findall(instruction.opname)
    names = instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,)
    yield from zip(actions, names, strict=False)
