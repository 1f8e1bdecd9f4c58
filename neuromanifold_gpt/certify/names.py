"""What a metric or a saved value is, as far as its name tells."""

from __future__ import annotations

import re

LEARNING_RATE = re.compile(r"(^|[^a-z])(lr|learning_?rate)([^a-z]|$)", re.IGNORECASE)
LOSS = re.compile(r"loss|acc|perplexity|ppl|norm|reward|error|score|bleu|f1", re.IGNORECASE)
_CLOCK = re.compile(
    r"(^|[^a-z])(time(?![_-]?steps?)|times|timestamp|runtime|wall\w*|seconds|secs?|ms|millis\w*|elapsed|duration|date|datetime|"
    r"throughput|fps|sps|speed|mfu|mem|memory|rss|vram|saved_at|created\w*|\w*_at|dt|\w*per_s(ec(ond)?)?)([^a-z]|$)|"
    r"_(ms|sec|secs|seconds|time)$|(^|[^a-z])eta$|/s$",
    re.IGNORECASE,
)
_BOOKKEEPING = re.compile(
    r"(^|[^a-z])(restarts?|restarted|resum\w*|attempts?|run_?id|uuid|pid|host\w*|session|user|argv|cmd|command|git\w*|"
    r"init_from|start_(step|iter|epoch))([^a-z]|$)",
    re.IGNORECASE,
)


def is_clock_name(name: str) -> bool:
    """Whether a metric or value of this name depends on the clock or the machine's load."""
    return bool(_CLOCK.search(name))


def is_quality_name(name: str) -> bool:
    """Whether it surely follows from the weights, whatever else the name says (``loss_after_resume``)."""
    return bool(re.search(r"loss|accuracy|perplexity", name, re.IGNORECASE))


def is_bookkeeping_name(name: str) -> bool:
    """Whether it tells how a run was started rather than its state."""
    return bool(_BOOKKEEPING.search(name))


def is_lock_name(relative: str) -> bool:
    """Whether it is a file that is there as long as a program runs, such as ``.nm-lock`` or ``run.lock``."""
    return bool(re.search(r"(^|[./_-])lock$", relative))
