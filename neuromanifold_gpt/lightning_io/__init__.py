"""Separated checkpoints in Lightning: a callback that is all a user writes, and the plugin that it installs."""

from neuromanifold_gpt.lightning_io.callback import SeparatedCheckpoint
from neuromanifold_gpt.lightning_io.plugin import SeparatedCheckpointIO

__all__ = ["SeparatedCheckpoint", "SeparatedCheckpointIO"]
