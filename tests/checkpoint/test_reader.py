"""Reading: what is damaged, exchanged or hostile is refused by a typed error that names it."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from neuromanifold_gpt import Checkpoint, latest_checkpoint, list_checkpoints, load_checkpoint, verify_checkpoint
from neuromanifold_gpt.checkpoint.archive import TensorRecord
from neuromanifold_gpt.checkpoint.commit import open_complete
from neuromanifold_gpt.checkpoint.digest import file_digest
from neuromanifold_gpt.checkpoint.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    DamagedCheckpointError,
    DamagedCheckpointWarning,
    IncompleteCheckpointError,
    MismatchedPairError,
    MissingOptimizerError,
    UntrustedPickleError,
)
from neuromanifold_gpt.checkpoint.manifest import FileRecord, Manifest
from neuromanifold_gpt.checkpoint.naming import paths_of_name
from neuromanifold_gpt.checkpoint.reader import read_file
from neuromanifold_gpt.checkpoint.writer import STAMP_KEY, stage_checkpoint, write_checkpoint

from .archives import same
from .small_saves import Save, found

NAME = "checkpoint-step000050"
MODEL = {
    "global_step": 50,
    "state_dict": {"a.weight": torch.arange(20.0), "b.weight": torch.ones(3, 3), "b.bias": torch.zeros(0)},
    "config": {"n_layer": 2},
}
OPTIMIZER = {
    "optimizer_states": [{"state": {0: {"exp_avg": torch.full((20,), 2.0), "step": torch.tensor(5.0)}}}],
    "lr_schedulers": [{"last_epoch": 5}],
}


def save(directory: Path, *, shift: float = 0.0, name: str = NAME, step: int = 50) -> Checkpoint:
    """A checkpoint; another ``shift`` is another run, equal in every size."""
    model = {**MODEL, "state_dict": {key: value + shift for key, value in MODEL["state_dict"].items()}}
    return write_checkpoint(paths_of_name(directory, name), stage_checkpoint(step, model, OPTIMIZER))


@pytest.fixture
def checkpoint(tmp_path) -> Checkpoint:
    return save(tmp_path)


@pytest.fixture(params=["model", "optimizer"])
def role(request) -> str:
    return request.param


def flip(path: Path, at: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def regions(path: Path) -> dict[str, range]:
    """Where the parts of an archive lie."""
    result = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            content = path.read_bytes()
            names, extra = content[info.header_offset + 26], content[info.header_offset + 28]
            start = info.header_offset + 30 + names + extra
            result[f"header of {info.filename}"] = range(info.header_offset, start)
            result[info.filename] = range(start, start + info.file_size)
        result["central directory"] = range(archive.start_dir, path.stat().st_size - 22)
        result["end record"] = range(path.stat().st_size - 22, path.stat().st_size)
    return result


class TestIntact:
    def test_both_files_come_back_as_they_were_saved(self, checkpoint):
        assert same(read_file(checkpoint, "model"), MODEL)
        assert same(read_file(checkpoint, "optimizer"), OPTIMIZER)
        assert same(read_file(checkpoint, "optimizer", verify=False), OPTIMIZER)
        assert same(read_file(checkpoint, "optimizer", trusted=True), OPTIMIZER)

    @pytest.mark.parametrize("verify", [True, False])
    def test_trees_of_every_shape_come_back_the_same_from_a_checkpoint(self, verify, tmp_path):
        """The reader hands tensors out by their order, so tied, empty, keyed and nested ones must not shift it."""
        shared = torch.randn(4)
        metadata = torch.nn.Linear(2, 2).state_dict()
        model = {
            "keys": {torch.tensor([1.0]): torch.tensor([2.0]), "x": torch.tensor([3.0])},
            "tied": [shared, shared.view(2, 2), shared[:2], shared],
            "empty": [torch.zeros(0), torch.zeros(0, 3), torch.zeros(2, 0)],
            "equal": [torch.zeros(5), torch.zeros(5)],
            "parameter": torch.nn.Parameter(torch.tensor([4.0])),
            "grad": torch.ones(1, requires_grad=True),
            "dtypes": (torch.ones(4, dtype=torch.bfloat16), torch.ones(4, dtype=torch.uint16), torch.tensor(True)),
            "format": torch.randn(2, 3, 2, 2).to(memory_format=torch.channels_last),
            "state_dict": metadata,
        }
        checkpoint = write_checkpoint(paths_of_name(tmp_path, NAME), stage_checkpoint(1, model, {}))
        read = read_file(checkpoint, "model", verify=verify)
        (key, value), (_, x) = read["keys"].items()
        assert [key.item(), value.item(), x.item()] == [1.0, 2.0, 3.0]
        for name in set(model) - {"keys"}:
            assert same(read[name], model[name]), name
        read["tied"][0].fill_(9)
        assert [tensor.flatten().tolist() for tensor in read["tied"]] == [
            [9] * 4,
            [9] * 4,
            shared[:2].tolist(),
            [9] * 4,
        ]
        read["equal"][0].fill_(9)
        assert read["equal"][1].tolist() == [0] * 5

    def test_a_tensor_much_larger_than_a_chunk(self, tmp_path):
        large = torch.arange(5_000_003, dtype=torch.int32)
        model = {"small": torch.ones(1), "large": large, "after": torch.ones(3)}
        checkpoint = write_checkpoint(paths_of_name(tmp_path, NAME), stage_checkpoint(1, model, {}))
        assert same(read_file(checkpoint, "model"), model)
        flip(checkpoint.model_path, checkpoint.manifest.tensors["model"][1].offset + 17_000_001)
        with pytest.raises(DamagedCheckpointError, match="in tensor large:"):
            read_file(checkpoint, "model")

    def test_what_was_read_does_not_change_with_the_file(self, checkpoint):
        read = read_file(checkpoint, "model")
        checkpoint.model_path.write_bytes(b"\xff" * checkpoint.model_path.stat().st_size)
        assert same(read, MODEL)

    def test_saved_loaded_and_saved_again_the_bytes_are_identical(self, checkpoint, tmp_path):
        contents = read_file(checkpoint, "model"), read_file(checkpoint, "optimizer")
        again = write_checkpoint(paths_of_name(tmp_path / "again", NAME), stage_checkpoint(50, *contents))
        assert again.model_path.read_bytes() == checkpoint.model_path.read_bytes()
        assert again.optimizer_path.read_bytes() == checkpoint.optimizer_path.read_bytes()
        assert again.manifest.pair == checkpoint.manifest.pair

    def test_a_verification_says_what_it_compared(self, checkpoint):
        for argument in (checkpoint, checkpoint.paths.manifest, checkpoint.optimizer_path, str(checkpoint.model_path)):
            report = verify_checkpoint(argument)
            assert (report.files, report.tensors) == (2, 5)
            sizes = checkpoint.model_path.stat().st_size + checkpoint.optimizer_path.stat().st_size
            assert report.size_bytes == checkpoint.size_bytes == sizes
            assert report.checkpoint == checkpoint
            assert report.duration_sec > 0

    def test_every_file_leads_to_the_checkpoint_and_so_do_links_and_the_directory(self, checkpoint, tmp_path):
        (tmp_path / "last.ckpt").symlink_to(checkpoint.model_path.name)
        for argument in (
            checkpoint,
            checkpoint.model_path,
            checkpoint.optimizer_path,
            checkpoint.paths.manifest,
            tmp_path / "last.ckpt",
            tmp_path,
        ):
            loaded = load_checkpoint(argument)
            assert loaded.form == "separated"
            assert same(loaded.model_state, MODEL["state_dict"])
            assert same(loaded.optimizer_states, OPTIMIZER["optimizer_states"])


class TestDamage:
    """One flipped bit anywhere."""

    def test_in_any_region_of_either_file_is_refused_and_located(self, checkpoint, role):
        path = checkpoint.file(role)
        paths_of_tensors = {record.offset: record.path for record in checkpoint.manifest.tensors[role]}
        places = regions(path)
        assert {"header of archive/data/0", "archive/data/0", "archive/data.pkl", "central directory"} <= set(places)
        for region, extent in places.items():
            for at in {extent.start, (extent.start + extent.stop) // 2, extent.stop - 1} if extent else ():
                flip(path, at, bit=at % 8)
                tensor = paths_of_tensors.get(extent.start) if region.startswith("archive/data/") else None
                where = f"in tensor {tensor}:" if tensor else r"structure \(no tensor\)|does not belong"
                for call in (verify_checkpoint, load_checkpoint):
                    with pytest.raises(DamagedCheckpointError, match=where) as error:
                        call(checkpoint)
                    assert str(path) in str(error.value), region
                    assert "another checkpoint" in str(error.value) or "older checkpoint" in str(error.value)
                flip(path, at, bit=at % 8)
        assert same(read_file(checkpoint, role), {"model": MODEL, "optimizer": OPTIMIZER}[role])

    @pytest.mark.filterwarnings("ignore:Detected pickle protocol")
    def test_at_every_byte_of_either_file_is_refused(self, checkpoint, role):
        path = checkpoint.file(role)
        for at in range(path.stat().st_size):
            flip(path, at, bit=at % 8)
            with pytest.raises(DamagedCheckpointError):
                verify_checkpoint(checkpoint)
            flip(path, at, bit=at % 8)
        verify_checkpoint(checkpoint)

    @pytest.mark.filterwarnings("ignore:Detected pickle protocol")
    def test_at_any_byte_gives_nothing_but_a_typed_error_even_unverified(self, checkpoint, role):
        """With ``verify=False`` damage may pass; but it must not crash the reader, nor run anything."""
        path = checkpoint.file(role)
        structure = [at for region, extent in regions(path).items() if region[-1] not in "0123" for at in extent]
        outcomes = set()
        for at in structure:
            flip(path, at, at % 8)
            try:
                load_checkpoint(checkpoint, verify=False)
                outcomes.add("passed")
            except CheckpointError as error:
                outcomes.add(type(error).__name__)
            flip(path, at, at % 8)
        assert {"passed", "DamagedCheckpointError", "MismatchedPairError", "UntrustedPickleError"} <= outcomes

    def test_several_damaged_tensors_are_all_named_as_far_as_they_are_few(self, tmp_path):
        model = {"state_dict": {f"t{i}": torch.full((9,), float(i)) for i in range(9)}}
        checkpoint = write_checkpoint(paths_of_name(tmp_path, NAME), stage_checkpoint(1, model, {}))
        for record in checkpoint.manifest.tensors["model"][2:4]:
            flip(checkpoint.model_path, record.offset)
        with pytest.raises(DamagedCheckpointError, match="in tensor state_dict/t2, state_dict/t3: expected digest"):
            verify_checkpoint(checkpoint)
        for record in checkpoint.manifest.tensors["model"][4:]:
            flip(checkpoint.model_path, record.offset)
        with pytest.raises(DamagedCheckpointError, match=r"t2, .*t6 and 2 more: expected digest"):
            verify_checkpoint(checkpoint)

    def test_both_names_of_a_damaged_tied_tensor_are_given(self, tmp_path):
        weight = torch.randn(4)
        model = {"state_dict": {"wte": weight, "lm_head": weight}}
        checkpoint = write_checkpoint(paths_of_name(tmp_path, NAME), stage_checkpoint(1, model, {}))
        flip(checkpoint.model_path, checkpoint.manifest.tensors["model"][0].offset)
        with pytest.raises(DamagedCheckpointError, match="in tensor state_dict/wte, state_dict/lm_head:"):
            load_checkpoint(checkpoint)

    def test_of_the_optimizer_file_does_not_matter_to_who_reads_the_model(self, checkpoint):
        flip(checkpoint.optimizer_path, 300)
        assert same(load_checkpoint(checkpoint, load_optimizer=False).model_state, MODEL["state_dict"])
        with pytest.raises(DamagedCheckpointError, match=r"-optimizer\.pt"):
            load_checkpoint(checkpoint)

    def test_a_model_file_that_stands_alone_is_checked_by_its_crc(self, checkpoint, tmp_path):
        alone = tmp_path / "alone" / "m.pt"
        alone.parent.mkdir()
        shutil.copyfile(checkpoint.model_path, alone)
        flip(alone, checkpoint.manifest.tensors["model"][0].offset + 5)
        with pytest.raises(DamagedCheckpointError, match=r"m\.pt: .*data/0.*CRC"):
            load_checkpoint(alone, load_optimizer=False)
        assert load_checkpoint(alone, load_optimizer=False, verify=False).model_state["a.weight"][1] != 1.0


class TestTruncation:
    def test_at_any_length_is_refused(self, checkpoint, role):
        path = checkpoint.file(role)
        whole = path.read_bytes()
        for length in {*range(0, len(whole), 7), len(whole) - 1}:
            path.write_bytes(whole[:length])
            for call in (open_complete, verify_checkpoint, load_checkpoint):
                with pytest.raises(
                    IncompleteCheckpointError, match=rf"expected a file of {len(whole)} bytes.*{length}"
                ):
                    call(checkpoint.paths if call is open_complete else checkpoint)
        path.write_bytes(whole + b"\0")
        with pytest.raises(IncompleteCheckpointError, match="expected a file of"):
            verify_checkpoint(checkpoint)

    def test_at_any_length_is_refused_where_no_manifest_tells_the_size(self, checkpoint, tmp_path):
        alone = tmp_path / "alone.pt"
        whole = checkpoint.model_path.read_bytes()
        for length in range(0, len(whole), 7):
            alone.write_bytes(whole[:length])
            with pytest.raises(DamagedCheckpointError, match=r"alone\.pt"):
                load_checkpoint(alone, load_optimizer=False)
            with pytest.raises(DamagedCheckpointError, match=r"alone\.pt"):
                load_checkpoint(alone, load_optimizer=False, verify=False)


class TestMissingParts:
    def test_nothing_there(self, tmp_path):
        for path in (tmp_path / "x-model.pt", tmp_path / "x.json", tmp_path / "x-optimizer.pt", tmp_path / "x.ckpt"):
            with pytest.raises(CheckpointNotFoundError, match="no checkpoint of this name"):
                load_checkpoint(path)
            with pytest.raises(CheckpointNotFoundError, match="no checkpoint of this name"):
                verify_checkpoint(path)
        with pytest.raises(CheckpointNotFoundError, match="no intact checkpoint in this directory"):
            load_checkpoint(tmp_path)

    def test_the_manifest(self, checkpoint, role):
        """Not finished, or copied without it: nobody can tell, so it does not count as a checkpoint."""
        checkpoint.paths.manifest.unlink()
        with pytest.raises(
            IncompleteCheckpointError, match=rf"{role} file of a separated checkpoint.*load_optimizer=False"
        ):
            load_checkpoint(checkpoint.file(role))
        with pytest.raises(IncompleteCheckpointError, match="manifest is missing"):
            verify_checkpoint(checkpoint.file(role))
        assert list_checkpoints(checkpoint.directory) == []
        loaded = load_checkpoint(checkpoint.model_path, load_optimizer=False)
        assert same(loaded.model_state, MODEL["state_dict"])
        assert loaded.config == {"n_layer": 2}
        assert loaded.global_step == 50
        with pytest.raises(IncompleteCheckpointError, match="optimizer file"):
            load_checkpoint(checkpoint.optimizer_path, load_optimizer=False)

    def test_a_data_file(self, checkpoint, role):
        checkpoint.file(role).unlink()
        for argument in (checkpoint, checkpoint.model_path, checkpoint.paths.manifest):
            with pytest.raises(IncompleteCheckpointError, match=rf"the {role} file of {NAME} is missing"):
                load_checkpoint(argument)
        assert list_checkpoints(checkpoint.directory) == []

    def test_the_manifest_and_the_model(self, checkpoint):
        checkpoint.paths.manifest.unlink()
        checkpoint.model_path.unlink()
        with pytest.raises(IncompleteCheckpointError, match=rf"manifest is missing, .* save of {NAME}-optimizer\.pt"):
            load_checkpoint(checkpoint.model_path)

    @pytest.mark.parametrize("kind", ["directory", "link to the file", "link to nothing", "pipe"])
    def test_something_else_where_a_file_should_be(self, kind, checkpoint, role, tmp_path):
        """A link is not followed out of the directory: what it leads to may be replaced without a commit."""
        path = checkpoint.file(role)
        path.rename(tmp_path / "elsewhere")
        if kind == "directory":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(tmp_path / ("elsewhere" if kind == "link to the file" else "nothing"))
        for call in (load_checkpoint, verify_checkpoint):
            with pytest.raises(IncompleteCheckpointError, match=rf"the {role} file of {NAME} is missing"):
                call(checkpoint)
        assert list_checkpoints(tmp_path) == []

    def test_the_optimizer_of_a_model_only_checkpoint(self, tmp_path):
        checkpoint = Save(NAME, 5, model_only=True).write(tmp_path)
        assert checkpoint.model_only
        assert checkpoint.optimizer_path is None
        with pytest.raises(MissingOptimizerError, match=r"model-only.*load_optimizer=False"):
            load_checkpoint(checkpoint)
        assert found(tmp_path, NAME) == Save(NAME, 5, model_only=True)


class TestPairs:
    """A model file of one save and an optimizer file of another are no checkpoint."""

    @pytest.mark.parametrize("verify", [True, False])
    def test_files_of_another_run_at_the_same_step_are_refused(self, verify, checkpoint, role, tmp_path):
        """Of equal name and size, intact in itself: only the pair digest tells."""
        other = save(tmp_path / "other", shift=1.0)
        assert other.file(role).stat().st_size == checkpoint.file(role).stat().st_size
        shutil.copyfile(other.file(role), checkpoint.file(role))
        with pytest.raises(
            MismatchedPairError, match=rf"this {role} file does not belong to {NAME}.*{other.manifest.pair}"
        ):
            load_checkpoint(checkpoint, verify=verify)
        with pytest.raises(MismatchedPairError):
            verify_checkpoint(checkpoint)

    def test_files_of_an_earlier_step_of_this_run_are_refused(self, checkpoint, role, tmp_path):
        earlier = save(tmp_path, name="checkpoint-step000049", step=49)
        shutil.copyfile(earlier.file(role), checkpoint.file(role))
        with pytest.raises(MismatchedPairError, match=rf"this {role} file .*\(step 49\).*Put the right file back"):
            load_checkpoint(checkpoint)

    def test_both_files_of_another_save_under_this_manifest_are_refused(self, checkpoint, tmp_path):
        other = save(tmp_path / "other", shift=1.0)
        for role in ("model", "optimizer"):
            shutil.copyfile(other.file(role), checkpoint.file(role))
        with pytest.raises(MismatchedPairError):
            load_checkpoint(checkpoint)

    @pytest.mark.parametrize("verify", [True, False])
    def test_a_manifest_of_another_save_is_refused(self, verify, checkpoint, role, tmp_path):
        other = save(tmp_path / "other", shift=1.0)
        shutil.copyfile(other.paths.manifest, checkpoint.paths.manifest)
        with pytest.raises(MismatchedPairError):
            load_checkpoint(checkpoint, verify=verify)

    def test_the_pair_covers_what_is_in_either_file_and_the_step(self, tmp_path):
        """So two saves can be exchanged only if they are the same."""
        states = [
            (50, MODEL, OPTIMIZER),
            (51, MODEL, OPTIMIZER),
            (50, {**MODEL, "config": {"n_layer": 3}}, OPTIMIZER),
            (50, MODEL, {**OPTIMIZER, "lr_schedulers": []}),
            (50, MODEL, None),
            (50, MODEL, {}),
        ]
        pairs = [
            write_checkpoint(paths_of_name(tmp_path / str(i), NAME), stage_checkpoint(*state)).manifest.pair
            for i, state in enumerate(states)
        ]
        assert len(set(pairs)) == len(pairs)
        assert save(tmp_path / "again").manifest.pair == pairs[0]

    @pytest.mark.parametrize("verify", [True, False])
    def test_a_model_file_in_the_place_of_its_own_optimizer_file_is_refused(self, verify, checkpoint):
        """Of the right pair, and a manifest forged to match: it still says that it is the model file."""
        shutil.copyfile(checkpoint.model_path, checkpoint.optimizer_path)
        forge(checkpoint, "optimizer", checkpoint.manifest.tensors["model"])
        with pytest.raises(MismatchedPairError, match=r"expected the optimizer file .* found model file"):
            load_checkpoint(checkpoint, verify=verify)


def forge(checkpoint: Checkpoint, role: str, tensors: tuple[TensorRecord, ...] = ()) -> None:
    """Make the manifest match whatever lies at the place of a file now."""
    path = checkpoint.file(role)
    manifest = checkpoint.manifest
    files = {**manifest.files, role: FileRecord(path.name, path.stat().st_size, file_digest(path))}
    forged = Manifest(**{**vars(manifest), "files": files, "tensors": {**manifest.tensors, role: tensors}})
    checkpoint.paths.manifest.write_bytes(forged.to_bytes())


class TouchesCanary:
    """Unpickled, it runs a shell."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.canary}'",)


