"""The commit rule, broken off at every operation: what is found afterwards is the old checkpoint or the new one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from neuromanifold_gpt import latest_checkpoint, list_checkpoints, load_checkpoint
from neuromanifold_gpt.checkpoint.commit import remove
from neuromanifold_gpt.checkpoint.errors import (
    CheckpointNotFoundError,
    CheckpointWriteError,
    IncompleteCheckpointError,
    LeftoverWarning,
)
from neuromanifold_gpt.checkpoint.leftovers import clear_leftovers
from neuromanifold_gpt.checkpoint.naming import PREVIOUS_SUFFIX, paths_of_model_file, paths_of_name
from neuromanifold_gpt.checkpoint.storage import LocalStorage
from neuromanifold_gpt.checkpoint.writer import resolve_directory, stage_checkpoint, write_checkpoint

from ..faults.storages import (
    Crash,
    CrashingStorage,
    FailingStorage,
    RecordingStorage,
    ShortWritingStorage,
)
from .small_saves import Save, files_of_checkpoints, found, names_in, temporary_files

OLDER, NEWER = Save("checkpoint-step000001", 1), Save("checkpoint-step000009", 9)
NEXT = Save("checkpoint-step000010", 10)


@dataclass(frozen=True)
class Scenario:
    """A directory with ``OLDER``, ``NEWER`` and perhaps ``old`` in it, where ``new`` is saved and interrupted."""

    new: Save
    old: Save | None = None

    def prepare(self, directory: Path) -> Path:
        directory.mkdir()
        for name, content in bystanders().items():
            (directory / name).write_bytes(content)
        if self.old is not None:
            self.old.write(directory)
        return directory


@cache
def bystanders() -> dict[str, bytes]:
    """The files of ``OLDER`` and ``NEWER``."""
    with TemporaryDirectory() as directory:
        for save in (OLDER, NEWER):
            save.write(Path(directory))
            assert found(Path(directory), save.name) == save
        return contents_of(Path(directory))


NAME = "checkpoint-step000005"
SCENARIOS = {
    "under a new name": Scenario(Save(NAME, 5)),
    "model-only under a new name": Scenario(Save(NAME, 5, model_only=True)),
    "over an existing one": Scenario(Save(NAME, 5), Save(NAME, 4)),
    "the very same over itself": Scenario(Save(NAME, 5), Save(NAME, 5)),
    "model-only over full": Scenario(Save(NAME, 5, model_only=True), Save(NAME, 4)),
    "full over model-only": Scenario(Save(NAME, 5), Save(NAME, 4, model_only=True)),
    "model-only over model-only": Scenario(Save(NAME, 5, model_only=True), Save(NAME, 4, model_only=True)),
    "a name that somebody else chose": Scenario(Save("last5.ckpt", 5), Save("last5.ckpt", 4)),
}


DISTINCT_LEFTOVERS = [
    "under a new name",
    "over an existing one",
    "the very same over itself",
    "model-only over full",
    "full over model-only",
]


@pytest.fixture(params=SCENARIOS)
def scenario(request) -> Scenario:
    return SCENARIOS[request.param]


@pytest.fixture
def prepared(scenario, tmp_path) -> Path:
    return scenario.prepare(tmp_path / "prepared")


def copies(prepared: Path) -> Iterator[tuple[int, Path]]:
    """Fresh copies of a directory, numbered; the one before is deleted."""
    for number in count():
        directory = prepared.with_name(f"{prepared.name}-{number}")
        shutil.copytree(prepared, directory)
        try:
            yield number, directory
        finally:
            shutil.rmtree(directory)


def interrupted(scenario: Scenario, prepared: Path) -> Iterator[Path]:
    """All directories that a crash of the save can leave, each but once; and last, what it leaves without a crash."""
    states = set()
    for at, directory in copies(prepared):
        storage = CrashingStorage(at)
        with contextlib.suppress(Crash):
            scenario.new.write(directory, storage)
        if not storage.crashed:
            assert at > 15
            assert len(states) > 5
            assert names_in(directory) == files_of_checkpoints(directory)
            yield directory
            return
        if (state := state_of(contents_of(directory))) not in states:
            states.add(state)
            yield directory


def contents_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def state_of(contents: dict[str, bytes]) -> frozenset[tuple[str, object]]:
    """Names and contents, so far as they decide what is found and what is cleared up."""
    return frozenset((name, without_times(name, content)) for name, content in contents.items())


def without_times(name: str, content: bytes) -> object:
    """What makes a file different for whoever clears up: of a temporary data file, that it is there."""
    if ".json" in name:
        try:
            return str({**json.loads(content), "details": None, "digest": None})
        except ValueError:
            return "torn"
    return "" if name.endswith(".nm-incomplete") else content


def assert_old_or_new(directory: Path, scenario: Scenario) -> Save | None:
    """Exactly what the commit rule promises of an interrupted save; which of the two it is, is returned."""
    assert contents_of(directory).items() >= bystanders().items()
    assert latest_checkpoint(directory).name == NEWER.name  # and without a warning: pytest turns ours into errors
    names = [checkpoint.name for checkpoint in list_checkpoints(directory)]
    if scenario.new.name not in names:
        assert scenario.old is None
        assert names == [OLDER.name, NEWER.name]
        with pytest.raises((CheckpointNotFoundError, IncompleteCheckpointError)):
            load_checkpoint(paths_of_name(directory, scenario.new.name).model)
        return None
    assert names == [OLDER.name, scenario.new.name, NEWER.name]
    save = found(directory, scenario.new.name)
    assert save in (scenario.old, scenario.new)
    return save


def assert_next_save_clears_up(directory: Path, before: Save | None) -> None:
    """The next save leaves its own checkpoint, all that were complete before it, and no other file."""
    NEXT.write(directory)
    assert contents_of(directory).items() >= bystanders().items()
    after = [save for save in (before, NEXT) if save is not None]
    assert [found(directory, save.name) for save in after] == after
    complete = [checkpoint.name for checkpoint in list_checkpoints(directory)]
    assert complete == [save.name for save in (OLDER, before, NEWER, NEXT) if save is not None]
    assert names_in(directory) == files_of_checkpoints(directory)


class TestOrder:
    """Each step is durable before the next."""

    def operations(self, scenario: Scenario, directory: Path) -> list[tuple[str, ...]]:
        storage = RecordingStorage()
        scenario.new.write(directory, storage)
        return storage.operations

    def test_each_file_is_written_and_synced_before_it_gets_its_name(self, scenario, prepared):
        operations = self.operations(scenario, prepared)
        renames = [operation for operation in operations if operation[0] == "rename"]
        assert renames
        for rename in renames:
            source = rename[1]
            before = operations[: operations.index(rename)]
            last = len(before) - 1 - before[::-1].index(("create", source))
            assert [operation for operation in before[last:] if operation[1:] == (source,)] == [
                ("create", source),
                ("write", source),
                ("sync_file", source),
            ]

    def test_optimizer_model_and_manifest_get_their_names_in_this_order_each_durably(self, scenario, prepared):
        operations = self.operations(scenario, prepared)
        paths = paths_of_name(prepared, scenario.new.name)
        committing = [
            i
            for i, (operation, *names) in enumerate(operations)
            if (operation == "rename" and names[0].endswith(".nm-incomplete"))
            or (operation == "remove" and names == [paths.optimizer.name] and scenario.new.model_only)
        ]
        targets = [operations[i][-1] for i in committing]
        assert targets == [paths.optimizer.name, paths.model.name, paths.manifest.name]
        sync = ("sync_directory", prepared.name)
        assert all(operations[i + 1] == sync for i in committing)

    def test_the_old_files_go_last_and_the_manifest_that_names_them_comes_before_the_first_new_file(
        self, scenario, prepared
    ):
        operations = self.operations(scenario, prepared)
        paths = paths_of_name(prepared, scenario.new.name)
        kept = [i for i, operation in enumerate(operations) if operation[0] == "keep_as"]
        if scenario.old is None:
            assert kept == []
            return
        assert len(kept) == (1 if scenario.old.model_only else 2)
        finals = (paths.model.name, paths.optimizer.name)
        aside = operations.index(("rename", f"{paths.manifest.name}.nm-previous", paths.manifest.name))
        commit = operations.index(("rename", f"{paths.manifest.name}.nm-incomplete", paths.manifest.name))
        first_new = next(i for i in range(aside, commit) if operations[i][-1] in finals)
        sync = ("sync_directory", prepared.name)
        assert sync in operations[max(kept) : aside]  # second names, durably; then the manifest that gives them
        assert operations[aside + 1] == sync
        assert aside + 1 < first_new < commit
        assert operations[commit + 1] == sync
        assert operations[commit + 2 :] == [("remove", name + ".nm-previous") for name in reversed(finals)]

    def test_a_delete_takes_the_manifest_away_first_and_durably(self, prepared, scenario):
        storage = RecordingStorage()
        paths = paths_of_name(prepared, NEWER.name)
        remove(paths, storage)
        first, second, *rest = storage.operations
        assert first[:2] in (("remove", paths.manifest.name), ("rename", paths.manifest.name))
        assert second == ("sync_directory", prepared.name)
        assert {names[0] for operation, *names in rest if operation == "remove"} >= {
            paths.model.name,
            paths.optimizer.name,
        }
        assert not [name for name in names_in(prepared) if name.startswith(NEWER.name)]
        assert found(prepared, OLDER.name) == OLDER

    def test_a_delete_of_nothing_is_fine_and_touches_nothing(self, prepared, scenario):
        before = sorted(names_in(prepared))
        remove(paths_of_name(prepared, "no-such-name"), LocalStorage())
        assert sorted(names_in(prepared)) == before

    def test_short_writes_make_the_same_files(self, tmp_path):
        one = OLDER.write(tmp_path / "at-once")
        other = OLDER.write(tmp_path / "in-pieces", ShortWritingStorage())
        assert other.model_path.read_bytes() == one.model_path.read_bytes()
        assert other.optimizer_path.read_bytes() == one.optimizer_path.read_bytes()
        assert found(tmp_path / "in-pieces", OLDER.name) == OLDER


class TestCrash:
    """A crash at any operation leaves the old checkpoint or the new one, and the next save clears up."""

    def test_at_every_operation_of_a_save(self, scenario, prepared):
        seen = []
        for directory in interrupted(scenario, prepared):
            seen.append(assert_old_or_new(directory, scenario))
            assert_next_save_clears_up(directory, seen[-1])
        # First the old one, from one operation on the new one, never back; at the end certainly.
        assert seen == sorted(seen, key=lambda save: save == scenario.new)
        assert seen[-1] == scenario.new
        assert seen[0] == scenario.old

    def test_at_every_operation_where_the_file_system_has_no_hard_links(self, tmp_path, monkeypatch):
        def no_links(source, target, **_):
            raise OSError(errno.EPERM, "Operation not permitted", os.fspath(source))

        monkeypatch.setattr(os, "link", no_links)
        scenario = SCENARIOS["over an existing one"]
        for directory in interrupted(scenario, scenario.prepare(tmp_path / "prepared")):
            assert_next_save_clears_up(directory, assert_old_or_new(directory, scenario))

    @pytest.mark.parametrize("scenario", DISTINCT_LEFTOVERS, indirect=True)
    def test_at_every_operation_of_clearing_up_after_any_crash(self, scenario, prepared):
        """The second crash hits the clean-up of the first; and after that a save over the same name works."""
        seen = set()
        for crashed in interrupted(scenario, prepared):
            expected = assert_old_or_new(crashed, scenario)
            for again, directory in copies(crashed):
                storage = CrashingStorage(again)
                with contextlib.suppress(Crash):
                    clear_leftovers(directory, storage)
                state = state_of(contents_of(directory)), expected
                if storage.crashed and state in seen:
                    continue
                seen.add(state)
                assert assert_old_or_new(directory, scenario) == expected
                if not storage.crashed:
                    assert temporary_files(directory) == []
                    assert names_in(directory) == files_of_checkpoints(directory)
                    scenario.new.write(directory)
                    assert assert_old_or_new(directory, scenario) == scenario.new
                    assert names_in(directory) == files_of_checkpoints(directory)
                    break
                assert_next_save_clears_up(directory, expected)

    def test_at_every_operation_of_a_delete(self, tmp_path):
        """The checkpoint is whole or gone, and the next writer removes what is left of its files."""
        prepared = SCENARIOS["over an existing one"].prepare(tmp_path / "prepared")
        seen = []
        for at, directory in copies(prepared):
            storage = CrashingStorage(at)
            with contextlib.suppress(Crash):
                remove(paths_of_name(directory, NAME), storage)
            names = [checkpoint.name for checkpoint in list_checkpoints(directory)]
            assert names in ([OLDER.name, NAME, NEWER.name], [OLDER.name, NEWER.name])
            before = found(directory, NAME) if NAME in names else None
            seen.append(before is not None)
            if not storage.crashed:
                break
            assert_next_save_clears_up(directory, before)
        assert seen == sorted(seen, reverse=True)
        assert seen[0]
        assert not seen[-1]

    def test_what_a_crash_leaves_of_a_damaged_checkpoint_never_comes_back_as_a_mixture(self, tmp_path):
        """Over a checkpoint that is incomplete already, there is nothing to keep; nothing else is promised for it."""
        scenario = SCENARIOS["over an existing one"]
        prepared = scenario.prepare(tmp_path / "prepared")
        broken = paths_of_name(prepared, NAME).optimizer
        broken.write_bytes(broken.read_bytes()[:-1])
        for at, directory in copies(prepared):
            storage = CrashingStorage(at)
            with contextlib.suppress(Crash):
                scenario.new.write(directory, storage)
            names = [checkpoint.name for checkpoint in list_checkpoints(directory)]
            if NAME in names:
                assert found(directory, NAME) == scenario.new
            if not storage.crashed:
                assert NAME in names
                break
            NEXT.write(directory)
            assert temporary_files(directory) == []
            assert [found(directory, save.name) for save in (OLDER, NEWER, NEXT)] == [OLDER, NEWER, NEXT]


class TestPowerLoss:
    """``tests/faults/test_power_loss.py`` loses it at every operation."""

    def test_a_new_directory_is_durable_when_the_save_returns(self, tmp_path, monkeypatch):
        """The names of all directories that were made are synced into their parents."""
        synced: list[os.stat_result] = []
        fsync = os.fsync

        def recording_fsync(descriptor):
            synced.append(os.fstat(descriptor))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", recording_fsync)
        checkpoint = OLDER.write(tmp_path / "a" / "b", LocalStorage())
        for directory in (tmp_path, tmp_path / "a", tmp_path / "a" / "b"):
            assert any(os.path.samestat(status, directory.stat()) for status in synced), directory
        for file in (checkpoint.model_path, checkpoint.optimizer_path, checkpoint.paths.manifest):
            assert any(os.path.samestat(status, file.stat()) for status in synced), file


FULL_DISK = OSError(errno.ENOSPC, "No space left on device")


class TestErrors:
    """An error of the file system is one typed error; what was complete stays so, and nothing temporary is left."""

    def test_at_every_operation(self, scenario, prepared):
        """The old checkpoint is back, or the new one is complete and the old one's files wait for the next save."""
        for at, directory in copies(prepared):
            storage = FailingStorage(at, FULL_DISK)
            error = self.error_of(scenario, directory, storage)
            if storage.refused is None:
                break
            operation, path = storage.refused
            save = assert_old_or_new(directory, scenario)
            if error is None:
                assert save == scenario.new
                assert_next_save_clears_up(directory, save)
                continue
            assert save == scenario.old
            assert str(path) in str(error), operation
            assert "No space left on device" in str(error)
            assert "Free space" in str(error)
            assert error.__cause__.errno == errno.ENOSPC
            assert temporary_files(directory) == []
            assert names_in(directory) == files_of_checkpoints(directory)
        assert at > 15

    @pytest.mark.parametrize("name", ["under a new name", "over an existing one", "model-only over full"])
    def test_at_every_operation_when_nothing_works_from_then_on(self, name, tmp_path):
        """A disk that became read-only lets nobody clear up; the next writer does, when it is well again."""
        scenario = SCENARIOS[name]
        read_only = OSError(errno.EROFS, "Read-only file system")
        for at, directory in copies(scenario.prepare(tmp_path / "prepared")):
            storage = FailingStorage(at, read_only, for_good=True)
            error = self.error_of(scenario, directory, storage)
            if storage.refused is None:
                break
            assert error is None or "Read-only file system" in str(error)
            assert_next_save_clears_up(directory, assert_old_or_new(directory, scenario))
        assert at > 15

    def error_of(self, scenario: Scenario, directory: Path, storage: FailingStorage) -> CheckpointWriteError | None:
        """The error of a save; ``None`` if it succeeded, with a warning if it could not remove the old one."""
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                scenario.new.write(directory, storage)
            except CheckpointWriteError as error:
                return error
        assert [warning.category for warning in warned] == [LeftoverWarning] * (storage.refused is not None)
        if storage.refused is not None:
            operation, path = storage.refused
            assert (operation, path.suffix) == ("remove", PREVIOUS_SUFFIX)
            assert str(path) in str(warned[0].message)
        return None

    def test_a_real_full_device_is_named(self, tmp_path):
        """``write(2)`` does not tell which file it refused; the message does."""

        class FullDevice(LocalStorage):
            def create(self, path):
                return Path("/dev/full").open("wb", buffering=0)

        with pytest.raises(CheckpointWriteError, match=r"step000001-optimizer\.pt\.nm-incomplete.*No space left"):
            OLDER.write(tmp_path, FullDevice())

    def test_a_directory_that_is_a_file_is_named(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(CheckpointWriteError, match=r"file.*choose another one"):
            OLDER.write(tmp_path / "file")
        with pytest.raises(CheckpointWriteError, match=r"file.*choose another one"):
            OLDER.write(tmp_path / "file" / "below")

    def test_a_url_is_refused_before_anything_is_written(self):
        with pytest.raises(CheckpointWriteError, match=r"s3://bucket/run.*only local directories"):
            resolve_directory("s3://bucket/run")

    def test_training_on_during_a_save_is_noticed(self, tmp_path):
        """The model is digested before the files are written, and must not change until they are."""
        weight = torch.zeros(3)

        class TrainsOn(LocalStorage):
            def create(self, path):
                weight.add_(1)
                return super().create(path)

        OLDER.write(tmp_path)
        with pytest.raises(CheckpointWriteError, match=r"step000002-model\.pt: the model changed while it was saved"):
            write_checkpoint(
                paths_of_name(tmp_path, "checkpoint-step000002"),
                stage_checkpoint(2, {"state_dict": {"weight": weight}}, {}),
                TrainsOn(),
            )
        assert names_in(tmp_path) == files_of_checkpoints(tmp_path)
        assert found(tmp_path, OLDER.name) == OLDER

    @pytest.mark.parametrize("name", ["weights.bin", "weights", "a-optimizer.pt", "a.json"])
    def test_a_model_file_that_no_reader_could_find_again_is_refused(self, name, tmp_path):
        with pytest.raises(CheckpointWriteError, match=r"-model\.pt, or in \.ckpt"):
            write_checkpoint(paths_of_model_file(tmp_path / name), stage_checkpoint(1, {"state_dict": {}}, {}))
        assert names_in(tmp_path) == set()
