"""Which loaders have given batches in this process: a plain loop may evaluate on one that it does not save."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any, Protocol
from weakref import WeakSet

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning


class CountsPasses(Protocol):
    """A loader whose passes are counted."""

    @property
    def needs_its_position(self) -> bool:
        """Whether its next pass depends on how many there have been."""
        ...


_in_use: WeakSet[CountsPasses] = WeakSet()
_said: WeakSet[CountsPasses] = WeakSet()


def note_pass(loader: CountsPasses) -> None:
    """It is iterated."""
    _in_use.add(loader)


def warn_of_loaders_left_out(kept: Collection[Any]) -> None:
    """For plain loops, at each save.

    Args:
        kept: objects that are saved.

    Warns:
        InexactResumeWarning: another loader has given batches and counts its passes.
    """
    saved = {id(thing) for thing in kept}
    others = [loader for loader in _in_use if id(loader) not in saved and loader not in _said]
    left_out = [loader for loader in others if loader.needs_its_position]
    _said.update(left_out)
    if left_out:
        names = ", ".join(sorted(type(loader).__name__ for loader in left_out))
        warnings.warn(
            f"a loader was iterated that is not saved: {names}. Its order, or what its samples draw, depends on the "
            "number of its passes, which begins at 0 again after a resume. Give it to loaders= as well, or call its "
            "set_epoch before each pass.",
            InexactResumeWarning,
            stacklevel=4,
        )
