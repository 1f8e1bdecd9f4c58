"""What waits for an optimizer step, behind one hook on all optimizers that stays.

A hook of torch must not remove itself while it runs: the dict of hooks is being iterated over, so a hook behind it
would end the step with "mutated during iteration".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

_waiting: list[Callable[[torch.optim.Optimizer], bool]] = []


def until_done(call: Callable[[torch.optim.Optimizer], bool]) -> None:
    """Call behind each step of any optimizer, with that, until it returns that it is done, or raises."""
    _waiting.append(call)


def in_next_step(call: Callable[[], None]) -> None:
    """Call behind the next step of any optimizer."""

    def once(_: torch.optim.Optimizer) -> bool:
        call()
        return True

    until_done(once)


def _stepped(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for call in [*_waiting]:
        _waiting.remove(call)
        if not call(optimizer):
            _waiting.append(call)


register_optimizer_step_post_hook(_stepped)
