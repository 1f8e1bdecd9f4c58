"""What a process under test does: the tasks of :mod:`fork_server`."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

from .scenarios import SCENARIOS


def act(scenario: str, directory: str) -> Callable[[], object]:
    """The act of a scenario."""
    started = SCENARIOS[scenario].started(Path(directory))

    def observed() -> None:
        started()  # its result is no JSON

    return observed


def act_with_small_files(scenario: str, directory: str, limit_bytes: int) -> Callable[[], object]:
    """The act of a scenario where no file may grow beyond a limit."""
    observed = act(scenario, directory)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))  # Python ignores SIGXFSZ
    return observed
