"""Repeat a failure with torch's hooks switched on, to see which input of the first wrong step was the wrong one.

The verdict never depends on this: it comes from files and logs alone. But where a loss differs, files cannot tell
whether the batch, the dropout mask or the momentum was another one; digests of what goes into every optimizer step can.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuromanifold_gpt.certify.cause import Diagnosis

TRACER = Path(__file__).parent / "tracer"

Record = dict[str, Any]
GRADIENTS = "gradients"


def tracing_environment(directory: Path, python_path: str) -> dict[str, str]:
    """Environment variables under which a Python program writes its trace into ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = f"{TRACER}:{python_path}" if python_path else str(TRACER)
    return {"NEUROMANIFOLD_CERTIFY_TRACE": str(directory), "PYTHONPATH": paths}


def ranks(directory: Path) -> list[int]:
    """The ranks that left a trace of an attempt."""
    return sorted({int(path.name.removeprefix("rank").split("-")[0]) for path in directory.glob("rank*-*.jsonl")})


def read_trace(directory: Path, rank: int = 0) -> list[Record]:
    """The records of one rank in one attempt: of the process that trained most."""
    traces = []
    for path in sorted(directory.glob(f"rank{rank}-*.jsonl")):
        lines = path.read_text().split("\n")[:-1]  # what was torn by a kill has no end
        traces.append([json.loads(line) for line in lines])
    return max(traces, key=len, default=[])


@dataclass
class Alignment:
    """Where the resumed run's first optimizer step stands in the undisturbed run, counted from 0.

    Attributes:
        expected: by the logged step, or else so that both end together.
        weights: the undisturbed steps that start from the same weights.
    """

    expected: int
    weights: list[int]


def diagnose_traces(
    undisturbed: Sequence[Record],
    before: Sequence[Record],
    resumed: Sequence[Record],
    first_logged: int | None,
    logged_steps: Sequence[int],
) -> Diagnosis | None:
    """The first input of an optimizer step that differs; ``None`` if none does, or nothing can be said.

    Args:
        undisturbed: records of the undisturbed run.
        before: of the attempt that was interrupted, which shows what differs between any two processes.
        resumed: of the attempt that went on.
        first_logged: the first step that it logged.
        logged_steps: all steps that the undisturbed run logged.
    """
    if not undisturbed or not resumed:
        return None
    where = _align(undisturbed, resumed, first_logged, logged_steps)
    ignored = {
        name for name, digest in undisturbed[0].get("rng", {}).items() if before and _rng(before[0], name) != digest
    }
    for index, found in enumerate(resumed):
        if where.expected + index >= len(undisturbed):
            return None
        diagnosis = _first_difference(undisturbed, where, index, found, ignored)
        if diagnosis is not None:
            return diagnosis
    return None


def _align(
    undisturbed: Sequence[Record], resumed: Sequence[Record], first_logged: int | None, logged_steps: Sequence[int]
) -> Alignment:
    weights = [index for index, record in enumerate(undisturbed) if record.get("weights") == resumed[0].get("weights")]
    by_log = None
    if first_logged is not None and logged_steps and len(logged_steps) == len(undisturbed):
        by_log = first_logged - min(logged_steps)
    by_end = max(0, len(undisturbed) - len(resumed))
    if len(weights) == 1 and (by_log is None or abs(by_log - weights[0]) <= 1):
        return Alignment(weights[0], weights)
    expected = by_log if by_log is not None and 0 <= by_log < len(undisturbed) else by_end
    return Alignment(expected, weights)


