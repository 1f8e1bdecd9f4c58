"""A plain loop that saves every fifth step, and ends by ``os._exit`` in the middle: what it trained since is lost.

::

    python losing_loop.py DIRECTORY OPTIONS      options as JSON, see main
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neuromanifold_gpt import ResumableDataLoader, latest_checkpoint, load_checkpoint, save_checkpoint

SAVE_EVERY_STEPS = 5


class Memory:
    """What no look at users' objects finds, since it is in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def next(self) -> float:
        count = int(self._path.read_text()) if self._path.exists() else 0
        self._path.write_text(str(count + 1))
        return 1 + 0.001 * count


class Around(torch.optim.Optimizer):
    """As many a Lookahead, without ``super().__init__()``: its steps have no hooks until it has zeroed gradients."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = OrderedDict(), OrderedDict()
        self.inner, self.param_groups = inner, inner.param_groups
        self.state, self.defaults = inner.state, inner.defaults

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.inner.step()
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter.mul_(0.999)

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inner.load_state_dict(state_dict)
        self.param_groups, self.state = self.inner.param_groups, self.inner.state


def main(directory: Path, options: dict[str, Any]) -> None:
    """Train to step ``stop_at``.

    Options: ``uses_memory``, ``gan`` (two optimizers), ``around`` (one around another), ``rate`` (of learning),
    ``returns`` (once, to its newest checkpoint, behind that step, with another rate).
    """
    torch.manual_seed(0)
    memory = Memory(directory / "memory.txt") if options.get("uses_memory") else None
    models = [nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1)) for _ in range(2)]
    rate = options.get("rate", 0.01)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=rate) for model in models[: 1 + bool(options.get("gan"))]]
    optimizers = [Around(optimizer) for optimizer in optimizers] if options.get("around") else optimizers
    data = torch.arange(56.0).reshape(14, 4)
    loader = ResumableDataLoader(data, batch_size=2, shuffle=True)
    objects = {"model": nn.ModuleList(models), "optimizers": optimizers, "loaders": loader}
    out, step, returns = directory / "out", 0, options.get("returns")
    if newest := latest_checkpoint(out):
        step = load_checkpoint(newest).restore(**objects).global_step
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = rate
    while True:
        for batch in loader:
            for model, optimizer in zip(models, optimizers, strict=False):
                loss = model(batch / 10).square().mean() * (memory.next() if memory else 1)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            step += 1
            if step % SAVE_EVERY_STEPS == 0:
                save_checkpoint(out, step=step, **objects)
            if step == options["stop_at"]:
                sys.stderr.flush()
                os._exit(0)
            if step == returns:
                returns = None
                step = load_checkpoint(latest_checkpoint(out)).restore(**objects).global_step
                optimizers[0].param_groups[0]["lr"] = 0.5
                break


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    warnings.simplefilter("always")
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
