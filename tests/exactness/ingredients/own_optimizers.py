"""Optimizers and schedules that users write."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class OddState(Optimizer):
    """Sign descent with a state of many kinds: tensors, a list of them, a number, a text, None, a nested dict."""

    def __init__(self, params: Any, lr: float = 0.001) -> None:
        super().__init__(params, {"lr": lr, "steps": 0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group["steps"] += 1
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group["lr"])
        return loss

    def _update(self, parameter: Any, rate: float) -> None:
        state = self.state[parameter]
        state.setdefault("mean", torch.zeros_like(parameter))
        state.setdefault("past", [])
        state.setdefault("odd", {"name": "odd", "none": None, "pair": (1, 2.5)})
        state["calls"] = state.get("calls", 0) + 1
        state["past"] = [*state["past"], parameter.grad.clone()][-3:]
        state["mean"].mul_(0.9).add_(sum(state["past"]), alpha=0.1)
        parameter.add_(state["mean"].sign(), alpha=-rate / state["calls"] ** 0.5)


class Remembers(LRScheduler):
    """A user's own scheduler: its rate depends on the last ones."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.rates: list[float] = []
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:  # type: ignore[override]
        self.rates = [*self.rates, sum(self.rates[-4:], 0.001)][-8:]
        return [min(0.02, self.rates[-1]) for _ in self.base_lrs]


class Decay:
    """For LambdaLR: an object that is called, and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, step: int) -> float:
        self.calls += 1
        return 0.98**self.calls


class HandMade:
    """A schedule that has torch's two methods and nothing else of it."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.recent: deque[float] = deque(maxlen=3)

    def step(self) -> None:
        self.recent.append(0.99 ** (1 + len(self.recent)))
        for group in self.optimizer.param_groups:
            group["lr"] *= self.recent[-1]

    def state_dict(self) -> dict[str, Any]:
        return {"recent": list(self.recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.recent.extend(state["recent"])


class Noisy(torch.optim.SGD):
    """Langevin dynamics: adds noise from a generator of its own."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr=lr)
        self.generator = torch.Generator().manual_seed(2)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """A step, and noise."""
        loss = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(torch.randn(parameter.shape, generator=self.generator), alpha=0.01)
        return loss


def drawn(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    """Learning rates that a function draws from a generator which it holds."""
    generator = random.Random(4)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - 0.5 * generator.random())
