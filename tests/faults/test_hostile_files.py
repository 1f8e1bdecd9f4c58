"""Hostile files are refused: nothing in them is run or followed, no process hangs, and memory stays bounded."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from neuromanifold_gpt import load_checkpoint

from . import hostile
from .fork_server import ForkServer
from .invariant import require
from .scenarios import copied
from .tally import Tally
from .tiny_training import TinyTraining

READERS = ["load", "load unverified", "load the model", "plugin", "verify", "latest", "command"]
MUST_REFUSE = {"load", "load unverified"}  # Lightning also takes a dict that nobody here knows
# What a reader may take beyond what the program has anyway: some times the size of the file.
MEMORY_BYTES = 64 << 20
MEMORY_PER_BYTE = 20


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("intact") / "run"
    TinyTraining().train_until(3).save(directory)
    return directory


CANARY = Path("canary")  # another one in each test: parametrizing needs the names only


def sampled(names: list[str]) -> list[object]:
    """Each tenth in the suite, except for those that take some seconds."""
    fast = {name for name in names[::10] if "GB" not in name and "gigabyte" not in name and "000" not in name}
    return [pytest.param(name, marks=[] if name in fast else [pytest.mark.slow]) for name in names]


@pytest.mark.parametrize("what", sampled(list(hostile.catalogue(CANARY))))
def test_it_is_refused_by_every_reader(what: str, intact: Path, server: ForkServer, tally: Tally, tmp_path: Path):
    canary = tmp_path / "canary"
    directory = copied(intact, tmp_path / "run")
    path = hostile.catalogue(canary)[what](hostile.target(directory), canary)
    largest = max(file.stat().st_size for file in directory.iterdir() if file.is_file() and not file.is_symlink())
    allowed = MEMORY_BYTES + MEMORY_PER_BYTE * min(largest, 64 << 20)
    with tally.trial("hostile files", what):
        for reader in READERS:
            outcome = server.run("tests.faults.tasks:read", reader, str(path))
            require(outcome.killed_by is None, f"{reader}: ended by signal {outcome.killed_by}")
            if reader in MUST_REFUSE:
                require(outcome.error is not None, f"{reader}: not refused: {outcome.value}")
            typed = outcome.error is None or "CheckpointError" in outcome.classes
            require(typed, f"{reader}: {outcome.error}: {outcome.message}")
            require(outcome.grown_bytes <= allowed, f"{reader}: took {outcome.grown_bytes >> 20} MB")
            require(not canary.exists(), f"{reader}: its code was run")


def test_the_traps_are_real(tmp_path: Path):
    """With ``trusted=True`` the code runs: so that its absence above means something."""
    for name, trap in hostile.code(tmp_path / "canary").items():
        path = tmp_path / "unified.ckpt"
        path.write_bytes(hostile.saved({"model": {}, "trap": trap}))
        (tmp_path / "canary").unlink(missing_ok=True)
        if name != "torch.load":  # which has nothing to load there
            load_checkpoint(path, load_optimizer=False, trusted=True)
        if name not in ("torch.load", "getattr"):  # which makes a method and does not call it
            for _ in range(100):
                if (tmp_path / "canary").exists():
                    break

                time.sleep(0.05)  # the one in another process
            assert (tmp_path / "canary").exists(), name


def test_the_forger_knows_the_format(intact: Path, tmp_path: Path):
    paths = hostile.target(copied(intact, tmp_path / "run"))
    before = paths.manifest.read_bytes()
    hostile.rewritten(paths, lambda text: text)
    assert paths.manifest.read_bytes() == before
