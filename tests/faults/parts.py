"""Sweeps in parts: a sample of them runs in the suite, all of them by ``make faults``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import pytest

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """Every so-manieth trial of a sweep; of these a sample, the rest, or all."""

    number: int
    of: int
    which: Literal["all", "sample", "rest"] = "all"
    one_in: int = 1

    def __str__(self) -> str:
        return f"{self.number + 1} of {self.of}" + (f", {self.which}" if self.which != "all" else "")

    def choose(self, trials: Sequence[T]) -> Sequence[T]:
        own = trials[self.number :: self.of]
        if self.which == "all":
            return own
        sampled = range(0, len(own), self.one_in)
        return [trial for place, trial in enumerate(own) if (place in sampled) == (self.which == "sample")]


def in_parts(count: int, *, in_suite: int = 1, one_in: int = 1) -> Any:
    """Parametrizes a test with ``part``; what is not slow is the first ``in_suite`` parts, or one trial in so many."""
    parts = [Part(number, count) for number in range(count)]
    quick = parts[:in_suite]
    if one_in > 1:
        quick = [Part(part.number, count, "sample", one_in) for part in quick]
        parts[:in_suite] = [*quick, *(Part(part.number, count, "rest", one_in) for part in quick)]
    marked = [pytest.param(part, marks=[] if part in quick else [pytest.mark.slow], id=str(part)) for part in parts]
    return pytest.mark.parametrize("part", marked)
