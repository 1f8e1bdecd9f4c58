"""Sweeps in parts: the first part (or so) runs in the suite, the others by ``make faults``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """Every so-manieth trial of a sweep."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number + 1} of {self.of}"

    def choose(self, trials: Sequence[T]) -> Sequence[T]:
        return trials[self.number :: self.of]


def in_parts(count: int, *, in_suite: int = 1) -> Any:
    """Parametrizes a test with ``part``; the first ``in_suite`` parts are not slow."""
    parts = [Part(number, count) for number in range(count)]
    marked = [
        pytest.param(part, marks=[pytest.mark.slow] if part.number >= in_suite else [], id=str(part)) for part in parts
    ]
    return pytest.mark.parametrize("part", marked)
