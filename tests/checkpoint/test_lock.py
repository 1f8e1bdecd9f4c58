"""Two real processes and one directory: the second is refused and told by whom; no dead process ever holds anything."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from neuromanifold_gpt import latest_checkpoint, list_checkpoints, lock_directory, save_checkpoint
from neuromanifold_gpt.checkpoint import lock
from neuromanifold_gpt.checkpoint.errors import (
    CheckpointLockedError,
    CheckpointWriteError,
    LeftoverWarning,
    UnlockedDirectoryWarning,
)
from neuromanifold_gpt.checkpoint.lock import LOCK_NAME, writing

from ..faults.storages import Crash, CrashBefore
from .other_process import SCRIPT, Process
from .small_saves import Save, files_of_checkpoints, found, names_in, temporary_files

MODEL = torch.nn.Linear(2, 2)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def other(directory: Path) -> Iterator[Process]:
    with Process(directory) as process:
        yield process


def save(directory: Path, step: int) -> None:
    save_checkpoint(directory, step=step, model=MODEL)


class TestRun:
    def test_the_second_process_is_refused_and_told_who_holds_the_directory(self, directory, other):
        assert other.asked("lock") == "done"
        for attempt in (lambda: lock_directory(directory).acquire(), lambda: save(directory, 1)):
            with pytest.raises(CheckpointLockedError) as refused:
                attempt()
            message = str(refused.value)
            assert f"process {other.pid} on {os.uname().nodename}, since 20" in message
            assert str(SCRIPT) in message
            assert "choose another directory" in message
        assert names_in(directory) == {LOCK_NAME}
        assert other.asked("save 3") == "done"
        assert [checkpoint.step for checkpoint in list_checkpoints(directory)] == [3]  # who reads needs no lock
        assert latest_checkpoint(directory).step == 3
        assert other.asked("unlock") == "done"
        save(directory, 4)
        assert names_in(directory) == files_of_checkpoints(directory)

    def test_a_killed_process_holds_nothing_and_its_lock_file_goes_with_the_next_save(self, directory, other):
        assert other.asked("lock") == "done"
        other.kill()
        assert (directory / LOCK_NAME).exists()
        save(directory, 1)
        assert names_in(directory) == files_of_checkpoints(directory)

    def test_data_workers_that_outlive_a_killed_process_hold_nothing(self, directory, other):
        assert other.asked("lock") == "done"
        workers = [int(pid) for pid in other.asked("workers").split()]
        try:
            assert other.asked("save 1") == "done"
            with pytest.raises(CheckpointLockedError):
                save(directory, 2)
            other.kill()
            for pid in workers:
                os.kill(pid, 0)  # alive
            save(directory, 2)
            for pid in workers:
                os.kill(pid, 0)
        finally:
            for pid in workers:
                os.kill(pid, signal.SIGKILL)

    def test_a_refused_process_leaves_the_holders_unfinished_save_alone(self, directory, other, tmp_path):
        assert other.asked("lock") == "done"
        other.tell("slow 1")
        self.wait_for(tmp_path / "half")
        with pytest.raises(CheckpointLockedError):
            save(directory, 2)
        (tmp_path / "go").touch()
        assert other.answer() == "done"
        assert [checkpoint.step for checkpoint in list_checkpoints(directory)] == [1]

    @staticmethod
    def wait_for(path: Path) -> None:
        while not path.exists():
            time.sleep(0.01)

    def test_holds_of_one_process_add_up(self, directory, other):
        with lock_directory(directory), lock_directory(directory), writing(directory):
            with lock_directory(str(directory) + "/../run"):
                save(directory, 1)
            assert other.asked("lock").startswith("CheckpointLockedError")
        assert other.asked("lock") == "done"

    def test_a_forked_child_is_another_process(self, directory):
        with lock_directory(directory):
            child = os.fork()
            if child == 0:
                try:
                    save(directory, 1)
                    os._exit(0)
                except CheckpointLockedError:
                    lock_directory(directory).release()  # holds nothing, gives nothing back
                    os._exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            assert (directory / LOCK_NAME).exists()

    def test_a_directory_that_was_made_for_the_lock_alone_goes_with_it(self, directory):
        with lock_directory(directory):
            assert directory.exists()
        assert not directory.exists()
        directory.mkdir()
        with lock_directory(directory):
            pass
        assert directory.exists()

    def test_a_run_that_begins_clears_what_a_killed_save_left(self, directory):
        self.killed_while_replacing(directory)
        with lock_directory(directory):
            assert names_in(directory) == files_of_checkpoints(directory) | {LOCK_NAME}
            assert found(directory, "last1").version == 1
            assert latest_checkpoint(directory).model_path.name == "last1-model.pt"

    def test_leftovers_that_cannot_be_removed_keep_no_run_from_starting(self, directory, other):
        self.killed_while_replacing(directory)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # its manifest cannot be put back
        try:
            with pytest.warns(LeftoverWarning, match=r"File too large.*last1\.json.*next save tries again") as warned:
                lock_directory(directory).acquire()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert warned[0].filename == __file__
        assert found(directory, "last1").version == 1
        assert other.asked("lock").startswith("CheckpointLockedError")
        lock_directory(directory).release()
        assert other.asked("lock") == "done"

    @staticmethod
    def killed_while_replacing(directory: Path) -> None:
        Save("last1", 1).write(directory)
        with pytest.raises(Crash):
            Save("last1", 2).write(directory, CrashBefore("rename", "last1.json.nm-incomplete"))
        assert temporary_files(directory)
        assert latest_checkpoint(directory).model_path.name == "last1-model.pt.nm-previous"

    def test_a_lock_file_of_somebody_else_is_not_removed(self, directory):
        with lock_directory(directory):
            (directory / LOCK_NAME).unlink()  # by hand
            (directory / LOCK_NAME).write_text("another's")
        assert (directory / LOCK_NAME).read_text() == "another's"


class TestSaves:
    def test_a_save_waits_for_the_save_of_another_process(self, directory, other, tmp_path):
        other.tell("slow 1")
        TestRun.wait_for(tmp_path / "half")
        waiting = threading.Thread(target=save, args=(directory, 2))
        waiting.start()
        time.sleep(0.2)
        assert waiting.is_alive()
        assert not list_checkpoints(directory)
        (tmp_path / "go").touch()
        assert other.answer() == "done"
        waiting.join()
        assert [checkpoint.step for checkpoint in list_checkpoints(directory)] == [1, 2]
        assert names_in(directory) == files_of_checkpoints(directory)

    def test_a_save_takes_over_from_one_that_is_killed(self, directory, other, tmp_path):
        other.tell("slow 1")
        TestRun.wait_for(tmp_path / "half")
        other.kill()
        save(directory, 2)
        assert [checkpoint.step for checkpoint in list_checkpoints(directory)] == [2]
        assert names_in(directory) == files_of_checkpoints(directory)

    def test_saves_of_many_processes_and_threads_into_one_directory_all_arrive_whole(self, directory):
        with ExitStack() as stack:
            processes = [stack.enter_context(Process(directory)) for _ in range(3)]
            for number in range(8):
                for i, process in enumerate(processes):
                    process.tell(f"save {10 * number + i}")
            saves = [Save(f"mine{number}", number) for number in range(100, 108)]
            threads = [threading.Thread(target=save.write, args=(directory,)) for save in saves]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert [process.answer() for process in processes for _ in range(8)] == ["done"] * 24
        assert [found(directory, save.name) for save in saves] == saves
        assert len(list_checkpoints(directory)) == 24 + 8
        assert names_in(directory) == files_of_checkpoints(directory)


class TestLockFile:
    @pytest.mark.parametrize(
        "content", [b"", b"{", b"[]", b"\xff\x00", b'{"purpose": ["run"], "host": "a\\nb"}', b"[" * 5000, b"1" * 9000]
    )
    def test_nonsense_in_it_does_not_matter(self, content, directory, monkeypatch):
        monkeypatch.setitem(lock._PATIENCE_SEC, None, 0.0)
        directory.mkdir()
        (directory / LOCK_NAME).write_bytes(content)
        save(directory, 1)
        (directory / LOCK_NAME).write_bytes(content)
        descriptor = os.open(directory / LOCK_NAME, os.O_RDWR)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(CheckpointLockedError, match="process unknown on unknown"):
            save(directory, 2)
        os.close(descriptor)

    def test_a_link_in_its_place_is_not_followed(self, directory, tmp_path):
        directory.mkdir()
        (tmp_path / "precious").write_text("kept")
        (directory / LOCK_NAME).symlink_to(tmp_path / "precious")
        with pytest.raises(CheckpointWriteError, match=rf"{LOCK_NAME}: the directory cannot be locked"):
            save(directory, 1)
        assert (tmp_path / "precious").read_text() == "kept"

    def test_a_directory_in_its_place_is_named(self, directory):
        (directory / LOCK_NAME).mkdir(parents=True)
        with pytest.raises(CheckpointWriteError, match=rf"{LOCK_NAME}: the directory cannot be locked"):
            save(directory, 1)

    def test_says_what_holds_it_in_json(self, directory):
        with lock_directory(directory):
            holder = json.loads((directory / LOCK_NAME).read_bytes())
        assert holder["pid"] == os.getpid()
        assert holder["purpose"] == "run"
        assert set(holder) == {"purpose", "pid", "host", "since", "command"}

    def test_a_file_system_without_locks_is_said_and_saved_to(self, directory, monkeypatch):
        """None is at hand here, so the system call is made to refuse."""

        def refuse(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)
        with pytest.warns(UnlockedDirectoryWarning, match="no locks"):
            save(directory, 1)
        assert names_in(directory) == files_of_checkpoints(directory)
