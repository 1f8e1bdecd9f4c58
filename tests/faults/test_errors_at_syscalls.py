"""The system refuses each file-system call of a save in turn; the save succeeds, or says what was refused."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from neuromanifold_gpt.checkpoint.naming import MANIFEST_SUFFIX

from ..checkpoint.small_saves import names_in, temporary_files
from .fork_server import ForkServer, Outcome
from .invariant import inventory, nothing_is_lost, policy_is_done, require, training_goes_on
from .parts import Part, in_parts
from .scenarios import SCENARIOS, Kind, Scenario, copied
from .strace import Call, calls_of, inject
from .tally import Tally

ACT = "tests.faults.tasks:act"
ACT_WITH_SMALL_FILES = "tests.faults.tasks:act_with_small_files"
ERRORS = ["ENOSPC", "EIO", "EROFS", "EACCES", "EINTR"]
REMEDIES = {
    "ENOSPC": "Free space",
    "EFBIG": "Free space",
    "EROFS": "make the directory writable",
    "EACCES": "make the directory writable",
    "EIO": "choose another one",
    "EINTR": "choose another one",
}


def failed_well(outcome: Outcome, directory: Path, before: dict[str, Kind], scenario: Scenario, error: str) -> None:
    """What holds after one call was refused: of the error's text, of the files, of the training that goes on."""
    found = nothing_is_lost(directory, scenario, before)
    require(outcome.killed_by is None, f"it did not end: {outcome}")
    if outcome.error is None:
        done = {name: kind for name, kind in scenario.adds.items() if f"{name} " not in scenario.adds}
        require(all(found.get(name.strip()) == kind for name, kind in done.items()), f"not saved, not said: {found}")
        said = any("not counting" in warning for warning in outcome.value)
        require(said or policy_is_done(scenario, found), f"not removed, not said: {found}")
    else:
        require(outcome.error == "CheckpointWriteError", f"{outcome.error}: {outcome.message}")
        require(str(directory) in outcome.message, f"no file is named: {outcome.message}")
        if "removing" in outcome.message:  # the save is done, what a policy removes is not
            remedy, expected = "Free space or make the directory writable", set(scenario.adds.items())
        else:
            remedy = REMEDIES[error]
            expected = {(name, kind) for name, kind in scenario.adds.items() if f"{name} " in scenario.adds}
        require(remedy in outcome.message, f"no remedy: {outcome.message}")
        new = {
            (name, kind)
            for name, kind in found.items()
            if before.get(name) != kind and name not in scenario.may_be_thinned
        }
        require(new <= expected, f"a save that failed left a manifest: {found}")
        manifests = {name for name in names_in(directory) if name.endswith(MANIFEST_SUFFIX)}
        require(manifests == {name + MANIFEST_SUFFIX for name in found}, f"manifests of nothing: {manifests}")


