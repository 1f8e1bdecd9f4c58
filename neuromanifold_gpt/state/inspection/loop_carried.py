"""Which variables of a function go from one round of a loop to the next: the hidden state of a recurrent model, a batch
that was fetched ahead, the best weights so far. Those that each round makes anew, such as its batch, do not.

That is read off the function's instructions: live variables, as compilers call them (A. W. Appel, Modern Compiler
Implementation, chapter 10).
"""

from __future__ import annotations

import bisect
import dis
import functools
import re
import types
from collections.abc import Container, Iterator

from neuromanifold_gpt.state.inspection.instructions import instructions_of

_ACCESS = re.compile(r"(LOAD|STORE|DELETE)_(?:FAST|NAME|DEREF|CLOSURE|CLASSDEREF|GLOBAL)(?!_AND_CLEAR)")
_JUMPS = {*dis.hasjrel, *dis.hasjabs}
_NEVER_GO_ON = re.compile(
    r"JUMP_(FORWARD|BACKWARD|BACKWARD_NO_INTERRUPT|ABSOLUTE)$|RETURN_(?!GENERATOR)|RAISE_VARARGS|RERAISE"
)
_CALLED_IN_PLACE = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")
_MOST_INSTRUCTIONS = 20_000  # for more, it would take seconds
_ADDING = ("append", "extend", "add", "update")
_Live = dict[int, set[str]]  # names of the variables that are read later, by number of an instruction


def carried_by_loops(frame: types.FrameType, offset: int | None = None) -> frozenset[str]:
    """Variables that a loop, which a function is in, may read as an earlier round left them, in it or behind it.

    Args:
        frame: of the function.
        offset: of another instruction than the one where that is.
    """
    carried, _ = _carried(frame.f_code, frame.f_lasti if offset is None else offset)
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


def only_added_to(code: types.CodeType) -> frozenset[str]:
    """Variables to which a function adds items and of which it otherwise reads none in its loops: records."""
    added, read = added_and_read(code, in_loops_only=True)
    return added - read


@functools.lru_cache(maxsize=1000)
def added_and_read(code: types.CodeType, *, in_loops_only: bool) -> tuple[frozenset[str], frozenset[str]]:
    """Variables to which a function adds items, and those that it reads otherwise."""
    function = _Function(code)
    numbers = range(len(function.instructions))
    in_loops = {number for rounds in function.all_loops() for number in rounds}
    added: set[str] = set()
    read: set[str] = set()
    for number in in_loops if in_loops_only else numbers:
        for action, name in _accesses(function.instructions[number]):
            if action == "LOAD":
                (added if function.adds_at(number) else read).add(name)
    return frozenset(added), frozenset(read)


@functools.lru_cache(maxsize=1000)
def held_back_by(code: types.CodeType, *, taken_at: int, given_at: int) -> tuple[frozenset[str], int]:
    """Where a generator may have what it has taken from another and not given on yet.

    Args:
        code: of its function.
        taken_at, given_at: offsets of the instructions with which it asked last, and waits.

    Returns:
        Names of variables; and the number of iterators, the innermost on its stack, that it goes through meanwhile.
    """
    function = _Function(code)
    if len(function.instructions) > _MOST_INSTRUCTIONS:
        return frozenset(), 0
    rounds_of_taking = {*function.loops_around(taken_at)}
    rounds_of_giving = [rounds for rounds in function.loops_around(given_at) if rounds not in rounds_of_taking]
    starts = {rounds.start for rounds in rounds_of_giving if function.is_iteration(rounds.start)}
    taking, giving = function.number_at(taken_at), function.number_at(given_at)
    names = function.read_for_yields(giving, before=taking, ended=starts)
    for rounds in function.loops_around(given_at):
        if rounds in rounds_of_taking:
            live = function.live(rounds)
            carried, behind = live[rounds.start], live.get(giving + 1, set())
            # What is made anew behind the ``yield`` may be emptied there, or take over what another one has.
            names |= carried & behind if carried <= behind else behind
    return frozenset(names), len(starts)


@functools.lru_cache(maxsize=1000)
def read_for_more(code: types.CodeType, offset: int) -> frozenset[str]:
    """Variables of a generator function that it may read before a further ``yield``, from an instruction on."""
    function = _Function(code)
    if len(function.instructions) > _MOST_INSTRUCTIONS:
        return frozenset()
    return frozenset(function.read_for_yields(max(0, function.number_at(offset)), before=None, ended=set()))


