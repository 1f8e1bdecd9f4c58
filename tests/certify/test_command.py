"""A command is run, held, ended, and nothing of it is left."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from neuromanifold_gpt.certify.command import Command, Running
from neuromanifold_gpt.certify.errors import PlanError
from neuromanifold_gpt.certify.inotify import TreeWatch

# A program with a child in the same group and one in a session of its own; each writes its number again and again.
FAMILY = """
import os, sys, time
from pathlib import Path
out = Path(sys.argv[1])
name = "parent"
if os.fork() == 0:
    name = "child"
    if os.fork() == 0:
        os.setsid()
        name = "stranger"
while True:
    with open(out / name, "a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(0.002)
"""
NAMES = ("parent", "child", "stranger")


@pytest.fixture
def family(tmp_path: Path) -> list[str]:
    (tmp_path / "family.py").write_text(FAMILY)
    return [sys.executable, str(tmp_path / "family.py"), str(tmp_path)]


def started(family: list[str], tmp_path: Path) -> Running:
    running = Running(family, tmp_path / "stdout", tmp_path / "stderr")
    while not all((tmp_path / name).exists() for name in NAMES):
        assert running.exit_code is None, (tmp_path / "stderr").read_text()
        time.sleep(0.002)
    return running


def sizes(tmp_path: Path) -> list[int]:
    return [(tmp_path / name).stat().st_size for name in NAMES]


def test_killing_ends_every_process_whatever_its_session(family: list[str], tmp_path: Path):
    running = started(family, tmp_path)
    running.kill()
    assert running.exit_code == -signal.SIGKILL
    before = sizes(tmp_path)
    time.sleep(0.1)
    assert sizes(tmp_path) == before


def test_a_held_command_stands_still_and_goes_on(family: list[str], tmp_path: Path):
    with started(family, tmp_path) as running:
        running.stop()
        time.sleep(0.05)  # a process that was in the middle of a system call stops at its end
        before = sizes(tmp_path)
        time.sleep(0.1)
        assert sizes(tmp_path) == before
        running.go_on()
        while any(now == then for now, then in zip(sizes(tmp_path), before, strict=True)):
            assert running.exit_code is None
            time.sleep(0.002)


def test_leaving_the_block_by_an_exception_leaves_no_process(family: list[str], tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), started(family, tmp_path):
        raise KeyboardInterrupt
    before = sizes(tmp_path)
    time.sleep(0.1)
    assert sizes(tmp_path) == before


def test_commands_are_words_or_shell_like_strings(tmp_path: Path):
    command = Command.parse("python 'my train.py' --out={out}/x", ["python", "again.py", "{out}"])
    assert command.arguments(tmp_path, resuming=False) == ["python", "my train.py", f"--out={tmp_path}/x"]
    assert command.arguments(tmp_path, resuming=True) == ["python", "again.py", str(tmp_path)]
    for wrong in ("", "python train.py", "python 'open {out}"):
        with pytest.raises(PlanError):
            Command.parse(wrong)


def test_a_tree_is_watched_with_its_new_folders_and_readers_are_seen(tmp_path: Path):
    (tmp_path / "old").write_text("x")
    watch = TreeWatch(tmp_path)
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/first").write_text("x")
    happened = watch.wait(1)
    (tmp_path / "a/b/second").write_text("x")
    (tmp_path / "a/b/second").rename(tmp_path / "a/third")
    (tmp_path / "old").read_text()
    later = watch.wait(1)
    watch.close()
    assert "a/b/first" in happened.changed
    assert {"a/b/second", "a/third"} <= set(later.changed)
    assert later.read == {"old"}
