"""Sweeps over scenarios: a few of them run in the suite, all of them by ``make exactness`` or ``make faults``."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def sampled(names: Iterable[str], in_suite: Collection[str]) -> list[Any]:
    """Parameters of a test; those that are not in the sample are slow."""
    names = list(names)
    assert {*in_suite} <= {*names}, "the sample is of them"
    return [pytest.param(name, marks=[] if name in in_suite else [pytest.mark.slow]) for name in names]
