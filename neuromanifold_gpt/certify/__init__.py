"""Prove that a training program resumes: run it, interrupt it without mercy, compare, judge.

:func:`certify` takes any command of any framework; ``neuromanifold certify`` is its command line.

The names are imported when they are first asked for: pytest loads the plugin in this package at every start, also for
tests that need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuromanifold_gpt.certify.certificate import Certificate
    from neuromanifold_gpt.certify.front import certify
    from neuromanifold_gpt.certify.verdict import Verdict

__all__ = ["Certificate", "Verdict", "certify"]

_HOME_OF = {"Certificate": "certificate", "Verdict": "verdict", "certify": "front"}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
