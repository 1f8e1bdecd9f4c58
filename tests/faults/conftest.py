"""Fixtures of the sweeps, and the counts at their end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from .fork_server import ForkServer
from .scenarios import SCENARIOS
from .strace import missing_strace
from .tally import TALLY, Tally

T = TypeVar("T")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # one of several processes that share the tests
        session.config.workeroutput["tally"] = {"trials": dict(TALLY.trials), "losses": TALLY.losses}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A process has ended; without its counts, if it crashed."""
    TALLY.add(**getattr(node, "workeroutput", {}).get("tally", {"trials": {}, "losses": ["a process crashed"]}))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if TALLY.trials:
        terminalreporter.section("faults")
        TALLY.write(terminalreporter.write_line)


@pytest.fixture
def tally() -> Iterator[Tally]:
    """Counts trials; the test fails in the end if one of its trials was a loss."""
    with TALLY.sweep():
        yield TALLY


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


@pytest.fixture(scope="session")
def strace() -> None:
    if reason := missing_strace():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The directory of each scenario as its process finds it; to be copied."""
    root = tmp_path_factory.mktemp("prepared")
    return {name: scenario.prepared(root / str(i)) for i, (name, scenario) in enumerate(SCENARIOS.items())}
