"""Two runs compared, without a tolerance: the first difference in the order of training, and which part it is in."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuromanifold_gpt import compare_checkpoints, list_checkpoints

from .phase import CHECKPOINTS

# What comes first explains what comes later. A step's optimizer state goes into the weights of that step.
_COMPONENTS = (
    "learning-rate schedule",
    "data position",
    "loop",
    "random number generators",
    "optimizer state",
    "weights",
    "buffers",
    "averages",
    "further objects",
    "callbacks",
)
_KEYS = {
    "lr_schedulers": "learning-rate schedule",
    "data": "data position",
    "loops": "loop",
    "rng_states": "random number generators",
    "rng": "random number generators",
    "optimizer_states": "optimizer state",
    "optimizers": "optimizer state",
    "averages": "averages",
    "stateful": "further objects",
    "callbacks": "callbacks",
    "current_model_state": "weights",
    "averaging_state": "averages",
    "counters": "loop",
    "progress": "loop",
    "trained": "loop",
}
_END = 10**9


@dataclass(frozen=True)
class Difference:
    """Where two runs part.

    Attributes:
        step: optimizer steps taken before that; ``None``: only the end is known.
        component: part of the training state.
        where: what was compared.
        expected, found: in run A and in run B.
    """

    step: int | None
    component: str
    where: str
    expected: str
    found: str

    def __str__(self) -> str:
        at = "at the end" if self.step is None else f"at step {self.step}"
        return f"{self.component}, {at}: {self.where}: {self.expected[:90]} / {self.found[:90]}"


def read_trace(directory: Path, process: int, rank: int | None = 0, kind: str = "train") -> list[dict[str, Any]]:
    """What one process has done; with ``rank=None``, all ranks together, their samples in the order of the ranks."""
    if rank is None:
        ranks = range(len(list(directory.glob(f"trace-{process}-*.jsonl"))))
        steps = zip(*(read_trace(directory, process, rank, kind) for rank in ranks), strict=False)
        return [{**entries[0], "ids": [number for entry in entries for number in entry["ids"]]} for entries in steps]
    path = directory / f"trace-{process}-{rank}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


def differences_of_traces(
    a: Path,
    b: Path,
    process: int,
    resumed_at: int,
    *,
    rank: int | None = 0,
    last: bool = True,
    fields: tuple[str, ...] = (),
    window: int = 1,
) -> Iterator[tuple[int, Difference]]:
    """Train and validation batches of one process of run B, against those of run A behind the step of the resume.

    Args:
        a, b: directories of the runs.
        process, rank: the process of run B; ``None``: all ranks together.
        resumed_at: step of the checkpoint that it resumed from.
        last: it trained to the end.
        fields: compare these only.
        window: batches of an accumulation window: a resume may go back to its beginning, or not.
    """
    for kind in ("train",) if fields else ("train", "validation"):
        expected = [entry for entry in read_trace(a, 0, rank, kind) if entry["step"] >= resumed_at]
        found = read_trace(b, process, rank, kind)
        if kind == "train":
            skipped = [number for number, entry in enumerate(expected[:window]) if entry["step"] == resumed_at]
            ids = [expected[number]["ids"] for number in skipped]
            if found and found[0]["ids"] in ids:
                expected = expected[ids.index(found[0]["ids"]) :]
        else:
            # A validation of the very step was before the save, or comes behind it.
            at_once = [entry for entry in expected if entry["step"] == resumed_at]
            before = next(n for n in range(len(at_once) + 1) if found[: len(at_once) - n] == at_once[n:])
            expected = expected[before:]
        yield from _first_of_lines(expected, found, kind, last=last, fields=fields)


def _first_of_lines(
    expected: list[dict[str, Any]], found: list[dict[str, Any]], kind: str, *, last: bool, fields: tuple[str, ...]
) -> Iterator[tuple[int, Difference]]:
    names = {"step": "loop", "ids": "data position", "lr": "learning-rate schedule", "loss": "loss"}
    for one, other in zip(expected, found, strict=False):
        for field, component in names.items():
            if field in one and (not fields or field in fields) and one[field] != other[field]:
                step = min(one["step"], other["step"])
                time = 2 * step + (kind == "train")
                yield time, Difference(step, component, f"{kind} {field}", str(one[field]), str(other[field]))
                return
    if len(found) > len(expected) or (last and len(found) < len(expected)):
        common = min(len(expected), len(found))
        rest = (expected if len(expected) > common else found)[common]
        texts = f"{len(expected)} batches", f"{len(found)} batches"
        yield 2 * rest["step"] + (kind == "train"), Difference(rest["step"], "loop", f"{kind} batches", *texts)


def differences_of_checkpoints(
    a: Path, b: Path, resumed_at: list[int], buffers: set[str], clocks: tuple[str, ...] = ()
) -> Iterator[tuple[int, Difference]]:
    """All checkpoints of later steps: the same ones, with the same bytes; the first that differs is looked into."""
    sides = [
        {c.step: c for c in list_checkpoints(run / CHECKPOINTS) if not c.model_only and c.step > resumed_at[1]}
        for run in (a, b)
    ]
    for step in sorted(set(sides[0]) & set(sides[1])):
        one, other = sides[0][step], sides[1][step]
        files = (one.model_path, other.model_path), (one.optimizer_path, other.optimizer_path)
        if all(x is None or x.read_bytes() == y.read_bytes() for x, y in files):
            continue
        named = [
            Difference(step, component_of(d.path.split("/"), buffers), f"checkpoint: {d.path}", d.left, d.right)
            for d in compare_checkpoints(one, other).differences
        ]
        if clocks:
            named = [d for d in named if not any(clock in d.where for clock in clocks)]
            if not named:
                continue
        named = named or [Difference(step, "bytes", "checkpoint", "equal content", "other bytes")]
        # Where Lightning averages weights, "state_dict" is the average, and the live weights are under another name.
        averaged = "current_model_state" in torch.load(one.model_path, weights_only=True, mmap=True)
        if averaged and not any(d.where.startswith("checkpoint: current_model_state") for d in named):
            named = [_as_average(d) for d in named]
        yield from ((2 * step, difference) for difference in sorted(named, key=_rank_of))
        return
    unequal = (set(sides[0]) ^ set(sides[1])) - set(resumed_at)  # Lightning never removes what it resumed from
    if unequal:
        step = min(unequal)
        yield 2 * step, Difference(step, "loop", "checkpoints", *(str(sorted(side)) for side in sides))


def differences_of_dumps(a: Path, b: Path, *, rank: int = 0) -> Iterator[tuple[int, Difference]]:
    """The final states that were written without the package."""
    one, other = (torch.load(run / f"dump-{rank}.pt", weights_only=False) for run in (a, b))
    buffers = buffer_names(one)
    found = [
        Difference(None, component_of(path, buffers), "final " + "/".join(path), str(x), str(y))
        for path, x, y in deep_differences(one, other, ())
    ]
    yield from ((_END, difference) for difference in sorted(found, key=_rank_of))


def buffer_names(state: dict[str, Any]) -> set[str]:
    """What is in the state dict and is no parameter."""
    return set(state["weights and buffers"]) - set(state["trained"])


def differences_of_logs(a: Path, b: Path, resumed_at: list[int]) -> Iterator[tuple[int, Difference]]:
    """Rows of ``metrics.csv``: those of all processes of run B, without the steps that were lost, are those of A."""
    expected, found = _rows(a, 0), []
    for process, step in enumerate(resumed_at):
        found = [row for row in found if int(row["step"]) < step] + _rows(b, process)
    for one, other in zip(expected, found, strict=False):
        if one != other:
            step = int(one["step"])
            yield 2 * step + 2, Difference(step, "logged metrics", "metrics.csv", str(one), str(other))
            return
    if len(expected) != len(found):
        yield _END, Difference(None, "logged metrics", "metrics.csv", f"{len(expected)} rows", f"{len(found)} rows")
    one, other = (run / CHECKPOINTS / "metrics.csv" for run in (a, b))  # of train.py
    if one.exists() and one.read_bytes() != other.read_bytes():
        yield _END, Difference(None, "logged metrics", "metrics.csv of train.py", "", "other bytes")


def _rows(run: Path, process: int) -> list[dict[str, str]]:
    path = run / "logs" / f"version_{process}" / "metrics.csv"
    if not path.exists():
        return []
    with path.open() as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def first_difference(found: list[tuple[int, Difference]]) -> Difference | None:
    """The earliest. A loss that differs is explained by what the next checkpoint says."""
    if not found:
        return None
    found = sorted(found, key=lambda pair: (pair[0], _rank_of(pair[1])))
    time, first = found[0]
    if first.component != "loss":
        return first
    later = {difference.component for at, difference in found if at in (time + 1, _END)}
    cause = "random number generators" if "random number generators" in later else "weights"
    return Difference(first.step, cause, first.where, first.expected, first.found)


def component_of(path: list[str] | tuple[str, ...], buffers: set[str]) -> str:
    """Which part of the training state a place in a checkpoint, or in a dump, belongs to."""
    if path[0] in ("state_dict", "weights and buffers"):
        return "buffers" if path[1] in buffers else "weights"
    if path[0] == "exact_resume":
        metrics = dict.fromkeys(("callback_metrics", "logged_metrics"), "metrics")
        return {"rng_states": "random number generators", **metrics}.get(path[1], "loop")
    if path[:2] in (("stateful", "average"), ["stateful", "average"]):
        return "averages"
    if "combined_loader" in path:
        return "data position"
    return _KEYS.get(path[0], path[0])


def deep_differences(a: Any, b: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Every leaf that differs, compared by bits."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape
        if not same or _bits(a) != _bits(b):
            yield path, a, b
    elif isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(key for key in b if key not in a)]:
            yield from deep_differences(a.get(key, "absent"), b.get(key, "absent"), (*path, str(key)))
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for index, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from deep_differences(one, other, (*path, str(index)))
    elif isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        if a.tobytes() != b.tobytes():
            yield path, a, b
    elif isinstance(a, float) and isinstance(b, float):
        if a.hex() != b.hex():
            yield path, a, b
    elif type(a) is not type(b) or a != b:
        yield path, a, b


def _bits(tensor: Tensor) -> bytes:
    dense = tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()
    return dense.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _as_average(difference: Difference) -> Difference:
    if not difference.where.startswith("checkpoint: state_dict"):
        return difference
    return Difference(difference.step, "averages", difference.where, difference.expected, difference.found)


def _rank_of(difference: Difference) -> int:
    known = difference.component in _COMPONENTS
    return _COMPONENTS.index(difference.component) if known else len(_COMPONENTS)
