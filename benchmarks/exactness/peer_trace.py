"""What a peer's run leaves behind: the trace of the tests, and digests of the weights and buffers before each step.

So the comparison can tell a lost random number from a lost momentum.
"""

from __future__ import annotations

from typing import Any

import torch
import xxhash
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tests.exactness.trace import Trace, ids_of


class PeerTrace(Trace):
    """Writes the digests of a watched network with each training batch, into the same file as another trace."""

    def __init__(self, trace: Trace) -> None:
        self._file = trace._file
        self.steps_begun = 0
        self._digests: dict[str, str] = {}

    def watch(self, network: nn.Module) -> None:
        """Take the digests before each of its forward passes in training."""
        network.register_forward_pre_hook(self._take)

    def train(self, step: int, loss: Tensor, rates: list[Any], batch: Any) -> None:
        """A training batch, after ``step`` optimizer steps."""
        entry = {"step": step, "ids": ids_of(batch), "lr": [float(rate).hex() for rate in rates]}
        self._write({"kind": "train", **entry, **self._digests, "loss": float(loss).hex()})

    def _take(self, network: nn.Module, inputs: Any) -> None:
        if network.training:
            self._digests = {"weights": _digest(network.parameters()), "buffers": _digest(network.buffers())}


def _digest(tensors: Any) -> str:
    digest = xxhash.xxh3_128()
    for tensor in tensors:
        if not is_lazy(tensor):
            digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
