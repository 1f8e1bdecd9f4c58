"""The power is lost at any moment of a save; also of one that clears up after a process that was killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from unittest import mock

import pytest

from neuromanifold_gpt.checkpoint import writer

from ..sampled import sampled
from .invariant import inventory, nothing_is_lost, policy_is_done, require, training_goes_on
from .parts import Part, in_parts
from .power_loss import Disk, Event, Files, RecordingStorage, moments, written_out
from .scenarios import SCENARIOS, Kind, Scenario, storage_is
from .tally import Tally


def recorded(scenario: Scenario, directory: Path) -> list[Event]:
    """What the act of a scenario does to the files. The time of a save is always the same, to tell equal states."""
    act = scenario.started(directory)
    storage = RecordingStorage()
    with storage_is(storage), mock.patch.object(writer, "save_details", return_value={}):
        act()
    return storage.events


State = tuple[Files, bool]  # what is found, and whether the act had returned


# Whose states after two processes, which take a second or more to find, are sampled in the suite.
IN_SUITE = (
    "under a new name",
    "over an existing name",
    "over what a replacement left that was not committed",
    "with a policy that removes one and thins another",
)


class Distinct:
    """Gives each state once."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def states(self, disk: Disk, *, returned: bool) -> Iterator[State]:
        for files in disk.after_power_loss():
            key = hash((frozenset(files.items()), returned))
            if key not in self._seen:
                self._seen.add(key)
                yield files, returned


def after_a_kill(scenario: Scenario, prepared: Path, scratch: Path) -> list[State]:
    """What a power loss leaves of the process that comes after one that was killed, each at any moment."""
    disk, distinct = Disk.holding(prepared), Distinct()
    states: list[State] = []
    for some, _ in moments(recorded(scenario, written_out(disk.seen(), scratch))):
        for event in some:
            disk.apply(event)
        second = disk.copied()
        for more, last in moments(recorded(scenario, written_out(disk.seen(), scratch))):
            for event in more:
                second.apply(event)
            states += distinct.states(second, returned=last)
    return states


@pytest.fixture(scope="module")
def states_after_a_kill(
    prepared: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], list[State]]:
    """Of a scenario. They take some time and memory, and the parts of a scenario come one after the other."""
    scratch = tmp_path_factory.mktemp("states")
    return lru_cache(maxsize=1)(lambda name: after_a_kill(SCENARIOS[name], prepared[name], scratch / "run"))


class Sweep:
    """Checks states."""

    def __init__(self, scenario: Scenario, before: dict[str, Kind], scratch: Path, tally: Tally, kind: str) -> None:
        self._scenario, self._before, self._scratch, self._tally, self._kind = scenario, before, scratch, tally, kind

    def check(self, files: Files, what: str, *, returned: bool) -> None:
        with self._tally.trial(self._kind, f"{what}: {sorted(files)}"):
            directory = written_out(files, self._scratch)
            found = nothing_is_lost(directory, self._scenario, self._before)
            if returned:
                missing = {name: kind for name, kind in self._scenario.adds.items() if found.get(name.strip()) != kind}
                missing = {name: kind for name, kind in missing.items() if f"{name} " not in self._scenario.adds}
                require(not missing, f"the save had returned, and {missing} is gone")
                require(policy_is_done(self._scenario, found), "the removal had returned, and it is back")
            training_goes_on(directory, self._scenario, found)


@in_parts(15, one_in=3)
@pytest.mark.parametrize("name", SCENARIOS)
def test_at_any_moment_of_a_save(name: str, part: Part, prepared: dict[str, Path], tally: Tally, tmp_path: Path):
    scenario = SCENARIOS[name]
    sweep = Sweep(scenario, inventory(prepared[name]), tmp_path / "after", tally, "states after a power loss")
    disk, distinct, states = Disk.holding(prepared[name]), Distinct(), []
    events = recorded(scenario, written_out(disk.seen(), tmp_path / "run"))
    for some, last in moments(events):
        for event in some:
            disk.apply(event)
        states += distinct.states(disk, returned=last)
    assert disk.seen() == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert len(states) > 7
    for files, returned in part.choose(states):
        sweep.check(files, name, returned=returned)


@in_parts(80, one_in=12)
@pytest.mark.parametrize("name", sampled(SCENARIOS, IN_SUITE))
def test_at_any_moment_of_the_next_process_after_a_kill_at_any_moment(
    name: str,
    part: Part,
    prepared: dict[str, Path],
    states_after_a_kill: Callable[[str], list[State]],
    tally: Tally,
    tmp_path: Path,
):
    """What the killed process had not synced, the next one sees; when power is lost, it may be gone after all."""
    scenario = SCENARIOS[name]
    sweep = Sweep(
        scenario, inventory(prepared[name]), tmp_path / "after", tally, "states after a kill and a power loss"
    )
    states = states_after_a_kill(name)
    assert len(states) > 7
    for files, returned in part.choose(states):
        sweep.check(files, name, returned=returned)
