"""Numbers that are readings of a clock, or may have been made of one: no two runs share them."""

from __future__ import annotations

import time

from neuromanifold_gpt.state.inspection.kept_variables import attributes_set_by, codes_of, variables_of_users_classes
from neuromanifold_gpt.state.inspection.plain_reading import remembered_of_class

_YOUNG_SEC = 1000  # on a machine that was started lately, an accuracy in percent could be a reading of its clock
_CLOCKS = (time.time, *([time.perf_counter] if time.perf_counter() > _YOUNG_SEC else []))
_STARTED_SEC = [clock() - 60 for clock in _CLOCKS]  # a program may look at its clock before it imports this
_READ_BY = frozenset(
    {"time", "time_ns", "perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns", "process_time", "thread_time"}
    | {"default_timer", "elapsed", "elapsed_time", "now", "utcnow", "datetime", "getrusage"}
    | {
        "memory_allocated",
        "max_memory_allocated",
        "memory_reserved",
        "memory_info",
        "virtual_memory",
    }
)


def is_of_a_clock(value: float) -> bool:
    """Whether a clock has shown it since the program began."""
    return any(start <= value <= clock() for start, clock in zip(_STARTED_SEC, _CLOCKS, strict=True))


@remembered_of_class
def names_set_beside_clocks(kind: type) -> frozenset[str]:
    """Attributes to which those methods of users' classes assign that read a clock, or the memory in use.

    Runs are alike in neither.
    """
    found: set[str] = set()
    for _, value in variables_of_users_classes(kind):
        if any(not _READ_BY.isdisjoint(code.co_names) for code in codes_of(value)):
            found.update(attributes_set_by(value))
    return frozenset(found)
