"""Notice loops that go on adding to gradients which a step has used, and which a save has therefore left out.

One parameter stands for all, the smallest. From a save on, each addition to its gradient is followed until the next
step: a gradient that was zeroed in between is zero, has been changed once more, or is another tensor.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.checkpoint.user_warnings import warn_user

_MARK = "_followed_as"
_numbers = itertools.count(1)


class _Follower:
    def __init__(self, name: str, parameter: Tensor, gradient: Tensor, owner: torch.optim.Optimizer) -> None:
        self._name = name
        self._number = next(_numbers)
        self._version = gradient._version
        self._may_vanish = bool(gradient.any())  # not where a restore has put zeros in its place
        self._additions = 0
        self._is_zeroed = False
        setattr(gradient, _MARK, self._number)
        self._parameter = weakref.ref(parameter)
        self.end = weakref.finalize(owner, parameter.register_hook(self._adds).remove)

    def _adds(self, _: Tensor) -> None:
        """A backward pass is about to add to the gradient."""
        parameter = self._parameter()
        gradient = None if parameter is None else parameter.grad
        if gradient is None or getattr(gradient, _MARK, 0) != self._number or gradient._version != self._version:
            self._is_zeroed = True
        elif self._may_vanish and self._additions == 0:  # zeroed through .data, which no version shows
            self._is_zeroed = not gradient.any()
        self._additions += 1
        self._version += 1

    def stepped(self) -> bool:
        """Whether that was the step that uses what was added."""
        if self._additions and not self._is_zeroed:
            warn_user(
                f"a step has used gradients ({self._name}, for one) that were not zeroed after the step before, and "
                "the save between the two has not stored them: a resume from it is not exact. Zero them after each "
                "step, or pass save_gradients=True.",
                InexactResumeWarning,
            )
        return self._additions > 0


_followers: WeakKeyDictionary[torch.optim.Optimizer, _Follower] = WeakKeyDictionary()


def follow(used: Mapping[str, Tensor], optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Follow the gradient of one of these parameters, which steps have used, up to the next step that uses it."""
    for name, parameter in sorted(used.items(), key=lambda item: item[1].numel()):
        owner = next((optimizer for optimizer in optimizers if _has(optimizer, parameter)), None)
        if owner is not None and parameter.grad is not None and parameter.is_leaf and parameter.requires_grad:
            _end(owner)
            _followers[owner] = _Follower(name, parameter, parameter.grad, owner)
            return


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
