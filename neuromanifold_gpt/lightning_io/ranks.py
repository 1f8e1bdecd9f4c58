"""File operations in which every rank takes part, and of whose failure every rank learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lightning.pytorch import Trainer

from neuromanifold_gpt.checkpoint.errors import CheckpointError, CheckpointWriteError

T = TypeVar("T")


def together(trainer: Trainer, action: Callable[[], None], *, ends_with_barrier: bool = False) -> None:
    """Call ``action`` on every rank; raise on every rank what it raises on rank 0.

    Args:
        trainer: knows the ranks.
        action: in which only rank 0 touches files.
        ends_with_barrier: the other ranks wait in ``action`` for rank 0, which must not stay away from there.

    Raises:
        CheckpointError: as ``action``.
        CheckpointWriteError: in place of an ``OSError``.
    """
    failure: CheckpointError | None = None
    try:
        action()
    except (CheckpointError, OSError) as error:
        failure = error if isinstance(error, CheckpointError) else _named(error)
        if ends_with_barrier:
            trainer.strategy.barrier()
    agreed: CheckpointError | None = trainer.strategy.broadcast(failure)
    if failure is not None or agreed is not None:
        raise failure or agreed  # type: ignore[misc]


def on_rank_0(trainer: Trainer, action: Callable[[], T]) -> T:
    """Call ``action`` on rank 0; return, or raise, the same on every rank.

    Raises:
        CheckpointError, CheckpointWriteError: as :func:`together`.
    """
    results: list[T] = []

    def act() -> None:
        if trainer.is_global_zero:
            results.append(action())

    together(trainer, act)
    result: list[T] = trainer.strategy.broadcast(results)
    return result[0]


def _named(error: OSError) -> CheckpointWriteError:
    named = CheckpointWriteError(
        f"{error.filename or 'a file of the checkpoint'}: {error.strerror or error}. Free space or make the directory "
        "writable; older checkpoints are untouched."
    )
    named.__cause__ = error
    return named
