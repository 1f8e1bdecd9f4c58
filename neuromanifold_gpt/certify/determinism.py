"""Whether two undisturbed runs agree: without that, nothing can be said of an interrupted one."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from neuromanifold_gpt.certify.compare import FileComparison, RunComparison
from neuromanifold_gpt.certify.names import is_clock_name
from neuromanifold_gpt.certify.trees import LeafDifference

_QUALITY = re.compile(
    r"loss|acc|perplexity|ppl|grad_norm|reward|score|(^|[^a-z])lr([^a-z]|$)|learning_rate", re.IGNORECASE
)
_RANDOM = "random number generators"
USUAL_CAUSES = (
    "random numbers without a seed: Python's random, NumPy, torch, data workers",
    "the number of threads, or kernels that are not deterministic: torch.use_deterministic_algorithms(True)",
    "the order of a set or of a directory's entries: PYTHONHASHSEED, os.listdir without sorted",
    "data that arrives in the order in which threads or workers are done",
    "state outside the output directory that the first run left and the second one found",
)


@dataclass
class Determinism:
    """How two undisturbed runs compare.

    Attributes:
        deterministic: whether everything that is state is equal.
        first_step: the first step at which something differs.
        differing: what differs and is state, the first step's things first, in words.
        left_out: what differs and is not state (times, names), so that it is not compared later.
        files, leaves: how many were compared.
        values: numbers compared in logs.
    """

    deterministic: bool
    first_step: int | None = None
    differing: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    files: int = 0
    leaves: int = 0
    values: int = 0


def determinism(comparison: RunComparison) -> Determinism:
    """Judge the comparison of two undisturbed runs."""
    tensors = [
        (file, leaf)
        for file in comparison.files
        for leaf in file.differences
        if leaf.is_tensor and leaf.component != _RANDOM
    ]
    numbers = [(file, leaf) for file in comparison.files for leaf in file.differences if _is_state_number(leaf)]
    state: list[tuple[FileComparison, LeafDifference]] = tensors or ([] if _some_tensors_equal(comparison) else numbers)
    metrics = [
        difference
        for difference in comparison.metric_differences
        if _QUALITY.search(difference.name) and not is_clock_name(difference.name)
    ]
    if not state and any(file.is_state for file in comparison.files):
        metrics = []
    missing = [file.relative for file in comparison.files if file.state == "missing" and file.is_state]
    state.sort(key=lambda pair: pair[0].step if pair[0].step is not None else 1 << 62)
    metrics.sort(key=lambda difference: difference.step)
    differing = [f"step {each.step}: {each.name}: {each.expected!r} / {each.found!r}" for each in metrics[:5]]
    differing += [f"{file.relative}: {leaf.path}: {leaf.expected} / {leaf.found}" for file, leaf in state[:10]]
    differing += [f"{name}: only the first run wrote it" for name in missing[:5]]
    steps = [each.step for each in metrics] + [file.step for file, _ in state if file.step is not None]
    counted = {(file.relative, leaf.path) for file, leaf in state}
    left_out = sorted({each.name for each in comparison.metric_differences} - {each.name for each in metrics})
    left_out += [
        f"{file.relative}: {leaf.path}"
        for file in comparison.files
        for leaf in file.differences
        if (file.relative, leaf.path) not in counted
    ]
    left_out += [f"{file.relative} (cannot be read)" for file in comparison.files if file.state == "unreadable"]
    left_out += [
        f"{file.relative} (of the first run alone)"
        for file in comparison.files
        if file.state == "missing" and not file.is_state
    ]
    return Determinism(
        deterministic=not differing,
        first_step=min(steps, default=None),
        differing=differing,
        left_out=left_out,
        files=sum(file.state in ("equal", "different") for file in comparison.files),
        leaves=sum(file.leaves for file in comparison.files),
        values=comparison.compared_values,
    )


def _is_state_number(leaf: LeafDifference) -> bool:
    numeric = leaf.largest_absolute is not None
    return numeric and not leaf.is_clock and not leaf.is_bookkeeping and leaf.component != _RANDOM


def _some_tensors_equal(comparison: RunComparison) -> bool:
    return any(file.has_tensors and not any(leaf.is_tensor for leaf in file.differences) for file in comparison.files)
