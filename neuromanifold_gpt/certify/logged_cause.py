"""What a log tells of a cause: logged values that do not follow from the weights, such as a batch's or a counter."""

from __future__ import annotations

import re
from collections.abc import Sequence

from neuromanifold_gpt.certify.cause import Diagnosis
from neuromanifold_gpt.certify.compare import MetricDifference
from neuromanifold_gpt.certify.metrics import MetricLog
from neuromanifold_gpt.certify.names import LEARNING_RATE, LOSS

COUNTER_OR_SCHEDULE = "counter or schedule"
_OF_DATA = re.compile(r"sample|batch|index|idx|data|doc|shard|cursor|position|offset|example|record", re.IGNORECASE)
_MIN_COURSE = 4  # so many values show whether a series only ever grows or shrinks


def logged_cause(metrics: Sequence[MetricDifference], resumed_at: int | None, log: MetricLog) -> Diagnosis | None:
    """The first logged value other than a loss that is another one at the first resumed step, if it tells a cause.

    Args:
        metrics: the differences, by step.
        log: of the undisturbed run.
    """
    for difference in metrics:
        if resumed_at is None or difference.step > resumed_at:
            return None
        if LOSS.search(difference.name) or LEARNING_RATE.search(difference.name):
            continue
        series = log.values[difference.source, difference.name]
        same = steps_with(log, difference, difference.found)
        evidence = [f"{difference.name} at step {difference.step}: {difference.expected!r} / {difference.found!r}"]
        if not _OF_DATA.search(difference.name) and _has_a_course([values[-1] for _, values in sorted(series.items())]):
            if same or (difference.found.is_integer() and difference.expected.is_integer()):
                where = f"that of step {same[0]}" if same else "that of no step of the undisturbed run"
                return Diagnosis(
                    COUNTER_OR_SCHEDULE,
                    f"{difference.name} of step {difference.step} is {where}: what it follows was not restored.",
                    evidence,
                )
            continue
        if len(same) == 1:
            how = _shift(same[0], difference.step, min(log.steps(difference.source)))
            return Diagnosis(
                "position in the data",
                f"{how}: {difference.name} of step {difference.step} is that of step {same[0]}.",
                evidence,
            )
    return None


def steps_with(log: MetricLog, difference: MetricDifference, value: float) -> list[int]:
    """The undisturbed run's steps at which a metric had a value."""
    series = log.values[difference.source, difference.name]
    return [step for step, values in series.items() if value in values]


def _has_a_course(values: Sequence[float]) -> bool:
    """Whether a series only ever grows or only ever shrinks, as counters and schedules do."""
    if len(values) < _MIN_COURSE or values[0] == values[-1]:
        return False
    ordered = sorted(values)
    return list(values) in (ordered, ordered[::-1])


def _shift(same: int, step: int, first: int) -> str:
    apart = same - step
    if same == first:
        return "the data began anew"
    if apart == -1:
        return "the last batch was repeated"
    return f"{abs(apart)} batches were {'skipped' if apart > 0 else 'repeated'}"