def pairs(calls: list[Call]) -> Iterator[tuple[Call, str]]:
    """Each error at each call; of the writes of an archive, which are alike, one at each in turn."""
    for number, call in enumerate(calls):
        for error in [ERRORS[number % len(ERRORS)]] if call.name == "write" else ERRORS:
            yield call, error


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for the whole sweep: the calls of a dry run are known by their paths."""
    return tmp_path_factory.mktemp("errors") / "run"


@pytest.fixture(scope="module")
def calls(server: ForkServer, prepared: dict[str, Path], directory: Path) -> Callable[[str], list[Call]]:
    """Of a scenario, whose parts come one after the other."""
    return lru_cache(maxsize=1)(
        lambda name: calls_of(server, directory, ACT, name, str(copied(prepared[name], directory)))
    )


@pytest.mark.usefixtures("strace")
@in_parts(40, one_in=8)
@pytest.mark.parametrize("name", SCENARIOS)
def test_an_error_of_any_call_is_survived_or_said(
    name: str,
    part: Part,
    server: ForkServer,
    prepared: dict[str, Path],
    directory: Path,
    calls: Callable[[str], list[Call]],
    tally: Tally,
):
    scenario = SCENARIOS[name]
    before = inventory(prepared[name])
    for call, error in part.choose(list(pairs(calls(name)))):
        with tally.trial("errors of a system call", f"{name}: {error} at {call}"):
            left_before = set(temporary_files(copied(prepared[name], directory)))
            outcome, reached = inject(server, call, f"error={error}", ACT, name, str(directory))
            require(reached, f"{call} was not reached: {outcome}")
            failed_well(outcome, directory, before, scenario, error)
            begun = "cannot be locked" not in outcome.message  # else what was left before stays
            left = set(temporary_files(directory)) - (set() if begun else left_before)
            # What a removal leaves, and what could not be removed, the next save clears away.
            may_stay = outcome.error is None or "removing" in outcome.message or call.name.startswith("unlink")
            require(may_stay or not left, f"temporary files: {left}, {outcome.message}")
            training_goes_on(directory, scenario, inventory(directory))


@in_parts(20, one_in=6)
@pytest.mark.parametrize("name", ["over an existing name", "model-only", "beside what a torn write left"])
def test_a_write_cut_short_at_any_byte_is_said(
    name: str, part: Part, server: ForkServer, prepared: dict[str, Path], tally: Tally, tmp_path: Path
):
    """Real short writes: beyond ``RLIMIT_FSIZE`` the kernel takes what fits, and refuses the rest with EFBIG."""
    scenario, directory = SCENARIOS[name], tmp_path / "run"
    before = inventory(prepared[name])
    refused = 0
    for limit_bytes in part.choose(range(0, 30_000, 101)):
        with tally.trial("writes cut short", f"{name}: files of at most {limit_bytes} bytes"):
            copied(prepared[name], directory)
            outcome = server.run(ACT_WITH_SMALL_FILES, name, str(directory), limit_bytes)
            failed_well(outcome, directory, before, scenario, "EFBIG")
            require(outcome.error is None or not temporary_files(directory), "temporary files are left")
            training_goes_on(directory, scenario, inventory(directory))
            refused += outcome.error is not None
    assert refused


@contextlib.contextmanager
def small_disk(directory: Path, size_bytes: int) -> Iterator[None]:
    """A file system of its own, in memory."""
    directory.mkdir(exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(directory)]
    subprocess.run(["mount", *options], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def may_mount(tmp_path: Path) -> bool:
    try:
        with small_disk(tmp_path / "tried", 1 << 16):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@in_parts(6, one_in=2)
@pytest.mark.parametrize("name", ["under a new name", "over an existing name"])
def test_a_disk_that_becomes_full_at_any_block_is_said(
    name: str, part: Part, server: ForkServer, prepared: dict[str, Path], tally: Tally, tmp_path: Path
):
    """A real full disk, one block later each time; then it has room again, and training goes on."""
    if not may_mount(tmp_path):
        pytest.skip("mounting a small file system needs root")
    scenario, directory, block_bytes = SCENARIOS[name], tmp_path / "disk", 4096
    before = inventory(prepared[name])
    held = sum(-(-path.stat().st_size // block_bytes) for path in prepared[name].iterdir())
    refused = 0
    for blocks in part.choose(range(held + 2, held + 20)):
        with tally.trial("full disks", f"{name}: {blocks} blocks"), small_disk(directory, blocks * block_bytes):
            shutil.copytree(prepared[name], directory, dirs_exist_ok=True)
            outcome = server.run(ACT, name, str(directory))
            failed_well(outcome, directory, before, scenario, "ENOSPC")
            require(outcome.error is None or not temporary_files(directory), "temporary files are left")
            subprocess.run(["mount", "-o", "remount,size=10m", str(directory)], check=True)
            training_goes_on(directory, scenario, inventory(directory))
            refused += outcome.error is not None
    assert refused
    assert os.path.ismount(directory) is False
