"""The file operations of a save, on the real file system."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import xxhash

from neuromanifold_gpt.checkpoint.digest import file_digest, open_file_digest
from neuromanifold_gpt.checkpoint.storage import LocalStorage, make_directory

storage = LocalStorage()


@pytest.fixture
def synced(monkeypatch) -> list[str]:
    """What was really synced, by path."""
    paths: list[str] = []
    fsync = os.fsync

    def recording(descriptor: int) -> None:
        paths.append(Path(f"/proc/self/fd/{descriptor}").readlink().as_posix())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recording)
    return paths


@pytest.fixture
def no_links(monkeypatch) -> None:
    """A file system without hard links, such as FAT."""

    def refuse(source: Path, target: Path, **_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted", str(source))

    monkeypatch.setattr(os, "link", refuse)


def test_a_file_is_emptied_written_unbuffered_and_synced(tmp_path, synced):
    path = tmp_path / "x"
    path.write_bytes(b"something longer")
    with storage.create(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"new"  # before it was closed: nothing is held back
        storage.sync_file(file)
    assert synced == [str(path)]


def test_directories_are_made_with_their_names_synced_into_the_parents(tmp_path, synced):
    make_directory(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()
    assert synced == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")]
    synced.clear()
    make_directory(tmp_path / "a" / "b")
    assert synced == []


def test_a_relative_directory_can_be_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_directory(Path("a/b"))
    make_directory(Path())
    assert (tmp_path / "a" / "b").is_dir()


def test_a_directory_is_synced(tmp_path, synced):
    storage.sync_directory(tmp_path)
    assert synced == [str(tmp_path)]


def test_a_rename_replaces_what_has_the_name(tmp_path):
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")
    storage.rename(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "new"
    assert not (tmp_path / "a").exists()


def test_a_second_name_costs_no_copy_and_outlives_the_first(tmp_path):
    (tmp_path / "a").write_text("content")
    (tmp_path / "b").write_text("in the way")
    storage.keep_as(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").samefile(tmp_path / "b")
    storage.remove(tmp_path / "a")
    assert (tmp_path / "b").read_text() == "content"


def test_without_hard_links_a_second_name_is_a_synced_copy(tmp_path, no_links, synced):
    (tmp_path / "a").write_text("content")
    (tmp_path / "b").write_text("in the way")
    storage.keep_as(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "a").samefile(tmp_path / "b")
    assert (tmp_path / "b").read_text() == "content"
    assert synced == [str(tmp_path / "b")]


def test_a_copy_that_fails_is_an_error(tmp_path, no_links):
    with pytest.raises(FileNotFoundError):
        storage.keep_as(tmp_path / "nothing", tmp_path / "b")


def test_removing_what_is_not_there_is_fine(tmp_path):
    (tmp_path / "a").write_text("")
    storage.remove(tmp_path / "a")
    storage.remove(tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("size_bytes", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_000_000])
def test_digests_of_files_and_parts_are_those_of_xxhash(size_bytes, tmp_path):
    content = bytes(i * 7 % 251 for i in range(1000)) * 3000
    content = content[:size_bytes]
    (tmp_path / "x").write_bytes(content)
    assert file_digest(tmp_path / "x") == xxhash.xxh3_128_hexdigest(content)
    with (tmp_path / "x").open("rb", buffering=0) as file:
        for offset, length in (
            (0, None),
            (size_bytes // 2, None),
            (3, 10),
            (0, size_bytes),
            (5, size_bytes + 99),
            (0, 0),
        ):
            part = content[offset:] if length is None else content[offset : offset + length]
            assert open_file_digest(file, offset, length) == xxhash.xxh3_128_hexdigest(part)
