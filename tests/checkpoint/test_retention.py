"""What a policy keeps. Broken off at every operation, each checkpoint is whole, whole without optimizer, or gone."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import resource
import shutil
import warnings
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuromanifold_gpt import (
    Retention,
    apply_retention,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)
from neuromanifold_gpt.checkpoint import reader, retention
from neuromanifold_gpt.checkpoint.errors import CheckpointWriteError, DamagedCheckpointWarning, RetentionWarning
from neuromanifold_gpt.checkpoint.leftovers import clear_leftovers
from neuromanifold_gpt.checkpoint.naming import paths_of_name, step_name
from neuromanifold_gpt.checkpoint.retention import enforce
from neuromanifold_gpt.checkpoint.writer import stage_checkpoint, write_checkpoint

from ..faults.storages import (
    Crash,
    CrashingStorage,
    FailingStorage,
    ObservedStorage,
    PowerLossStorage,
    RecordingStorage,
)
from .small_saves import files_of_checkpoints, found, names_in, temporary_files

FULL, MODEL_ONLY, GONE = "full", "model-only", "gone"


@pytest.fixture(autouse=True)
def nothing_verified_yet(monkeypatch):
    """As in a new process."""
    monkeypatch.setattr(retention, "_judged", {})


def write(directory: Path, step: int, loss: float | None = None, *, name: str | None = None, model_only: bool = False):
    """A checkpoint whose tensors hold its step."""
    value = torch.full((3,), float(step))
    model = {"global_step": step, "state_dict": {"weight": value}, "config": {"version": step}}
    optimizer = {"optimizer_states": [{"moment": value + 0.5}], "lr_schedulers": [{"version": step}]}
    metrics = {} if loss is None else {"val_loss": loss, "accuracy": -loss}
    staged = stage_checkpoint(step, model, None if model_only else optimizer, metrics=metrics)
    return write_checkpoint(paths_of_name(directory, name or step_name(step)), staged, ObservedStorage())


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def state_of(directory: Path) -> dict[int, str]:
    """What is there by step, every byte of it verified."""
    there = {}
    for checkpoint in list_checkpoints(directory):
        assert found(directory, checkpoint.name).version == checkpoint.step
        there[checkpoint.step] = MODEL_ONLY if checkpoint.model_only else FULL
    return there


def kept(directory: Path) -> list[int]:
    return [checkpoint.step for checkpoint in list_checkpoints(directory)]


class TestRules:
    def directory(self, tmp_path: Path) -> Path:
        for step, loss in zip(range(10, 80, 10), [7.0, 1.0, 5.0, 0.5, 6.0, 2.0, 3.0], strict=True):
            write(tmp_path, step, loss)
        return tmp_path

    @pytest.mark.parametrize(
        ("policy", "expected"),
        [
            (Retention(), [10, 20, 30, 40, 50, 60, 70]),
            (Retention(keep_last=1), [70]),
            (Retention(keep_last=3), [50, 60, 70]),
            (Retention(keep_last=99), [10, 20, 30, 40, 50, 60, 70]),
            (Retention(keep_best=1, monitor="val_loss"), [40, 70]),
            (Retention(keep_best=3, monitor="val_loss"), [20, 40, 60, 70]),
            (Retention(keep_best=2, monitor="accuracy", mode="max"), [20, 40, 70]),
            (Retention(keep_every_n_steps=30), [30, 60, 70]),
            (Retention(keep_last=2, keep_best=1, monitor="val_loss", keep_every_n_steps=50), [40, 50, 60, 70]),
        ],
    )
    def test_each_keeps_what_it_says_and_the_newest_stays_in_any_case(self, policy, expected, tmp_path):
        directory = self.directory(tmp_path)
        before = kept(directory)
        result = apply_retention(directory, policy)
        assert kept(directory) == expected
        assert [checkpoint.step for checkpoint in result.removed] == [step for step in before if step not in expected]
        assert result.made_model_only == ()
        assert names_in(directory) == files_of_checkpoints(directory)
        assert apply_retention(directory, policy) == retention.RetentionResult()

    def test_older_ones_become_model_only_and_are_whole(self, tmp_path):
        directory = self.directory(tmp_path)
        sizes = {checkpoint.step: checkpoint.size_bytes for checkpoint in list_checkpoints(directory)}
        result = apply_retention(str(directory), Retention(keep_optimizer_last=2, keep_last=5))
        assert state_of(directory) == {30: MODEL_ONLY, 40: MODEL_ONLY, 50: MODEL_ONLY, 60: FULL, 70: FULL}
        assert [checkpoint.step for checkpoint in result.made_model_only] == [30, 40, 50]
        assert names_in(directory) == files_of_checkpoints(directory)
        for checkpoint in list_checkpoints(directory):
            verify_checkpoint(checkpoint)
            loaded = load_checkpoint(checkpoint, load_optimizer=False)
            assert loaded.model_state["weight"].tolist() == [checkpoint.step] * 3
            assert checkpoint.metrics.keys() == {"val_loss", "accuracy"}
            assert (checkpoint.size_bytes < sizes[checkpoint.step]) == (checkpoint.step < 60)
        assert latest_checkpoint(directory, resumable=True).step == 70

    def test_the_newest_from_which_training_can_resume_stays(self, tmp_path):
        write(tmp_path, 1)
        write(tmp_path, 2)
        write(tmp_path, 3, model_only=True)
        write(tmp_path, 4, model_only=True)
        apply_retention(tmp_path, Retention(keep_last=1, keep_optimizer_last=1))
        assert state_of(tmp_path) == {2: FULL, 4: MODEL_ONLY}

    def test_of_equal_ones_the_earlier_is_best_and_what_is_no_number_never_is(self, tmp_path):
        for step, loss in ((1, float("nan")), (2, 1.0), (3, 1.0), (4, None), (5, float("inf"))):
            write(tmp_path, step, loss)
        apply_retention(tmp_path, Retention(keep_best=1, monitor="val_loss"))
        assert kept(tmp_path) == [2, 5]

    def test_a_metric_that_no_checkpoint_has_removes_nothing_and_is_said(self, tmp_path):
        directory = self.directory(tmp_path)
        with pytest.warns(RetentionWarning, match=r"'val_los', so that nothing.*accuracy, val_loss"):
            apply_retention(directory, Retention(keep_best=1, keep_last=1, monitor="val_los", keep_optimizer_last=1))
        assert len(state_of(directory)) == 7

    def test_other_names_are_neither_counted_nor_touched(self, tmp_path):
        for step in (1, 2, 3):
            write(tmp_path, step)
            write(tmp_path, step, name=f"other{step}")
        write(tmp_path, 9, name="checkpoint-step000001-best")
        foreign = {"notes.txt": b"mine", "checkpoint-step000001.ckpt": b"x", "checkpoint-step000001-ema.pt": b"y"}
        for name, content in foreign.items():
            (tmp_path / name).write_bytes(content)
        apply_retention(tmp_path, Retention(keep_last=1))
        names = {checkpoint.name for checkpoint in list_checkpoints(tmp_path)}
        assert names == {step_name(3), "other1", "other2", "other3", "checkpoint-step000001-best"}
        assert {name: (tmp_path / name).read_bytes() for name in foreign} == foreign
        apply_retention(tmp_path, Retention(keep_last=1), names="other*")
        names = {checkpoint.name for checkpoint in list_checkpoints(tmp_path)}
        assert names == {step_name(3), "other3", "checkpoint-step000001-best"}

    def test_a_directory_that_is_not_there_is_fine(self, tmp_path):
        assert apply_retention(tmp_path / "none", Retention(keep_last=1)).removed == ()
        assert not (tmp_path / "none").exists()

    @pytest.mark.parametrize(
        "wrong",
        [
            {"keep_last": 0},
            {"keep_last": -1},
            {"keep_last": True},
            {"keep_every_n_steps": 1.5},
            {"keep_optimizer_last": 0},
            {"keep_best": 1},
            {"monitor": "val_loss"},
            {"keep_best": 1, "monitor": "val_loss", "mode": "least"},
        ],
    )
    def test_nonsense_is_refused(self, wrong):
        with pytest.raises(ValueError, match=r"expected .* found"):
            Retention(**wrong)


class TestDamage:
    """A damaged checkpoint is no successor, and is left for somebody to look at."""

    @pytest.mark.parametrize("part", ["model", "optimizer", "manifest"])
    @pytest.mark.parametrize("how", ["flipped", "cut short", "missing"])
    def test_an_older_one_counts_in_its_place(self, part, how, tmp_path):
        for step in (1, 2, 3, 4):
            write(tmp_path, step)
        victim = getattr(paths_of_name(tmp_path, step_name(4)), part)
        if how == "flipped":
            damage(victim)
        elif how == "cut short":
            victim.write_bytes(victim.read_bytes()[:-1])
        else:
            victim.unlink()
        others = {path: path.read_bytes() for path in tmp_path.glob("*000004*")}
        with pytest.warns(DamagedCheckpointWarning, match="not counting checkpoint-step000004"):
            apply_retention(tmp_path, Retention(keep_last=2, keep_optimizer_last=1))
        assert found(tmp_path, step_name(3)).model_only is False
        assert found(tmp_path, step_name(2)).model_only is True
        assert not paths_of_name(tmp_path, step_name(1)).manifest.exists()
        assert {path: path.read_bytes() for path in others} == others

    def test_damage_after_it_was_verified_is_noticed(self, tmp_path):
        for step in (1, 2, 3):
            write(tmp_path, step)
        apply_retention(tmp_path, Retention(keep_last=2))
        write(tmp_path, 4)
        damage(paths_of_name(tmp_path, step_name(3)).optimizer)
        with pytest.warns(DamagedCheckpointWarning, match="not counting checkpoint-step000003"):
            apply_retention(tmp_path, Retention(keep_last=2))
        assert kept(tmp_path) == [2, 3, 4]
        apply_retention(tmp_path, Retention(keep_last=2))  # said once, and read once
        assert kept(tmp_path) == [2, 3, 4]

    def test_one_that_could_not_be_read_for_a_while_counts_again_later(self, tmp_path):
        checkpoint = write(tmp_path, 1)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest_free = os.open(os.devnull, os.O_RDONLY)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
        try:
            with pytest.warns(DamagedCheckpointWarning, match=os.strerror(errno.EMFILE)):
                assert not retention._is_intact(checkpoint)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert retention._is_intact(checkpoint)

    def test_without_an_intact_one_nothing_goes(self, tmp_path):
        for step in (1, 2, 3):
            damage(write(tmp_path, step).model_path)
        with pytest.warns(DamagedCheckpointWarning):
            apply_retention(tmp_path, Retention(keep_last=1, keep_optimizer_last=1))
        assert kept(tmp_path) == [1, 2, 3]

    def test_a_checkpoint_is_read_once_while_it_counts_and_one_just_written_never(self, tmp_path, monkeypatch):
        model, reads = torch.nn.Linear(2, 2), []
        verify = reader.verify
        monkeypatch.setattr(retention, "verify", lambda checkpoint: reads.append(checkpoint.step) or verify(checkpoint))
        for step in (1, 2, 3):
            save_checkpoint(tmp_path, step=step, model=model)
        for step in (4, 5, 6, 7):
            save_checkpoint(tmp_path, step=step, model=model, retention=Retention(keep_last=3))
        assert kept(tmp_path) == [5, 6, 7]
        assert reads == [3, 2]


class TestAfterASave:
    def save(self, directory: Path, step: int, policy: Retention, **options) -> None:
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.Adam(model.parameters())
        save_checkpoint(directory, step=step, model=model, optimizers=optimizer, retention=policy, **options)

    def test_in_a_plain_loop_each_save_carries_the_policy_out(self, tmp_path):
        policy = Retention(keep_last=2, keep_best=1, monitor="loss", keep_optimizer_last=1)
        seen = []
        for step, loss in enumerate([3.0, 1.0, 2.0, 4.0, 5.0], start=1):
            self.save(tmp_path, step, policy, metrics={"loss": loss})
            seen.append({c.step: c.model_only for c in list_checkpoints(tmp_path)})
        assert seen[0] == {1: False}
        assert seen[-1] == {2: True, 4: True, 5: False}
        assert names_in(tmp_path) == files_of_checkpoints(tmp_path)

    def test_checkpoints_of_a_course_that_was_left_do_not_count(self, tmp_path):
        """Who goes back to step 20 and trains on from there loses neither what is saved now nor what was."""
        for step in (10, 20, 30, 40):
            self.save(tmp_path, step, Retention())
        self.save(tmp_path, 21, Retention(keep_last=2))
        assert kept(tmp_path) == [20, 21, 30, 40]
        self.save(tmp_path, 22, Retention(keep_last=1))
        assert kept(tmp_path) == [22, 30, 40]

    def test_a_checkpoint_with_a_name_of_its_own_is_left_alone(self, tmp_path):
        self.save(tmp_path, 1, Retention(keep_last=1), name="best")
        for step in (1, 2, 3):
            self.save(tmp_path, step, Retention(keep_last=1))
        assert [checkpoint.name for checkpoint in list_checkpoints(tmp_path)] == ["best", step_name(3)]

    def test_a_failed_removal_says_that_the_save_itself_is_whole(self, tmp_path, monkeypatch):
        self.save(tmp_path, 1, Retention())

        def refuse(*_):
            raise OSError(errno.EACCES, "Permission denied", "some file")

        monkeypatch.setattr(retention, "remove", refuse)
        with pytest.raises(CheckpointWriteError, match=r"some file: removing .* Permission denied.*newest included"):
            self.save(tmp_path, 2, Retention(keep_last=1))
        assert latest_checkpoint(tmp_path).step == 2


POLICY = Retention(keep_last=2, keep_best=1, monitor="val_loss", keep_optimizer_last=1)
BEFORE = dict.fromkeys(range(1, 6), FULL)
AFTER = {2: MODEL_ONLY, 4: MODEL_ONLY, 5: FULL}


@pytest.fixture
def prepared(tmp_path) -> Path:
    directory = tmp_path / "prepared"
    for step, loss in enumerate([3.0, 1.0, 2.0, 4.0, 5.0], start=1):
        write(directory, step, loss)
    write(directory, 3, name="own")
    return directory


class TestBrokenOff:
    def copies(self, prepared: Path) -> Iterator[tuple[int, Path]]:
        for number in count():
            directory = prepared.with_name(f"{prepared.name}-{number}")
            shutil.copytree(prepared, directory)
            try:
                yield number, directory
            finally:
                shutil.rmtree(directory)

    def assert_each_is_whole_or_gone(self, directory: Path) -> dict[int, str]:
        """Each that was there is as it was, or as it is to become."""
        there = {}
        for checkpoint in list_checkpoints(directory):
            save = found(directory, checkpoint.name)  # reads every byte
            assert save.version == checkpoint.step
            if checkpoint.name not in ("own", "next"):
                there[checkpoint.step] = MODEL_ONLY if save.model_only else FULL
        for step, before in BEFORE.items():
            assert there.get(step, GONE) in (before, AFTER.get(step, GONE)), step
        assert latest_checkpoint(directory, resumable=True).step == 5
        assert found(directory, "own").version == 3
        return there

    def assert_the_next_ends_it(self, directory: Path, there: dict[int, str]) -> None:
        """The next writer clears up, without a change to what is there; the policy then does the rest."""
        write(directory, 0, name="next")
        assert temporary_files(directory) == []
        assert names_in(directory) == files_of_checkpoints(directory)
        assert self.assert_each_is_whole_or_gone(directory) == there
        enforce(directory, POLICY, storage=ObservedStorage())
        assert self.assert_each_is_whole_or_gone(directory) == AFTER
        assert names_in(directory) == files_of_checkpoints(directory)

    def test_at_every_operation(self, prepared):
        seen = []
        for at, directory in self.copies(prepared):
            storage = CrashingStorage(at)
            with contextlib.suppress(Crash):
                enforce(directory, POLICY, storage=storage)
            there = self.assert_each_is_whole_or_gone(directory)
            seen.append(there)
            again = directory.with_name("again")
            shutil.copytree(directory, again)
            enforce(again, POLICY, storage=ObservedStorage())
            assert self.assert_each_is_whole_or_gone(again) == AFTER
            assert names_in(again) == files_of_checkpoints(again)
            shutil.rmtree(again)
            self.assert_the_next_ends_it(directory, there)
            if not storage.crashed:
                break
        assert at > 30
        assert seen[0] == BEFORE
        assert seen[-1] == AFTER
        assert len({tuple(sorted(there.items())) for there in seen}) == 1 + len(BEFORE) - 1

    def test_at_every_operation_of_clearing_up_after_a_crash_at_any(self, prepared):
        tried, seen = 0, set()
        for at, crashed in self.copies(prepared):
            storage = CrashingStorage(at)
            with contextlib.suppress(Crash):
                enforce(crashed, POLICY, storage=storage)
            if not storage.crashed:
                break
            if (state := frozenset(names_in(crashed))) in seen:
                continue
            seen.add(state)
            there = self.assert_each_is_whole_or_gone(crashed)
            for again, directory in self.copies(crashed):
                clearing = CrashingStorage(again)
                with contextlib.suppress(Crash):
                    clear_leftovers(directory, clearing)
                assert self.assert_each_is_whole_or_gone(directory) == there
                if not clearing.crashed:
                    assert names_in(directory) == files_of_checkpoints(directory)
                    break
                tried += 1
                write(directory, 0, name="next")
                assert names_in(directory) == files_of_checkpoints(directory)
        assert tried > 20

    @pytest.mark.slow
    def test_in_every_state_that_a_power_loss_can_leave(self, prepared, tmp_path):
        chosen, states = random.Random(0), 0
        for at, directory in self.copies(prepared):
            storage = PowerLossStorage(at, directory)
            with contextlib.suppress(Crash):
                enforce(directory, POLICY, storage=storage)
            for files in storage.states_after_power_loss(chosen):
                after = tmp_path / "after"
                after.mkdir()
                for name, content in files.items():
                    (after / name).write_bytes(content)
                self.assert_the_next_ends_it(after, self.assert_each_is_whole_or_gone(after))
                shutil.rmtree(after)
                states += 1
            if not storage.crashed:
                break
        assert states > 60

    @pytest.mark.parametrize("for_good", [False, True])
    @pytest.mark.slow
    def test_by_an_error_at_every_operation(self, for_good, prepared):
        for at, directory in self.copies(prepared):
            storage = FailingStorage(at, OSError(errno.EIO, "Input/output error"), for_good=for_good)
            message = self.error_of(directory, storage)
            if message is None:
                break
            assert str(storage.refused[1]) in message
            assert "Input/output error" in message
            self.assert_the_next_ends_it(directory, self.assert_each_is_whole_or_gone(directory))
        assert at > 30

    def error_of(self, directory: Path, storage: FailingStorage) -> str | None:
        try:
            enforce(directory, POLICY, storage=storage)
        except CheckpointWriteError as error:
            return str(error)
        assert storage.refused is None
        return None

    def test_the_manifest_is_rewritten_durably_before_the_optimizer_file_goes(self, prepared):
        for _, directory in itertools.islice(self.copies(prepared), 1):
            storage = RecordingStorage()
            enforce(directory, Retention(keep_optimizer_last=4), storage=storage)
        name = step_name(1)
        assert storage.operations == [
            ("keep_as", f"{name}.json", f"{name}.json.nm-incomplete"),
            ("remove", f"{name}.json.nm-incomplete"),  # of what might have that name
            ("sync_directory", directory.name),
            ("create", f"{name}.json.nm-previous"),
            ("write", f"{name}.json.nm-previous"),
            ("sync_file", f"{name}.json.nm-previous"),
            ("rename", f"{name}.json.nm-previous", f"{name}.json"),
            ("sync_directory", directory.name),
            ("remove", f"{name}-optimizer.pt"),
            ("sync_directory", directory.name),
            ("remove", f"{name}.json.nm-incomplete"),
        ]


@given(
    losses=st.lists(st.floats(0, 9) | st.none(), min_size=1, max_size=8),
    model_only=st.sets(st.integers(1, 8)),
    damaged=st.sets(st.integers(1, 8), max_size=3),
    numbers=st.tuples(*[st.none() | st.integers(1, 4)] * 4),
)
@settings(max_examples=60, deadline=None)
def test_whatever_is_there_the_newest_intact_and_resumable_stay(losses, model_only, damaged, numbers, tmp_path_factory):
    directory = tmp_path_factory.mktemp("any")
    for step, loss in enumerate(losses, start=1):
        checkpoint = write(directory, step, loss, model_only=step in model_only)
        if step in damaged:
            damage(checkpoint.model_path)
    last, best, every, optimizers = numbers
    policy = Retention(
        keep_last=last,
        keep_best=best,
        monitor="val_loss" if best else None,
        keep_every_n_steps=every,
        keep_optimizer_last=optimizers,
    )
    steps = range(1, len(losses) + 1)
    intact = [step for step in steps if step not in damaged]
    resumable = [step for step in intact if step not in model_only]
    with warnings.catch_warnings(action="ignore"):
        apply_retention(directory, policy)
    there = {c.step: c for c in list_checkpoints(directory)}
    assert set(intact[-1:] + intact[-(last or 1) :] + resumable[-1:]) <= set(there)
    assert all(not there[step].model_only for step in resumable[-(optimizers or 1) :] if step in there)
    for step in set(there) - damaged:
        assert found(directory, step_name(step)).version == step
    if not intact:
        assert set(there) == set(steps)
