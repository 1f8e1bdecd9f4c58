"""With which settings optimizers and schedulers were built, to say what a resume ignores.

torch's ``load_state_dict`` brings the checkpoint's learning rate, weight decay and betas with it, whatever the
optimizer was built with; and it takes the state of another class without a word, or fails with a ``KeyError`` later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning, StateMismatchError
from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.state.modules import listed

CLASS_KEY = "class"
DEFAULTS_KEY = "defaults"
_PLAIN_TYPES = (bool, int, float, str, type(None))
# How a step is computed, not what: the groups' own values decide, which are restored.
_IMPLEMENTATION = {"foreach", "fused", "capturable", "differentiable"}


def optimizer_settings(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What the optimizer was built with, to be stored beside its state."""
    plain = {key: _plain(value) for key, value in sorted(getattr(optimizer, "defaults", {}).items())}
    known = {key: value for key, value in plain.items() if value is not ... and key not in _IMPLEMENTATION}
    return {CLASS_KEY: type(optimizer).__name__, DEFAULTS_KEY: known}


def check_classes(kind: str, objects: Sequence[Any], saved: Sequence[str | None]) -> None:
    """Refuse the state of another class.

    Args:
        kind: ``"optimizer"`` or ``"scheduler"``, for the message.
        objects: those that the state is to be loaded into.
        saved: names of their classes at the save; ``None`` where the file does not tell.

    Raises:
        StateMismatchError: names both classes.
    """
    for number, (thing, name) in enumerate(zip(objects, saved, strict=False)):
        if name not in (None, type(thing).__name__):
            raise StateMismatchError(
                f"the checkpoint has the state of {name} as {kind} {number}, and {type(thing).__name__} was given. "
                f"Build it as at the save, or restore without {kind}s to begin with new ones."
            )


def warn_of_ignored_settings(optimizers: Sequence[torch.optim.Optimizer], states: Sequence[Mapping[str, Any]]) -> None:
    """Say which settings of an optimizer are the checkpoint's, and not those that it was built with here.

    From then on the optimizer counts as built with them, so that what it is saved with is the same as without a resume.

    Warns:
        InexactResumeWarning: lists them; none where the groups have meanwhile been set to what it was built with.
    """
    ignored = []
    for optimizer, state in zip(optimizers, states, strict=False):
        for key, saved in state.get(DEFAULTS_KEY, {}).items():
            here = _plain(optimizer.defaults.get(key, ...))
            if here in (..., saved) or any(_in_group(group, key) == here for group in optimizer.param_groups):
                continue
            ignored.append(
                f"{key} was {saved!r} at the save and is {here!r} in the {type(optimizer).__name__} built here"
            )
            optimizer.defaults[key] = tuple(saved) if isinstance(saved, list) else saved
    if ignored:
        warn_user(
            f"settings of the optimizer have changed: {listed(ignored)}. The checkpoint's are used; to train on with "
            "others, set them in optimizer.param_groups after restoring.",
            InexactResumeWarning,
        )


def _in_group(group: Mapping[str, Any], key: str) -> Any:
    """A setting of a group, before a learning-rate scheduler changed it."""
    return _plain(group.get("initial_lr", group["lr"]) if key == "lr" else group.get(key))


def _plain(value: Any) -> Any:
    """A value that can be stored; ``...`` for others, such as a tensor that a scheduler changes in place.

    Lists within others are no settings, but tables that the optimizer fills, and shares with its groups.
    """
    if isinstance(value, tuple | list):
        parts = [... if isinstance(part, list) else _plain(part) for part in value]
        return ... if ... in parts else parts
    return value if isinstance(value, _PLAIN_TYPES) else ...
