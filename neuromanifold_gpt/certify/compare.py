"""Compare the output directories of two runs: saved files by content, logs by step."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from neuromanifold_gpt.certify.artifacts import Artifact, Unit, find_artifacts, read_tree, step_in_content, units_of
from neuromanifold_gpt.certify.errors import UnreadableError
from neuromanifold_gpt.certify.metrics import MetricLog, read_metrics
from neuromanifold_gpt.certify.trees import LeafDifference, compare_trees, leaves

_CHUNK_BYTES = 1 << 20


@dataclass
class RunFiles:
    """What one run left behind. Attributes are read when they are first asked for."""

    out: Path
    stdouts: list[Path]

    @cached_property
    def artifacts(self) -> dict[str, Artifact]:
        """Saved files by relative path."""
        return find_artifacts(self.out)

    @cached_property
    def units(self) -> list[Unit]:
        """Checkpoints, in no order."""
        return units_of(self.artifacts)

    @cached_property
    def log(self) -> MetricLog:
        """Everything logged."""
        return read_metrics(self.out, self.stdouts)

    @cached_property
    def steps_in_content(self) -> dict[str, int]:
        """The step that each unit without one in its name says inside."""
        found: dict[str, int] = {}
        for unit in self.units:
            for artifact in unit.files:
                try:
                    step = step_in_content(read_tree(artifact.path))
                except UnreadableError:
                    continue
                if step is not None:
                    found.setdefault(unit.name, step)
        return found

    def step_of(self, unit: Unit) -> int | None:
        """The step of a checkpoint, from its name, else from its content."""
        return unit.step if unit.step is not None else self.steps_in_content.get(unit.name)


@dataclass(frozen=True)
class FileComparison:
    """How one saved file of two runs compares.

    Attributes:
        state: ``"equal"``, ``"different"``, ``"missing"`` (in the second run) or ``"unreadable"``: never equal.
        is_state: whether it holds tensors or tells its step, so that it can be a checkpoint.
        has_tensors: whether it holds tensors.
        renamed: the name in the second run, where it differs.
    """

    relative: str
    unit: str
    step: int | None
    state: str
    is_state: bool = False
    has_tensors: bool = False
    leaves: int = 0
    differences: tuple[LeafDifference, ...] = ()
    reason: str = ""
    renamed: str = ""


@dataclass(frozen=True)
class MetricDifference:
    """A value in a log that differs: at which step, by how much."""

    source: str
    name: str
    step: int
    expected: float
    found: float

    @property
    def absolute(self) -> float:
        """Distance of the two values; infinite where one of them is no number."""
        apart = abs(self.expected - self.found)
        return math.inf if math.isnan(apart) else apart

    @property
    def relative(self) -> float:
        """Distance in relation to the larger one."""
        largest = max(abs(self.expected), abs(self.found))
        return self.absolute / largest if largest and not math.isnan(largest) else self.absolute


@dataclass
class RunComparison:
    """Everything that was compared between two runs, nothing left out yet."""

    files: list[FileComparison] = field(default_factory=list)
    metric_differences: list[MetricDifference] = field(default_factory=list)
    compared_values: int = 0
    compared_series: set[tuple[str, str]] = field(default_factory=set)
    missing_steps: dict[str, list[int]] = field(default_factory=dict)  # by source
    further_steps: dict[str, list[int]] = field(default_factory=dict)
    repeated_steps: dict[str, list[int]] = field(default_factory=dict)
    only_there: list[str] = field(default_factory=list)  # files of the second run alone
    not_counted: list[str] = field(default_factory=list)  # what differs and is no state, by its name


def compare_runs(expected: RunFiles, found: RunFiles) -> RunComparison:
    """Compare a run with the undisturbed one."""
    result = RunComparison()
    matched = set()
    for artifact in expected.artifacts.values():
        other = _counterpart(artifact, found)
        if other is not None:
            matched.add(other.relative)
        result.files.append(_compare_file(artifact, other, expected))
    result.only_there = sorted(set(found.artifacts) - matched)
    _compare_logs(expected.log, found.log, result)
    return result


def _counterpart(artifact: Artifact, found: RunFiles) -> Artifact | None:
    """The same file in the other run: of the same name, or of a name made anew (``last-v1.ckpt``) at the same step."""
    same_name = found.artifacts.get(artifact.relative)
    others = [other for other in found.artifacts.values() if other.key == artifact.key]
    if same_name is not None and len(others) == 1:
        return same_name
    step = _content_step(artifact)
    at_step = [other for other in others if step is not None and _content_step(other) == step]
    if same_name is not None and (same_name in at_step or not at_step):
        return same_name
    candidates = at_step or ([] if same_name is not None else others)
    newest = sorted(candidates, key=lambda other: other.path.stat().st_mtime_ns)
    return newest[-1] if newest else None


def _content_step(artifact: Artifact) -> int | None:
    try:
        return step_in_content(read_tree(artifact.path))
    except UnreadableError:
        return None


def _compare_file(artifact: Artifact, other: Artifact | None, expected: RunFiles) -> FileComparison:
    unit = next(unit for unit in expected.units if unit.name == artifact.unit)
    step = expected.step_of(unit)

    def result(state: str, **details: Any) -> FileComparison:
        renamed = other.relative if other is not None and other.relative != artifact.relative else ""
        return FileComparison(artifact.relative, unit.name, step, state, renamed=renamed, **details)

    try:
        tree = read_tree(artifact.path)
        has_tensors = any(isinstance(leaf, Tensor) for _, leaf in leaves(tree))
        details = {"is_state": has_tensors or step is not None, "has_tensors": has_tensors}
        if other is None:
            return result("missing", **details)
        found = tree if same_bytes(artifact.path, other.path) else read_tree(other.path)
        if artifact.step is None and step is not None and found is not tree:
            step = max(step, step_in_content(found) or 0)  # a name that is written again and again, such as best.pt
        differences, count = compare_trees(tree, found) if found is not tree else ([], sum(1 for _ in leaves(tree)))
    except UnreadableError as error:
        if other is None:
            return result("missing", is_state=step is not None)
        if same_bytes(artifact.path, other.path):
            return result("equal", is_state=_is_binary(artifact.path))
        return result("unreadable", reason=str(error))
    state = "different" if differences else "equal"
    return result(state, leaves=count, differences=tuple(differences), **details)


def _is_binary(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\0" in file.read(_CHUNK_BYTES)


def same_bytes(one: Path, other: Path) -> bool:
    """Whether two files hold the same bytes."""
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as a, other.open("rb") as b:
        while True:
            left, right = a.read(_CHUNK_BYTES), b.read(_CHUNK_BYTES)
            if left != right:
                return False
            if not left:
                return True


def _compare_logs(expected: MetricLog, found: MetricLog, result: RunComparison) -> None:
    for source in expected.units:
        ours, theirs = expected.steps(source), found.steps(source)
        for name, steps in (("missing_steps", ours - theirs), ("further_steps", theirs - ours)):
            if steps:
                getattr(result, name)[source] = sorted(steps)
    for (source, name), series in expected.values.items():
        others = found.values.get((source, name), {})
        repeated = [step for step, values in others.items() if len(values) > len(series.get(step, values))]
        result.repeated_steps[source] = sorted({*result.repeated_steps.get(source, ()), *repeated})
        result.compared_series.add((source, name))
        for step in sorted(series):
            if step in others:
                result.compared_values += 1
                _compare_values(source, name, step, (series[step], others[step]), result)


def _compare_values(
    source: str, name: str, step: int, values: tuple[list[float], list[float]], result: RunComparison
) -> None:
    """A step that was trained twice was logged twice; every time it must have been the same."""
    ours, theirs = ([_bits(value) for value in side] for side in values)
    for bits, value in zip(theirs, values[1], strict=True):
        if bits not in ours:
            result.metric_differences.append(MetricDifference(source, name, step, values[0][0], value))
            return
    unseen = [value for bits, value in zip(ours, values[0], strict=True) if bits not in theirs]
    if unseen:
        result.metric_differences.append(MetricDifference(source, name, step, unseen[0], values[1][0]))


def _bits(value: float) -> bytes:
    return b"nan" if math.isnan(value) else struct.pack("d", value)
