"""Name what went first, from the evidence in logs and checkpoints: the cause rather than its consequences."""

from __future__ import annotations

import re
from collections.abc import Sequence

from neuromanifold_gpt.certify.artifacts import read_tree
from neuromanifold_gpt.certify.cause import Diagnosis
from neuromanifold_gpt.certify.compare import FileComparison, RunComparison, RunFiles
from neuromanifold_gpt.certify.logged_cause import logged_cause, steps_with
from neuromanifold_gpt.certify.names import LEARNING_RATE, LOSS
from neuromanifold_gpt.certify.restarts import Restart
from neuromanifold_gpt.certify.trees import OTHER, WEIGHTS, LeafDifference, component_of, leaves

_COUNTERS = re.compile(r"(^|/)(step|_step_count|last_epoch|num_batches_tracked)$")


class Diagnoser:
    """Looks for the cause of one divergence."""

    def __init__(self, comparison: RunComparison, restarts: Sequence[Restart], undisturbed: RunFiles) -> None:
        self._undisturbed = undisturbed
        self._metrics = sorted(comparison.metric_differences, key=lambda difference: difference.step)
        self._files = [file for file in comparison.files if file.differences]
        self._first_files = _earliest(self._files)
        self._restart = next((restart for restart in restarts if restart.first_step is not None), None)
        self._resumed_at = self._restart.first_step if self._restart is not None else None
        self._leaves: dict[str, list[LeafDifference]] = {}
        for file in self._first_files:
            for leaf in file.differences:
                self._leaves.setdefault(leaf.component, []).append(leaf)
        self._where = f"{self._first_files[0].relative}" if self._first_files else ""

    def diagnose(self) -> Diagnosis | None:
        """The first cause that the evidence speaks for; ``None`` if nothing differs."""
        if not self._metrics and not self._leaves:
            return None
        for look in (
            self._best_so_far,
            self._learning_rate,
            self._lost_values,
            self._counters,
            self._scaler,
            self._apart_from_weights,
            self._data_or_random_numbers,
            self._optimizer,
        ):
            if (found := look()) is not None:
                return found
        return self._something()

    def _best_so_far(self) -> Diagnosis | None:
        """Everything is equal except what is kept for being the best."""
        if self._metrics or not all("best" in file.relative.lower() for file in self._files):
            return None
        return Diagnosis(
            "best so far",
            "another step was kept as the best: what the best value had been was not restored.",
            [_told(leaf, self._where) for leaf in self._first_files[0].differences[:3]],
        )

    def _learning_rate(self) -> Diagnosis | None:
        rates = [difference for difference in self._metrics if LEARNING_RATE.search(difference.name)]
        others = [difference for difference in self._metrics if difference not in rates]
        if not rates or (others and others[0].step < rates[0].step):
            return self._scheduler_state() if not rates else None
        first = rates[0]
        same = steps_with(self._undisturbed.log, first, first.found)
        if same:
            nearest = min(same, key=lambda step: abs(step - first.step))
            what = f"it is that of step {nearest}, {abs(nearest - first.step)} steps {_way(nearest - first.step)}"
        else:
            what = "it is that of no step of the undisturbed run"
        return Diagnosis(
            "learning-rate scheduler",
            f"the learning rate of step {first.step} is another one: {what}. The scheduler was not restored as it was.",
            [f"{first.name} at step {first.step}: {first.expected!r} undisturbed, {first.found!r} resumed"],
        )

    def _scheduler_state(self) -> Diagnosis | None:
        leaves = [
            *self._leaves.get("learning-rate scheduler", []),
            *(
                leaf
                for leaf in self._leaves.get("optimizer state", [])
                if re.search(r"param_groups/\d+/lr$", leaf.path)
            ),
        ]
        if not leaves:
            return None
        return Diagnosis(
            "learning-rate scheduler",
            "the scheduler's position or the learning rate was not restored.",
            [_told(leaf, self._where) for leaf in leaves[:3]],
        )

    def _lost_values(self) -> Diagnosis | None:
        """Values that the undisturbed checkpoint has and the resumed one has not."""
        for component, differing in self._leaves.items():
            absent = [leaf for leaf in differing if leaf.found == "absent" or leaf.found.startswith("empty")]
            if absent and component not in ("settings",):
                return Diagnosis(
                    component,
                    f"{len(absent)} values that the undisturbed checkpoint has are not in the resumed one.",
                    [_told(leaf, self._where) for leaf in absent[:3]],
                )
        return None

    def _counters(self) -> Diagnosis | None:
        leaves = [leaf for leaf in self._leaves.get("optimizer state", []) if _COUNTERS.search(leaf.path)]
        if not leaves:
            return None
        return Diagnosis(
            "optimizer state",
            "the optimizer counts its steps anew: its step counter was not restored.",
            [_told(leaf, self._where) for leaf in leaves[:3]],
        )

    def _scaler(self) -> Diagnosis | None:
        leaves = self._leaves.get("gradient scaler", [])
        if not leaves:
            return None
        return Diagnosis(
            "gradient scaler",
            "the gradient scaler's scale or growth counter was not restored.",
            [_told(leaf, self._where) for leaf in leaves[:3]],
        )

    def _apart_from_weights(self) -> Diagnosis | None:
        """A component that differs while the weights are equal to the last bit."""
        if self._leaves.get(WEIGHTS) or not self._leaves:
            return None
        for component, sentence in (
            (
                "averaged weights (EMA)",
                "the average of the weights was not restored; the weights themselves are equal.",
            ),
            ("batch-norm buffers", "running means or variances were not restored; the weights are equal."),
            ("position in the data", "the position in the data differs; the weights are still equal."),
            ("random number generators", "random number generators are in another state; the weights are still equal."),
        ):
            if leaves := self._leaves.get(component):
                return Diagnosis(component, sentence, [_told(leaf, self._where) for leaf in leaves[:3]])
        if not set(self._leaves) - {OTHER}:
            return self._other("it differs while the weights are still equal")
        return None

    def _other(self, why: str, *, whole_numbers: bool = False) -> Diagnosis | None:
        """A counter, a statistic, a position in a schedule: what a program keeps beside the usual parts."""
        leaves = [leaf for leaf in self._leaves.get(OTHER, []) if not whole_numbers or leaf.is_whole_number]
        if not leaves:
            return None
        names = ", ".join(leaf.path for leaf in leaves[:3])
        return Diagnosis(OTHER, f"{names} was not restored: {why}.", [_told(leaf, self._where) for leaf in leaves[:3]])

    def _data_or_random_numbers(self) -> Diagnosis | None:
        losses = [difference for difference in self._metrics if LOSS.search(difference.name)]
        told = logged_cause(self._metrics, self._resumed_at, self._undisturbed.log)
        if told is not None:
            return told
        if not losses or self._resumed_at is None or losses[0].step > self._resumed_at:
            return None
        first = losses[0]
        evidence = [f"{first.name} at step {first.step}, the first one resumed: {first.expected!r} / {first.found!r}"]
        if wrong := self._read_another():
            return Diagnosis("weights", f"another checkpoint was loaded than the newest: {wrong}.", evidence)
        for component in ("position in the data", "random number generators"):
            if differing := self._leaves.get(component):
                sentence = (
                    _shift(differing)
                    if component == "position in the data"
                    else "random numbers were not restored: dropout, shuffling or augmentation differ."
                )
                return Diagnosis(component, sentence, evidence + [_told(leaf, self._where) for leaf in differing[:2]])
        if {"position in the data", "random number generators"} <= self._present():
            read = ", ".join(self._restart.read) if self._restart is not None else ""
            return Diagnosis(
                "weights or data",
                "position in the data, random numbers and learning rate are equal, the first resumed loss is not: "
                "other weights were loaded than those of the newest checkpoint, or the data is other at that position.",
                [*evidence, f"read by the restart: {read}"],
            )
        # A whole number is hardly ever computed from weights, so it is no consequence of the other loss.
        if found := self._other("with it, the first resumed step computes another loss", whole_numbers=True):
            return found
        return Diagnosis(
            "data order or random numbers",
            "the first resumed step computes another loss at the same learning rate: it saw other samples, other "
            "random numbers, or other weights.",
            evidence,
        )

    def _present(self) -> set[str]:
        """The components that the undisturbed run's first differing checkpoint has at all."""
        found = set()
        for file in self._first_files:
            tree = read_tree(self._undisturbed.artifacts[file.relative].path)
            found |= {component_of(path) for path, _ in leaves(tree)}
        return found

    def _optimizer(self) -> Diagnosis | None:
        buffers: dict[str, float] = {}
        for leaf in self._leaves.get("optimizer state", []):
            if leaf.is_tensor and leaf.largest_absolute is not None:
                name = leaf.path.rpartition("/")[2]
                buffers[name] = max(buffers.get(name, 0.0), leaf.largest_absolute / (leaf.scale or 1.0))
        if not buffers:
            return None
        worst = max(buffers, key=lambda name: buffers[name])
        return Diagnosis(
            "optimizer state",
            f"weights, samples and learning rate went on as they were, the optimizer's buffers did not; {worst} is the "
            "farthest off.",
            [f"{name}: up to {value:.2g} of its largest value in {self._where}" for name, value in buffers.items()],
        )

    def _something(self) -> Diagnosis:
        if self._leaves:
            component = next(iter(self._leaves))
            return Diagnosis(
                component, self._parts(), [_told(leaf, self._where) for leaf in self._leaves[component][:3]]
            )
        first = self._metrics[0]
        return Diagnosis(
            "metrics", f"{first.name} differs at step {first.step}.", [f"{first.expected!r} / {first.found!r}"]
        )

    def _parts(self) -> str:
        """Which top-level parts of the first differing checkpoint differ, and which do not."""
        differing = {leaf.path.split("/")[0] for file in self._first_files for leaf in file.differences}
        trees = [read_tree(self._undisturbed.artifacts[file.relative].path) for file in self._first_files]
        present = [path.split("/")[0] for tree in trees for path, _ in leaves(tree)]
        equal = [part for part in dict.fromkeys(present) if part not in differing]
        told = f"{', '.join(sorted(differing)[:5])} differs"
        return f"{told}; {', '.join(equal[:5])} are equal." if equal else f"{told}."

    def _read_another(self) -> str | None:
        restart = self._restart
        if restart is None or restart.checkpoint is None or not restart.read:
            return None
        if set(restart.read) & set(restart.checkpoint.files):
            return None
        return f"{', '.join(restart.read[:2])} was read, not {restart.checkpoint.name}"


def _earliest(files: Sequence[FileComparison]) -> list[FileComparison]:
    """The files of the first checkpoint that differs; of those without a step, all."""
    steps = [file.step for file in files if file.step is not None]
    if not steps:
        return list(files)
    return [file for file in files if file.step == min(steps)]


def _shift(leaves: Sequence[LeafDifference]) -> str:
    """What a position that is a number tells; others only tell that it is another one."""
    for leaf in leaves:
        try:
            apart = int(leaf.found) - int(leaf.expected)
        except ValueError:
            continue
        if apart > 0:
            return f"{apart} samples or batches were skipped."
        if apart == -1:
            return "the last batch was repeated."
        return f"the data went back by {-apart}, as if it began anew: batches were repeated."
    return "training went on with other samples: the position in the data was not restored."


def _way(apart: int) -> str:
    return "ahead" if apart > 0 else "back"


def _told(leaf: LeafDifference, where: str) -> str:
    size = "" if leaf.largest_absolute is None else f", up to {leaf.largest_absolute:.3g} apart"
    return f"{where}: {leaf.path}: {leaf.expected} / {leaf.found}{size}"
