"""Separated checkpoints in Lightning: a callback that is all a user writes, and what it installs or goes with."""

from neuromanifold_gpt.lightning_io.callback import SeparatedCheckpoint
from neuromanifold_gpt.lightning_io.plugin import SeparatedCheckpointIO
from neuromanifold_gpt.lightning_io.stop_signals import StopOnSignal

__all__ = ["SeparatedCheckpoint", "SeparatedCheckpointIO", "StopOnSignal"]
