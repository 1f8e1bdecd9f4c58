"""What diverged first, as the reports tell it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Diagnosis:
    """What diverged first.

    Attributes:
        component: which part of the training state, such as ``"learning-rate scheduler"``.
        sentence: what seems to have happened to it.
        evidence: what that is concluded from.
    """

    component: str
    sentence: str
    evidence: list[str] = field(default_factory=list)


def better(by_files: Diagnosis | None, by_trace: Diagnosis | None) -> Diagnosis | None:
    """The more telling of two: the trace knows what went into a step, the files know what is not part of one."""
    if by_trace is None or by_files is None:
        return by_trace or by_files
    if by_trace.component == "gradients" and by_files.component == "gradient scaler":
        return by_files
    return by_trace
