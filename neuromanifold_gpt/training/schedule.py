"""The learning rate as a function of the step, of nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable


def learning_rate_factor(
    *, learning_rate: float, min_lr: float, warmup_iters: int, lr_decay_iters: int | None
) -> Callable[[int], float]:
    """Factor on ``learning_rate`` by number of steps already taken.

    Linear warm-up: the first step has ``learning_rate / warmup_iters``, step number ``warmup_iters`` the full one. Then
    constant, or a cosine down to ``min_lr`` at ``lr_decay_iters`` and constant from there.
    """

    def factor(steps_taken: int) -> float:
        if steps_taken < warmup_iters:
            return (steps_taken + 1) / warmup_iters
        if lr_decay_iters is None:
            return 1.0
        progress = min((steps_taken - warmup_iters) / (lr_decay_iters - warmup_iters), 1.0)
        lowest = min_lr / learning_rate
        return lowest + 0.5 * (1.0 - lowest) * (1.0 + math.cos(math.pi * progress))

    return factor
