"""Notice loops that go on adding to gradients which a step has used, and which a save has therefore left out.

One parameter stands for all. From a save on, each addition to its gradient is followed until the next step: a gradient
that was zeroed in between has been changed once more, or is another tensor.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning

_MARK = "_followed_by"


class _Follower:
    def __init__(self, name: str, parameter: Tensor, gradient: Tensor) -> None:
        self._name = name
        self._version = gradient._version
        self._additions = 0
        self._is_zeroed = False
        setattr(gradient, _MARK, self)
        self._handle = parameter.register_post_accumulate_grad_hook(self._added)

    def _added(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        self._additions += 1
        self._version += 1
        if getattr(gradient, _MARK, None) is not self or gradient is None or gradient._version != self._version:
            self._is_zeroed = True

    def stepped(self) -> bool:
        """Whether that was the step that uses what was added."""
        if self._additions and not self._is_zeroed:
            warnings.warn(
                f"a step has used gradients ({self._name}, for one) that were not zeroed after the step before, and "
                "the save between the two has not stored them: a resume from it is not exact. Zero them after each "
                "step, or pass save_gradients=True.",
                InexactResumeWarning,
                stacklevel=2,
            )
        return self._additions > 0

    def end(self) -> None:
        self._handle.remove()


_followers: WeakKeyDictionary[torch.optim.Optimizer, _Follower] = WeakKeyDictionary()


def follow(name: str, parameter: Tensor, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Follow the gradient of a parameter, which a step has used, up to the next step that uses it."""
    owner = next((optimizer for optimizer in optimizers if _has(optimizer, parameter)), None)
    if owner is not None and parameter.grad is not None and parameter.is_leaf and parameter.requires_grad:
        _end(owner)
        _followers[owner] = _Follower(name, parameter, parameter.grad)


def note_step(optimizer: torch.optim.Optimizer) -> None:
    """To be called after each step.

    Warns:
        InexactResumeWarning: what was followed has not been zeroed.
    """
    follower = _followers.get(optimizer)
    if follower is not None and follower.stepped():
        _end(optimizer)


def _end(optimizer: torch.optim.Optimizer) -> None:
    follower = _followers.pop(optimizer, None)
    if follower is not None:
        follower.end()


def _has(optimizer: torch.optim.Optimizer, parameter: Tensor) -> bool:
    return any(parameter is other for group in optimizer.param_groups for other in group["params"])
