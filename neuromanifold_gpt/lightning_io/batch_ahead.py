"""The batch that is fetched ahead of a step, where the length of the data is not known.

It was made before that step, and is trained on behind it. Where a stream looks at what training changes, such as the
number of the step, a resume makes another one.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.lightning_io.streams_read_again import shown_batch

_AHEAD = "ahead"


def with_batch_ahead(position: dict[str, Any], trainer: Trainer) -> dict[str, Any]:
    """A position of now, with the batch itself: most are never saved, and to show it costs some 0.1 ms."""
    batches = _batches_ahead(trainer)
    return {**position, _AHEAD: batches[0]} if batches else position


def with_shown_batch(position: dict[str, Any]) -> dict[str, Any]:
    """The same to be saved: with what shows the batch."""
    if _AHEAD not in position or isinstance(position[_AHEAD], str):  # the latter where nothing was trained since
        return position
    return {**position, _AHEAD: shown_batch(position[_AHEAD])}


def warn_of_another_batch(position: Mapping[str, Any], trainer: Trainer) -> None:
    """Compare a saved position with what has been fetched to go on from it.

    Warns:
        InexactResumeWarning: the batch is another one.
    """
    saved, batches = position.get(_AHEAD), _batches_ahead(trainer)
    if saved is not None and batches and shown_batch(batches[0]) != saved:
        warnings.warn(
            "this resume is not exact: the next batch, which had been fetched before the step that was saved last, is "
            "another one now. What the data gives seems to depend on what training changes (the number of the step, an "
            "attribute that a hook sets): let the module apply that to the batch.",
            InexactResumeWarning,
            stacklevel=3,
        )


def _batches_ahead(trainer: Trainer) -> list[Any]:
    fetched = getattr(trainer.fit_loop._data_fetcher, "batches", [])
    return [batch for batch, *_ in fetched]  # the rest are numbers, which begin anew
