"""The system refuses each file-system call of a reader in turn; the reader says so in its own words."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuromanifold_gpt import list_checkpoints

from ..checkpoint.small_saves import names_in
from .fork_server import ForkServer
from .invariant import inventory, require
from .parts import Part, in_parts
from .scenarios import copied
from .strace import calls_of, inject
from .tally import Tally
from .tasks import READERS

READ = "tests.faults.tasks:read"


@pytest.mark.usefixtures("strace")
@in_parts(6, one_in=6)
@pytest.mark.parametrize("reader", READERS)
def test_an_error_of_any_call_is_survived_or_typed(
    reader: str, part: Part, server: ForkServer, prepared: dict[str, Path], tally: Tally, tmp_path: Path
):
    directory = copied(prepared["over an existing name"], tmp_path / "run")
    path = str(list_checkpoints(directory)[-1].model_path)
    before, names = inventory(directory), names_in(directory)
    calls = calls_of(server, directory, READ, reader, path)
    assert len(calls) > 5, calls
    for call, error in part.choose([(call, error) for call in calls for error in ("EIO", "EACCES", "EINTR")]):
        outcome, reached = inject(server, call, f"error={error}", READ, reader, path)
        if call.name == "preadv2" and not reached:
            continue  # threads share these reads, each time in another way
        with tally.trial("errors of a reader's system call", f"{reader}: {error} at {call}"):
            require(reached, f"{call} was not reached: {outcome}")
            require(outcome.killed_by is None, f"it did not end: {outcome}")
            if outcome.error is not None:
                require("CheckpointError" in outcome.classes, f"{outcome.error}: {outcome.message}")
                require(str(directory) in outcome.message, f"no file is named: {outcome.message}")
            require(names_in(directory) == names and inventory(directory) == before, "a reader changed something")