class TestHostilePickles:
    """Nothing from disk is run, unless the caller says ``trusted=True``; that the trap works is proved there."""

    @pytest.mark.parametrize("verify", [True, False])
    def test_in_a_file_of_a_checkpoint_whose_manifest_matches(self, verify, checkpoint, role, tmp_path):
        canary = tmp_path / "canary"
        stamp = {"format_version": 1, "file": role, "pair": checkpoint.manifest.pair, "global_step": 50}
        content = {"state_dict": {}, "trap": TouchesCanary(canary), STAMP_KEY: stamp}
        torch.save(content, checkpoint.file(role))
        forge(checkpoint, role)
        verify_checkpoint(checkpoint)  # every digest matches
        with pytest.raises(UntrustedPickleError, match=rf"-{role}\.pt.*(posix\.system|system).*trusted=True"):
            load_checkpoint(checkpoint, verify=verify)
        assert not canary.exists()
        assert latest_checkpoint(tmp_path) == open_complete(checkpoint.paths)  # finding it has not run it either
        assert not canary.exists()
        load_checkpoint(checkpoint, verify=verify, trusted=True)
        assert canary.exists()

    def test_in_a_damaged_file_that_is_looked_into_for_what_it_is(self, checkpoint, role, tmp_path):
        """Where the digest differs the reader looks for the stamp, in a file that anybody may have put there."""
        canary = tmp_path / "canary"
        torch.save({"trap": TouchesCanary(canary)}, checkpoint.file(role))
        size = checkpoint.file(role).stat().st_size
        files = {**checkpoint.manifest.files, role: FileRecord(checkpoint.file(role).name, size, "0" * 32)}
        tensors = {**checkpoint.manifest.tensors, role: ()}
        forged = Manifest(**{**vars(checkpoint.manifest), "files": files, "tensors": tensors})
        checkpoint.paths.manifest.write_bytes(forged.to_bytes())
        with pytest.raises(DamagedCheckpointError):
            load_checkpoint(checkpoint)
        with pytest.raises(DamagedCheckpointError):
            verify_checkpoint(checkpoint)
        assert not canary.exists()

    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.parametrize("verify", [True, False])
    def test_in_a_unified_file(self, verify, zipped, tmp_path):
        canary, path = tmp_path / "canary", tmp_path / "ckpt.pt"
        content = {"model": {"w": torch.ones(2)}, "optimizer": {"state": {}, "param_groups": []}}
        torch.save({**content, "trap": TouchesCanary(canary)}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UntrustedPickleError, match=r"ckpt\.pt.*system.*trusted=True"):
            load_checkpoint(path, verify=verify)
        assert not canary.exists()
        assert load_checkpoint(path, verify=verify, trusted=True).model_state["w"].tolist() == [1, 1]
        assert canary.exists()

    def test_in_a_model_file_that_stands_alone(self, tmp_path):
        canary, path = tmp_path / "canary", tmp_path / "x-model.pt"
        torch.save({"state_dict": {}, "trap": TouchesCanary(canary), STAMP_KEY: {"file": "model"}}, path)
        with pytest.raises(UntrustedPickleError, match="trusted=True"):
            load_checkpoint(path, load_optimizer=False)
        assert not canary.exists()

    def test_a_manifest_whose_records_do_not_fit_the_file_is_damage(self, checkpoint, role):
        """Wrong places, sizes and numbers of tensors, each under a right digest: an error, and no wrong tensor."""
        records = checkpoint.manifest.tensors[role]
        first, *rest = records
        changes = {
            "too few": tuple(rest),
            "too many": (*records, TensorRecord("x", "uint8", (8,), 0, 8, "0" * 32)),
            "a smaller one": (TensorRecord("x", "uint8", (8,), first.offset, 8, "0" * 32), *rest),
            "a larger one": (TensorRecord("x", "uint8", (88,), first.offset, first.size_bytes + 8, "0" * 32), *rest),
            "none": (),
        }
        for what, forged in changes.items():
            forge(checkpoint, role, forged)
            for verify in (True, False):
                with pytest.raises(DamagedCheckpointError, match=str(checkpoint.file(role))):
                    load_checkpoint(checkpoint, verify=verify)
            assert what in changes
        forge(checkpoint, role, records)
        load_checkpoint(checkpoint)


