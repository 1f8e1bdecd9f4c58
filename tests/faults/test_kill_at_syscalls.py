"""A real process is killed by SIGKILL in front of each of its file-system calls in turn."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from .fork_server import ForkServer
from .invariant import inventory, require, still_holds
from .parts import Part, in_parts
from .scenarios import SCENARIOS, copied
from .strace import Call, calls_of, inject
from .tally import Tally

ACT = "tests.faults.tasks:act"


@pytest.mark.usefixtures("strace")
@in_parts(8, one_in=4)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_kill_before_any_call_loses_nothing(
    name: str, part: Part, server: ForkServer, prepared: dict[str, Path], tally: Tally, tmp_path: Path
):
    scenario, directory = SCENARIOS[name], tmp_path / "run"
    before = inventory(prepared[name])
    calls = calls_of(server, directory, ACT, name, str(copied(prepared[name], directory)))
    changing = [call for call in calls if call.changes]
    assert len(changing) > 5, calls
    assert still_holds(directory, scenario, before) != before, "the scenario changes nothing"
    for call in part.choose(changing):
        with tally.trial("kills before a system call", f"{name}: {call}"):
            outcome, reached = inject(server, call, "signal=KILL", ACT, name, str(copied(prepared[name], directory)))
            require(reached and outcome.killed_by == signal.SIGKILL, f"not killed at {call}: {outcome}")
            still_holds(directory, scenario, before)


def test_all_threads_and_kinds_of_calls_are_swept(
    strace: None, server: ForkServer, prepared: dict[str, Path], tmp_path: Path
):
    name, directory = "over an existing name", tmp_path / "run"
    calls = calls_of(server, directory, ACT, name, str(copied(prepared[name], directory)))
    names = {call.name.removesuffix("at") for call in calls if call.changes}
    assert names >= {"open", "write", "fsync", "rename", "link", "unlink"}
    assert len(set(calls)) == len(calls), "two calls that strace cannot tell apart"
    written = {Path(call.path).name for call in calls if call.name == "write"}
    assert len(written) == 4, "optimizer, model, manifest, and the manifest of the old one"
    assert isinstance(calls[0], Call)