class _Function:
    def __init__(self, code: types.CodeType) -> None:
        self.instructions = instructions_of(code)
        self._offsets = [instruction.offset for instruction in self.instructions]
        self._next = [
            [
                *([self._number_from(instruction.argval)] if instruction.opcode in _JUMPS else []),
                *([] if _NEVER_GO_ON.match(instruction.opname) else [number + 1]),
            ]
            for number, instruction in enumerate(self.instructions)
        ]
        self._handlers: dict[int, set[int]] = {}  # where an instruction's errors are handled
        for entry in dis.Bytecode(code).exception_entries:  # type: ignore[attr-defined]
            for number in range(self._number_from(entry.start), self.number_at(entry.end - 1) + 1):
                self._handlers.setdefault(number, set()).add(self._number_from(entry.target))

    def number_at(self, offset: int) -> int:
        """Of the instruction at an offset, or with its cache there."""
        return bisect.bisect_right(self._offsets, offset) - 1

    def _number_from(self, offset: int) -> int:
        """Of the first instruction from an offset on, to which a jump leads."""
        return bisect.bisect_left(self._offsets, offset)

    def all_loops(self) -> Iterator[range]:
        """From the instruction that a loop begins with to the last one that goes back to it.

        From Python 3.12 on, what handles errors (of ``with``, too) stands at the end of a function, and jumps back into
        the middle of what it handles. That is no loop: what it jumps to need not have been run before. Nor does a loop
        reach as far as that, unless errors alone bring it to its next round.
        """
        without_errors = self._reached(0, without=())
        ends: dict[int, tuple[bool, int]] = {}
        for number, following in enumerate(self._next):
            for start in following:
                if start <= number and number not in self._reached(0, without=(start,), errors=True):
                    ends[start] = max(ends.get(start, (False, 0)), (number in without_errors, number))
        yield from (range(start, end + 1) for start, (_, end) in ends.items())

    def _reached(self, first: int, *, without: Container[int], errors: bool = False) -> set[int]:
        """The instructions that one leads to, if some others are left out; also by errors, if these count."""
        reached: set[int] = set()
        to_do = [first]
        while to_do:
            number = to_do.pop()
            if number not in reached and number not in without:
                reached.add(number)
                to_do += self._next[number]
                to_do += self._handlers.get(number, ()) if errors else ()
        return reached

    def loops_around(self, offset: int) -> Iterator[range]:
        """Those that an instruction is in."""
        for rounds in self.all_loops():
            if self.instructions[rounds[0]].offset <= offset <= self.instructions[rounds[-1]].offset:
                yield rounds

    def adds_at(self, number: int) -> bool:
        """Whether a variable is loaded there to add to what it holds (``x.append(...)``, ``x[key] = ...``), to count
        that, or to return it.
        """
        if number and self.instructions[number - 1].argval == "len":
            return True
        following = self.instructions[number + 1 :]
        if following and following[0].opname in ("LOAD_METHOD", "LOAD_ATTR") and following[0].argval in _ADDING:
            return True
        on_stack = 1
        for instruction in following:
            if instruction.opname in ("STORE_SUBSCR", "RETURN_VALUE"):
                return on_stack == (2 if instruction.opname == "STORE_SUBSCR" else 1)  # it, and a key
            if instruction.opname.startswith("LOAD_"):
                on_stack += instruction.opname != "LOAD_ATTR"
            elif instruction.opname not in ("SWAP", "POP_TOP"):  # iterators of loops that are left
                return False
        return False

    def exits_of(self, rounds: range) -> set[int]:
        """The instructions behind a loop."""
        return {after for number in rounds for after in self._next[number]} - {*rounds}

    def set_in(self, rounds: range) -> set[str]:
        """The variables that are set in a loop, and where it handles errors and goes on."""
        accesses = (access for number in self._with_handlers(rounds) for access in _accesses(self.instructions[number]))
        return {name for action, name in accesses if action == "STORE"}

    def _with_handlers(self, rounds: range) -> set[int]:
        numbers = {*rounds}
        for handler in {handler for number in rounds for handler in self._handlers.get(number, ())}:
            reached = self._reached(handler, without=rounds)
            if any(following in rounds for number in reached for following in self._next[number]):
                numbers |= reached
        return numbers

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

    def read_for_yields(self, start: int, *, before: int | None, ended: set[int]) -> set[str]:
        """The variables that are read behind an instruction, with a further ``yield`` to come.

        Args:
            start: the instruction.
            before: another one, behind which nothing counts.
            ended: loops that have no further round.
        """

        def following(number: int) -> list[int]:
            behind = (max(self._next[after]) if after in ended else after for after in self._next[number])
            return [after for after in behind if after != before]

        numbers = range(len(self.instructions))
        leads_to_yield = {number for number in numbers if self.instructions[number].opname == "YIELD_VALUE"}
        live: _Live = {number: set() for number in numbers}
        is_final = False
        while not is_final:
            is_final = True
            for number in reversed(numbers):
                if number not in leads_to_yield and not leads_to_yield.isdisjoint(following(number)):
                    leads_to_yield.add(number)
                    is_final = False
                now = {name for after in following(number) for name in live[after]}
                for action, name in reversed([*_accesses(self.instructions[number])]):
                    is_read = action == "LOAD" and number in leads_to_yield
                    now = now | {name} if is_read else now - {name} if action != "LOAD" else now
                if now != live[number]:
                    live[number], is_final = now, False
        return {name for after in following(start) for name in live[after]}

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

    def is_iteration(self, number: int) -> bool:
        """``for`` or ``yield from``."""
        return self.instructions[number].opname in ("FOR_ITER", "SEND")


@functools.lru_cache(maxsize=1000)
def globals_read_by(code: types.CodeType) -> frozenset[str]:
    """By a function, and those that are made in it."""
    read = {step.argval for step in instructions_of(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return frozenset(read).union(*(globals_read_by(part) for part in code.co_consts if type(part) is types.CodeType))


def _accesses(instruction: dis.Instruction) -> Iterator[tuple[str, str]]:
    """What an instruction does with variables; some do two things. Up to Python 3.11, comprehensions have their own."""
    if isinstance(instruction.argval, types.CodeType) and instruction.argval.co_name in _CALLED_IN_PLACE:
        yield from (("LOAD", name) for name in globals_read_by(instruction.argval))
    actions = _ACCESS.findall(instruction.opname)
    names = instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,)
    yield from zip(actions, names, strict=False)