class TestFallingBack:
    """``latest_checkpoint`` gives the newest intact one, and one line for each newer one that it passes over."""

    def prepare(self, directory: Path) -> dict[int, Checkpoint]:
        return {step: save(directory, name=f"checkpoint-step{step:06d}", step=step) for step in (1, 2, 3, 4)}

    def test_over_damaged_truncated_and_exchanged_ones(self, tmp_path):
        by_step = self.prepare(tmp_path)
        flip(by_step[4].model_path, 300)
        by_step[3].optimizer_path.write_bytes(by_step[3].optimizer_path.read_bytes()[:-1])
        shutil.copyfile(by_step[1].optimizer_path, by_step[2].optimizer_path)
        with pytest.warns(DamagedCheckpointWarning) as warned:
            assert latest_checkpoint(tmp_path) == by_step[1]
        lines = [str(warning.message) for warning in warned]
        assert len(lines) == 3
        assert all("\n" not in line for line in lines)
        assert lines[0].startswith("passing over checkpoint-step000004: ")
        assert "structure" in lines[0] or "tensor" in lines[0]
        assert lines[1].startswith("passing over checkpoint-step000003: ")
        assert "not complete" in lines[1]
        assert lines[2].startswith("passing over checkpoint-step000002: ")
        assert "does not belong" in lines[2]
        assert all(warning.filename == __file__ for warning in warned)

    def test_what_is_older_than_the_newest_intact_one_is_not_talked_about(self, tmp_path):
        by_step = self.prepare(tmp_path)
        flip(by_step[1].model_path, 300)
        by_step[2].optimizer_path.unlink()
        by_step[3].paths.manifest.write_bytes(by_step[3].paths.manifest.read_bytes()[:-1])
        assert latest_checkpoint(tmp_path) == by_step[4]

    def test_model_only_ones_are_left_out_for_who_wants_to_resume(self, tmp_path):
        by_step = self.prepare(tmp_path)
        newest = Save("checkpoint-step000009", 9, model_only=True).write(tmp_path)
        assert latest_checkpoint(tmp_path) == newest
        assert latest_checkpoint(tmp_path, resumable=True) == by_step[4]

    def test_a_missing_file_is_warned_about(self, tmp_path):
        by_step = self.prepare(tmp_path)
        by_step[4].model_path.unlink()
        with pytest.warns(DamagedCheckpointWarning, match=r"passing over checkpoint-step000004: .*missing"):
            assert latest_checkpoint(tmp_path) == by_step[3]

    def test_loading_a_directory_does_the_same(self, tmp_path):
        by_step = self.prepare(tmp_path)
        flip(by_step[4].model_path, 300)
        with pytest.warns(DamagedCheckpointWarning, match="passing over checkpoint-step000004"):
            assert load_checkpoint(tmp_path).checkpoint == by_step[3]

    def test_none_is_left(self, tmp_path):
        checkpoint = save(tmp_path)
        flip(checkpoint.model_path, 300)
        with pytest.warns(DamagedCheckpointWarning):
            assert latest_checkpoint(tmp_path) is None
        with (
            pytest.warns(DamagedCheckpointWarning),
            pytest.raises(CheckpointNotFoundError, match="no intact checkpoint"),
        ):
            load_checkpoint(tmp_path)

    def test_age_is_the_step_then_the_time_of_the_save(self, tmp_path):
        """A name says nothing about it, nor does the time at which the file was copied."""
        for name, step in (("z", 9), ("b", 100), ("a", 100), ("last.ckpt", 10)):
            save(tmp_path, name=name, step=step)
            os.utime(tmp_path / f"{name}.json", (10**9 - step, 10**9 - step))
        assert [checkpoint.name for checkpoint in list_checkpoints(tmp_path)] == ["z", "last.ckpt", "b", "a"]
        assert latest_checkpoint(tmp_path).name == "a"

    def test_no_directory_is_no_checkpoint(self, tmp_path):
        for directory in (tmp_path / "none", tmp_path, str(tmp_path)):
            assert list_checkpoints(directory) == []
            assert latest_checkpoint(directory) is None
