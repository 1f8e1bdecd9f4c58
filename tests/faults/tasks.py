"""What a process under test does: the tasks of :mod:`fork_server`."""

from __future__ import annotations

import resource
import warnings
from collections.abc import Callable
from pathlib import Path

from neuromanifold_gpt import cli, latest_checkpoint, load_checkpoint, verify_checkpoint
from neuromanifold_gpt.lightning_io.plugin import SeparatedCheckpointIO

from .scenarios import SCENARIOS


def act(scenario: str, directory: str) -> Callable[[], object]:
    """The act of a scenario; gives the warnings."""
    started = SCENARIOS[scenario].started(Path(directory))

    def observed() -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            started()
        return [str(warning.message) for warning in caught]

    return observed


def act_with_small_files(scenario: str, directory: str, limit_bytes: int) -> Callable[[], object]:
    """The act of a scenario where no file may grow beyond a limit."""
    observed = act(scenario, directory)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))  # Python ignores SIGXFSZ
    return observed


def read(reader: str, path: str) -> Callable[[], object]:
    """Read a file, or its directory, in one of the ways in which users do."""
    return lambda: type(READERS[reader](Path(path))).__name__


READERS: dict[str, Callable[[Path], object]] = {
    "load": load_checkpoint,
    "load unverified": lambda path: load_checkpoint(path, verify=False),
    "load the model": lambda path: load_checkpoint(path, load_optimizer=False),
    "plugin": lambda path: SeparatedCheckpointIO().load_checkpoint(path),
    "verify": verify_checkpoint,
    "latest": lambda path: latest_checkpoint(path.parent),
    "command": lambda path: cli.main(["verify", str(path.parent), "--json"]),
}
