"""Files of the user in the same directory: never touched, never in the way, whatever their names look like."""

from __future__ import annotations

import json
import os
import signal
import warnings
from pathlib import Path

import pytest
import torch

from neuromanifold_gpt import latest_checkpoint, list_checkpoints, load_checkpoint
from neuromanifold_gpt.checkpoint.commit import remove
from neuromanifold_gpt.checkpoint.leftovers import clear_leftovers
from neuromanifold_gpt.checkpoint.naming import paths_of_name
from neuromanifold_gpt.checkpoint.storage import LocalStorage

from ..faults.storages import Crash, CrashingStorage
from .small_saves import Save, files_of_checkpoints, found, names_in, temporary_files

FIRST, SECOND = Save("checkpoint-step000001", 1), Save("checkpoint-step000002", 2)


@pytest.fixture
def users_files(tmp_path) -> dict[str, bytes]:
    """A directory full of things that a careless pattern would take for ours."""
    contents = {
        "config.json": b'{"n_layer": 2}',
        "checkpoint-step000007.json": b'{"format": "something else", "files": {}}',
        "checkpoint-step000008.json": b"",
        "checkpoint-step000003-optimizer.pt": b"an optimizer file without a manifest",
        "nm-incomplete": b"",
        "notes-about-x.nm-incomplete.txt": b"",
        "manifest.json.bak": b"neuromanifold_gpt separated checkpoint",
        "\xe9t\xe9 model.pt": b"accents and blanks",
        ".json": b"[]",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    torch.save({"w": torch.ones(2)}, tmp_path / "gpt-model.pt")
    (tmp_path / "gpt.json").write_text(json.dumps({"format": "gpt", "n_layer": 2}))
    return {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def leave_a_crash_behind(directory: Path) -> None:
    FIRST.write(directory)
    with pytest.raises(Crash):
        Save(FIRST.name, 9).write(directory, CrashingStorage(24))
    assert temporary_files(directory)


def test_clearing_up_after_a_crash_touches_none_of_them(users_files, tmp_path):
    leave_a_crash_behind(tmp_path)
    clear_leftovers(tmp_path, LocalStorage())
    assert temporary_files(tmp_path) == []
    assert {name: (tmp_path / name).read_bytes() for name in users_files} == users_files
    assert names_in(tmp_path) == set(users_files) | files_of_checkpoints(tmp_path)
    assert found(tmp_path, FIRST.name) == FIRST


def test_none_of_them_is_listed_or_warned_about(users_files, tmp_path):
    assert list_checkpoints(tmp_path) == []
    assert latest_checkpoint(tmp_path) is None
    FIRST.write(tmp_path)
    assert [checkpoint.name for checkpoint in list_checkpoints(tmp_path)] == [FIRST.name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert latest_checkpoint(tmp_path).name == FIRST.name


def test_a_model_beside_its_own_json_loads_by_its_content(users_files, tmp_path):
    """``gpt-model.pt`` and ``gpt.json`` have the names of a model file and its manifest, and are neither."""
    loaded = load_checkpoint(tmp_path / "gpt-model.pt", load_optimizer=False)
    assert loaded.form == "plain"
    assert loaded.model_state["w"].tolist() == [1.0, 1.0]


def test_a_model_file_copied_without_its_manifest_is_kept(tmp_path):
    """Named as ours, made by us, but standing alone: it is the user's, and no save was interrupted there."""
    copied = Save("shared", 5).write(tmp_path / "elsewhere").model_path.read_bytes()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "shared-model.pt").write_bytes(copied)
    leave_a_crash_behind(tmp_path / "here")
    SECOND.write(tmp_path / "here")
    assert (tmp_path / "here" / "shared-model.pt").read_bytes() == copied
    assert load_checkpoint(tmp_path / "here" / "shared-model.pt", load_optimizer=False).config == {"version": 5}


def test_a_file_that_took_the_place_of_an_uncommitted_one_is_kept(tmp_path):
    """A save was killed before its manifest; then the user put a model of his own under that name."""
    for at in range(40):
        directory = tmp_path / str(at)
        with pytest.raises(Crash):
            FIRST.write(directory, CrashingStorage(at))
        paths = paths_of_name(directory, FIRST.name)
        if paths.model.exists():
            break
    ours = paths.model.read_bytes()
    paths.model.write_bytes(ours[::-1])  # of the same size
    clear_leftovers(directory, LocalStorage())
    assert names_in(directory) == {paths.model.name}
    assert paths.model.read_bytes() == ours[::-1]


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint-step000009.json",
        "checkpoint-step000009-model.pt",
        "old.nm-previous",
        "checkpoint-step000009.json.nm-incomplete",
        "checkpoint-step000001-model.pt.nm-previous.d",
    ],
)
def test_directories_with_such_names_are_in_nobodys_way(name, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / name / "kept").write_text("kept")
    leave_a_crash_behind(tmp_path)
    assert latest_checkpoint(tmp_path).name == FIRST.name
    SECOND.write(tmp_path)
    assert [found(tmp_path, save.name) for save in (FIRST, SECOND)] == [FIRST, SECOND]
    assert (tmp_path / name / "kept").read_text() == "kept"
    if name.endswith(".json"):
        remove(paths_of_name(tmp_path, name.removesuffix(".json")), LocalStorage())
        assert (tmp_path / name / "kept").read_text() == "kept"


@pytest.fixture
def alarm():
    """An error instead of waiting forever."""

    def give_up(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_json_that_cannot_be_read_or_opened_is_no_checkpoint(tmp_path, alarm):
    """An unreadable file, a pipe that nobody writes to, and links to nothing, to themselves and to something else."""
    FIRST.write(tmp_path)
    (tmp_path / "unreadable.json").symlink_to("/proc/self/mem")  # opens, and refuses to be read, for root as well
    (tmp_path / "nothing.json").symlink_to(tmp_path / "no-such-file")
    (tmp_path / "itself.json").symlink_to(tmp_path / "itself.json")
    (tmp_path / "elsewhere.json").symlink_to("/etc/hostname")
    os.mkfifo(tmp_path / "pipe.json")
    assert [checkpoint.name for checkpoint in list_checkpoints(tmp_path)] == [FIRST.name]
    assert latest_checkpoint(tmp_path).name == FIRST.name
    leave_a_crash_behind(tmp_path)
    SECOND.write(tmp_path)
    assert temporary_files(tmp_path) == []


def test_a_user_who_removed_half_of_what_was_set_aside_can_still_save(tmp_path):
    """Interrupted while it was replaced, then damaged by hand: that checkpoint is lost, but not the next saves."""
    FIRST.write(tmp_path)
    for at in range(60):
        with pytest.raises(Crash):
            Save(FIRST.name, 9).write(tmp_path, CrashingStorage(at))
        if "nm-previous" in list_checkpoints(tmp_path)[0].model_path.name:
            break
    list_checkpoints(tmp_path)[0].optimizer_path.unlink()
    SECOND.write(tmp_path)
    assert [checkpoint.name for checkpoint in list_checkpoints(tmp_path)] == [SECOND.name]
    assert found(tmp_path, SECOND.name) == SECOND
    Save(FIRST.name, 7).write(tmp_path)
    assert found(tmp_path, FIRST.name) == Save(FIRST.name, 7)
    assert names_in(tmp_path) == files_of_checkpoints(tmp_path)
