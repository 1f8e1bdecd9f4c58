"""Steps in evaluation mode behind a save: an evaluation has left the model so, which a run that resumes cannot know.

A checkpoint has no mode of a model that is evaluated as a whole, since most programs save behind an evaluation and go
back to training mode by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.state.in_steps import until_done
from neuromanifold_gpt.state.inspection.plain_reading import attribute_dict
from neuromanifold_gpt.state.inspection.users_locals import users_locals, variables_of_script
from neuromanifold_gpt.state.inspection.users_objects import is_of_users_class
from neuromanifold_gpt.state.modules import unwrap
from neuromanifold_gpt.state.unsaved.saved_things import is_optimizer


class _Followed:
    def __init__(self, optimizers: Iterable[Any]) -> None:
        self.optimizers = WeakSet(filter(is_optimizer, optimizers))
        self.has_trained = False  # in training mode, as far as it was seen
        self.is_evaluated = False  # at the last save, behind which no step was taken yet
        self.is_said = False


_followed: WeakKeyDictionary[nn.Module, _Followed] = WeakKeyDictionary()
_in_first_step: WeakSet[nn.Module] = WeakSet()  # those of the loop that were in training mode there


def follow_modes(model: nn.Module, optimizers: Iterable[Any], *, is_saved: bool) -> None:
    """There was a save, or a restore."""
    model = unwrap(model)
    if not _followed:
        until_done(_note_mode)
    followed = _followed.setdefault(model, _Followed(optimizers))
    followed.has_trained = followed.has_trained or model in _in_first_step
    followed.is_evaluated = is_saved and not model.training


def _note_mode(optimizer: torch.optim.Optimizer) -> bool:
    """Behind each step, as long as there is a model to follow.

    Warns:
        InexactResumeWarning: a model that trains in training mode else was saved and is trained on in evaluation mode.
    """
    for model, followed in list(_followed.items()):
        if optimizer not in followed.optimizers:
            continue
        if followed.is_evaluated and followed.has_trained and not (model.training or followed.is_said):
            followed.is_said = True
            warn_user(
                "the model was saved, and is trained on, in evaluation mode, in which an evaluation has left it: a run "
                "that resumes from there trains in the mode that the program sets before its first batch. Let the "
                "evaluation end with model.train().",
                InexactResumeWarning,
            )
        followed.is_evaluated = False
        followed.has_trained = followed.has_trained or model.training
    return not _followed


def note_modes_of_first_step() -> None:
    """Of modules in variables of the functions that run, and of the script, and in attributes of objects there."""
    values = [value for _, value in (*variables_of_script(), *users_locals())]
    parts = [part for value in values if is_of_users_class(value) for part in (attribute_dict(value) or {}).values()]
    modules = [unwrap(thing) for thing in (*values, *parts) if issubclass(type(thing), nn.Module)]
    _in_first_step.update(module for module in modules if getattr(module, "training", False))
