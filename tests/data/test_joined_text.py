"""The cache of joined text files: whole or not at all, for any number of writers, whatever happens to it."""

import errno
import logging
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from neuromanifold_gpt.data import joined_text
from neuromanifold_gpt.data.errors import DatasetError
from neuromanifold_gpt.data.joined_text import ABANDONED_AFTER_S, default_cache_dir, open_joined
from neuromanifold_gpt.data.text_files import find_text_files, is_validation

fork = multiprocessing.get_context("fork")


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(20):
        (folder / f"{i}.txt").write_bytes(f"text {i} ".encode() * 100)
    return folder


@pytest.fixture
def cache_dir(tmp_path):
    return tmp_path / "cache" / "deep"


def open_source(source, cache_dir):
    train, validation = open_joined(find_text_files(source), name="folder", cache_dir=cache_dir)
    return bytes(train.tokens), bytes(validation.tokens)


def refusal(source, cache_dir):
    with pytest.raises(DatasetError) as error:
        open_source(source, cache_dir)
    return str(error.value)


def cache_file(cache_dir):
    (path,) = cache_dir.glob("*.bin")
    return path


def in_child(function):
    process = fork.Process(target=function)
    process.start()
    return process


class TestSources:
    @pytest.mark.parametrize("keep_time", [False, True])
    def test_change_of_a_source_is_noticed_even_if_size_and_time_stay(self, source, cache_dir, keep_time):
        before = open_source(source, cache_dir)
        path = source / "3.txt"
        status = path.stat()
        path.write_bytes(path.read_bytes().replace(b"text", b"TEXT"))
        if keep_time:
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        after = open_source(source, cache_dir)
        assert after == tuple(side.replace(b"text 3 ", b"TEXT 3 ") for side in before)

    @pytest.mark.parametrize("for_validation", [False, True])
    def test_old_and_new_version_of_a_source_have_a_cache_file_each(self, source, cache_dir, caplog, for_validation):
        open_source(source, cache_dir)
        changed = next(path for path in source.iterdir() if is_validation(path.name) == for_validation)
        changed.write_bytes(changed.read_bytes().upper())
        open_source(source, cache_dir)
        assert len(list(cache_dir.iterdir())) == 2
        assert caplog.messages == []

    def test_a_file_more_or_less_is_noticed(self, source, cache_dir):
        before = open_source(source, cache_dir)
        (source / "new.txt").write_bytes(b"new")
        assert b"new" in b"".join(open_source(source, cache_dir))
        (source / "new.txt").unlink()
        assert open_source(source, cache_dir) == before

    def test_source_that_changes_between_listing_and_reading_is_refused(self, source, cache_dir):
        files = find_text_files(source)
        (source / "3.txt").write_bytes(b"short")
        with pytest.raises(DatasetError, match=r"3\.txt: expected 700 bytes, found 5: it changed while"):
            open_joined(files, name="folder", cache_dir=cache_dir)

    def test_source_that_changes_between_reading_and_joining_is_refused(self, source, cache_dir, monkeypatch):
        real = joined_text._remove_abandoned  # runs between the two

        def change(directory):
            (source / "3.txt").write_bytes(b"x" * 700)
            real(directory)

        monkeypatch.setattr(joined_text, "_remove_abandoned", change)
        assert "the text files changed while they were joined" in refusal(source, cache_dir)
        assert list(cache_dir.iterdir()) == []


class TestDamage:
    @pytest.mark.parametrize(
        "damage",
        [
            lambda path: os.truncate(path, path.stat().st_size - 1),
            lambda path: os.truncate(path, 0),
            lambda path: path.write_bytes(path.read_bytes() + b"x"),
            lambda path: path.write_bytes(b"X" + path.read_bytes()[1:]),
            lambda path: path.write_bytes(path.read_bytes()[:-1] + b"X"),
            lambda path: path.write_bytes(bytes(path.stat().st_size)),  # as after a power loss
        ],
    )
    def test_damaged_cache_is_noticed_said_and_written_anew(self, source, cache_dir, damage, caplog):
        before = open_source(source, cache_dir)
        path = cache_file(cache_dir)
        content = path.read_bytes()
        damage(path)
        with caplog.at_level(logging.WARNING):
            assert open_source(source, cache_dir) == before
        assert f"{path} is damaged" in caplog.text
        assert path.read_bytes() == content

    def test_maps_in_use_survive_a_new_cache_file(self, source, cache_dir):
        train, _ = open_joined(find_text_files(source), name="folder", cache_dir=cache_dir)
        before = bytes(train.tokens)
        cache_file(cache_dir).unlink()
        open_source(source, cache_dir)
        assert bytes(train.tokens) == before

    def test_intact_cache_is_used_where_nothing_can_be_written(self, source, cache_dir, monkeypatch):
        before = open_source(source, cache_dir)
        monkeypatch.setattr(joined_text, "_write", lambda *_: pytest.fail("must not write"))
        assert open_source(source, cache_dir) == before


