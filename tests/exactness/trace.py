"""What a run leaves behind for the comparison, written without the package under test."""

from __future__ import annotations

import json
import random
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor


class Trace:
    """One JSON line for each batch that is trained on, and for each that is validated.

    Written at once, so that a killed process has left what it did.
    """

    def __init__(self, directory: Path, process: int, rank: int = 0) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._file = (directory / f"trace-{process}-{rank}.jsonl").open("a")
        self.steps_begun = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Trace:
        return self  # callbacks that average weights copy the module, and the trace with it

    def train(self, step: int, loss: Tensor, rates: list[Any], batch: Any) -> None:
        """A training batch, after ``step`` optimizer steps."""
        self.steps_begun += 1
        entry = {"step": step, "ids": ids_of(batch), "lr": [exact(rate) for rate in rates], "loss": exact(loss)}
        self._write({"kind": "train", **entry})

    def validation(self, step: int, loss: Tensor, batch: Any) -> None:
        """A validation batch, after ``step`` optimizer steps."""
        self._write({"kind": "validation", "step": step, "ids": ids_of(batch), "loss": exact(loss)})

    def _write(self, entry: dict[str, Any]) -> None:
        print(json.dumps(entry), file=self._file, flush=True)


def exact(value: Any) -> str:
    """Every bit of a number, as text."""
    return float(value).hex()


def ids_of(batch: Any) -> list[Any]:
    """The ids of the samples in a batch, however loaders were combined."""
    return list(_ids(batch))


def _ids(batch: Any) -> Iterator[Any]:
    if batch is None:
        yield None
    elif isinstance(batch, dict) and "id" in batch:
        yield from torch.as_tensor(batch["id"]).reshape(-1).tolist()
    elif isinstance(batch, dict):
        for key in sorted(batch):
            yield from _ids(batch[key])
    else:
        for part in batch:
            yield from _ids(part)


def dump(path: Path, state: dict[str, Any]) -> None:
    """The final state, by plain ``torch.save``: a bug in the package's writer cannot hide a difference."""
    torch.save(_clean({**state, "rng": generators()}), path)


def _clean(tree: Any) -> Any:
    """Without the prefix that ``torch.compile`` gives to names."""
    if isinstance(tree, dict):
        return {str(key).replace("_orig_mod.", ""): _clean(value) for key, value in tree.items()}
    return [_clean(value) for value in tree] if isinstance(tree, list) else tree


def by_name(optimizer: torch.optim.Optimizer, module: torch.nn.Module) -> dict[str, Any]:
    """State and options of an optimizer by the names of the parameters: the order of declaration does not matter."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    options = {
        names[id(parameter)]: {key: value for key, value in group.items() if key not in ("params", "param_names")}
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    return {"options": options, "state": {names[id(parameter)]: state for parameter, state in optimizer.state.items()}}


def generators() -> dict[str, Any]:
    """States of the global random number generators."""
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}


def record_warnings(path: Path, trace: Trace) -> TextIO:
    """Append every warning of this process to ``path``, and whether a step had begun."""
    file = path.open("a")

    def write(message: Warning | str, category: type[Warning], *arguments: Any, **keywords: Any) -> None:
        ours = _who_warned().startswith("neuromanifold_gpt.")
        bases = [base.__name__ for base in category.__mro__]
        entry = {"classes": bases, "message": str(message), "at_start": trace.steps_begun == 0, "ours": ours}
        print(json.dumps(entry), file=file, flush=True)

    warnings.simplefilter("always")
    warnings.showwarning = write
    return file


def _who_warned() -> str:
    """The module that called ``warnings.warn``, whatever its stacklevel blames."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") == "warnings":
        frame = frame.f_back
    return "" if frame is None else str(frame.f_globals.get("__name__"))