def _first_difference(
    undisturbed: Sequence[Record], where: Alignment, index: int, found: Record, ignored: set[str]
) -> Diagnosis | None:
    place = where.expected + index
    expected = undisturbed[place]
    at = f"optimizer step {place + 1} (number {index + 1} after the restart)"
    evidence = [f"seen at {at}, by digests of everything that goes into it"]
    buffers = _optimizer_difference(expected, found)
    if index == 0 and expected.get("weights") != found.get("weights"):
        which = f"they are those before step {where.weights[0] + 1}" if where.weights else "they are of no step"
        return Diagnosis("weights", f"the weights restored are others: {which} of the undisturbed run.", evidence)
    if index > 0 and expected.get("weights") != found.get("weights"):
        return Diagnosis(
            "optimizer settings",
            "the step before had the same inputs, gradients and buffers, and made other weights of them: the "
            "optimizer's settings (betas, weight decay, groups) differ, or the weights are changed elsewhere too.",
            evidence,
        )
    if expected.get("buffers") != found.get("buffers") and index == 0:
        return Diagnosis("batch-norm buffers", "the model's buffers (running means) were not restored.", evidence)
    if not found.get("optimizer") and expected.get("optimizer"):
        return Diagnosis("optimizer state", buffers, evidence)
    if expected.get("learning_rates") != found.get("learning_rates"):
        return _learning_rate(undisturbed, place, found, evidence, buffers)
    if buffers:
        return Diagnosis("optimizer state", buffers, evidence)
    if (data := _data(undisturbed, place, found, ignored, evidence)) is not None:
        return data
    if expected.get("gradients") != found.get("gradients"):
        return Diagnosis(
            GRADIENTS,
            "weights, samples, random numbers, learning rate and optimizer are equal, the gradients are not: something "
            "else enters them, such as a loss scale, accumulated gradients or a hidden state.",
            evidence,
        )
    return None


def _optimizer_difference(expected: Record, found: Record) -> str:
    ours, theirs = expected.get("optimizer", {}), found.get("optimizer", {})
    if ours and not theirs:
        return "the optimizer began with empty buffers: its state was not restored."
    differing = [name for name in ours if theirs.get(name) != ours[name]]
    if not differing:
        return ""
    kept = [name for name in ours if name not in differing]
    what = ", ".join(differing)
    counter = " It counts its steps anew." if differing == ["step"] else ""
    rest = f", {', '.join(kept)} was" if kept else ""
    return f"{what} of the optimizer was not restored{rest}.{counter}"


def _learning_rate(
    undisturbed: Sequence[Record], place: int, found: Record, evidence: list[str], buffers: str
) -> Diagnosis:
    rates = found.get("learning_rates")
    same = [index for index, record in enumerate(undisturbed) if record.get("learning_rates") == rates]
    nearest = min(same, key=lambda index: abs(index - place), default=None)
    which = (
        f"that of step {nearest + 1}, {abs(nearest - place)} {'ahead' if nearest > place else 'back'}"
        if nearest is not None
        else "that of no step"
    )
    evidence = [*evidence, f"learning rates {undisturbed[place].get('learning_rates')} undisturbed, {rates} resumed"]
    also = f" Besides, {buffers}" if buffers else ""
    return Diagnosis(
        "learning-rate scheduler",
        f"the learning rate is another one, {which}: the scheduler was not restored as it was.{also}",
        evidence,
    )


def _data(
    undisturbed: Sequence[Record], place: int, found: Record, ignored: set[str], evidence: list[str]
) -> Diagnosis | None:
    expected = undisturbed[place]
    generators = [
        name for name, digest in expected.get("rng", {}).items() if name not in ignored and _rng(found, name) != digest
    ]
    if expected.get("inputs") != found.get("inputs"):
        same = [index for index, record in enumerate(undisturbed) if record.get("inputs") == found.get("inputs")]
        anew = [
            name for name in generators if any(_rng(undisturbed[index], name) == _rng(found, name) for index in same)
        ]
        if anew:
            return Diagnosis(
                "random number generators",
                f"the random number generator ({', '.join(anew)}) began anew, and the samples with it: "
                f"{_shift(same, place)}",
                evidence,
            )
        if same:
            return Diagnosis("position in the data", _shift(same, place), evidence)
        if generators:
            return Diagnosis(
                "random number generators",
                f"the samples are others, drawn by a random number generator that was not restored "
                f"({', '.join(generators)}).",
                evidence,
            )
        return Diagnosis(
            "position in the data",
            "the samples are others than in any undisturbed step: another order, or other augmentation.",
            evidence,
        )
    if generators and expected.get("gradients") != found.get("gradients"):
        return Diagnosis(
            "random number generators",
            f"the samples are the same, the random numbers (dropout and the like) are not: {', '.join(generators)} was "
            "not restored.",
            evidence,
        )
    return None


def _shift(same: Sequence[int], place: int) -> str:
    nearest = min(same, key=lambda index: abs(index - place))
    if 0 in same:
        return "the data began anew: it trained on the first batch again."
    if nearest == place - 1:
        return "the last batch was repeated."
    if nearest > place:
        return f"{nearest - place} batches were skipped."
    return f"the data went {place - nearest} batches back, as when an epoch begins anew."


def _rng(record: Record, name: str) -> Any:
    return record.get("rng", {}).get(name)