class TestWriters:
    def test_killed_writer_leaves_no_cache_file_and_the_next_one_succeeds(self, source, cache_dir):
        def be_killed():
            os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
            open_source(source, cache_dir)

        child = in_child(be_killed)
        child.join(30)
        assert child.exitcode == -signal.SIGKILL
        (leftover,) = cache_dir.iterdir()
        assert leftover.name.endswith(".tmp")
        train, validation = open_source(source, cache_dir)
        assert len(train) + len(validation) == cache_file(cache_dir).stat().st_size
        assert leftover.exists()  # young: it could be the file of a writer at work

    def test_abandoned_temporary_files_are_removed_and_nothing_else(self, source, cache_dir, caplog):
        cache_dir.mkdir(parents=True)
        old = cache_dir.stat().st_mtime - ABANDONED_AFTER_S - 10
        digest = "0123456789abcdef" * 2
        names = [f".folder-{digest}.bin.12-0a1b2c3d.tmp", f".stdlib-{digest}.bin.1-ffffffff.tmp"]
        others = [".other.tmp", f"folder-{digest}.bin", "notes.txt"]
        for name in names + others:
            (cache_dir / name).write_bytes(b"x")
            os.utime(cache_dir / name, (old, old))
        young = cache_dir / f".folder-{digest}.bin.13-0a1b2c3d.tmp"
        young.write_bytes(b"x")
        vanished = cache_dir / f".folder-{digest}.bin.14-0a1b2c3d.tmp"
        vanished.symlink_to("nowhere")  # as if its writer had renamed it between listing and looking
        open_source(source, cache_dir)
        left = {path.name for path in cache_dir.iterdir()}
        assert left >= {*others, young.name}
        assert not left & set(names)
        assert caplog.messages == []

    def test_name_of_a_temporary_file_is_one_that_is_removed_later(self, source, cache_dir, monkeypatch):
        seen = []
        real = Path.replace

        def record(path, target):
            seen.append(path.name)
            return real(path, target)

        monkeypatch.setattr(Path, "replace", record)
        open_source(source, cache_dir)
        assert [bool(joined_text.TEMPORARY_NAME.fullmatch(name)) for name in seen] == [True]

    def test_two_processes_that_write_at_once_both_succeed(self, source, cache_dir):
        barrier = fork.Barrier(2)
        results = fork.SimpleQueue()

        def write():
            real = os.fsync

            def fsync(descriptor):
                barrier.wait(30)  # both are in the middle of it
                real(descriptor)

            os.fsync = fsync
            results.put(open_source(source, cache_dir))

        children = [in_child(write) for _ in range(2)]
        for child in children:
            child.join(60)
        assert [child.exitcode for child in children] == [0, 0]
        assert results.get() == results.get() == open_source(source, cache_dir)
        assert [path.suffix for path in cache_dir.iterdir()] == [".bin"]

    def test_full_disk_is_said_and_leaves_nothing(self, source, cache_dir, monkeypatch):
        def fail(_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", fail)
        message = refusal(source, cache_dir)
        assert str(cache_dir) in message
        assert "No space left on device" in message
        assert list(cache_dir.iterdir()) == []

    def test_file_and_rename_are_made_durable(self, source, cache_dir, monkeypatch):
        events = []
        real_fsync, real_replace = os.fsync, Path.replace

        def fsync(descriptor):
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            events.append("directory" if path.is_dir() else path.stat().st_size)
            real_fsync(descriptor)

        def replace(path, target):
            events.append("rename")
            return real_replace(path, target)

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(Path, "replace", replace)
        open_source(source, cache_dir)
        assert events == [cache_file(cache_dir).stat().st_size, "rename", "directory"]


class TestCacheDir:
    def test_is_below_xdg_cache_home(self, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert default_cache_dir() == tmp_path / "neuromanifold_gpt"

    @pytest.mark.parametrize("xdg", [None, "", "relative/path"])
    def test_is_below_home_where_xdg_cache_home_is_not_usable(self, monkeypatch, tmp_path, xdg):
        monkeypatch.setenv("HOME", str(tmp_path))
        if xdg is None:
            monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        else:
            monkeypatch.setenv("XDG_CACHE_HOME", xdg)
        assert default_cache_dir() == tmp_path / ".cache" / "neuromanifold_gpt"

    def test_no_home_is_an_error_with_a_remedy(self, monkeypatch):
        def no_home():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", no_home)
        with pytest.raises(DatasetError, match="set XDG_CACHE_HOME"):
            default_cache_dir()

    @pytest.mark.parametrize("below", ["", "below"])
    def test_that_cannot_be_a_folder_is_named_with_a_remedy(self, source, tmp_path, below):
        (tmp_path / "file").write_bytes(b"x")
        message = refusal(source, tmp_path / "file" / below)
        assert str(tmp_path / "file") in message
        assert "set XDG_CACHE_HOME" in message

    def test_that_cannot_be_written_is_named_with_a_remedy(self, source, cache_dir, monkeypatch):
        def refuse(path, **_):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "mkdir", refuse)
        message = refusal(source, cache_dir)
        assert f"{cache_dir}: " in message
        assert "Permission denied" in message
        assert "set XDG_CACHE_HOME" in message
