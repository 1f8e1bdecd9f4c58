"""Trees, files and logs are compared by bits, and what differs is told with its size."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import warnings
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

from neuromanifold_gpt.certify.artifacts import find_artifacts, read_tree, step_in_path, units_of
from neuromanifold_gpt.certify.compare import RunFiles, compare_runs
from neuromanifold_gpt.certify.errors import UnreadableError
from neuromanifold_gpt.certify.left_out import LeftOut
from neuromanifold_gpt.certify.metrics import read_metrics, rows_of, text_rows
from neuromanifold_gpt.certify.names import is_bookkeeping_name, is_clock_name
from neuromanifold_gpt.certify.saves import ExpectedSaves
from neuromanifold_gpt.certify.trees import compare_trees, component_of


def differences(expected: object, found: object) -> list[str]:
    return [leaf.path for leaf in compare_trees(expected, found)[0]]


class TestTrees:
    def test_a_nan_is_equal_to_itself_and_zero_is_not_minus_zero(self):
        assert differences({"a": torch.tensor([float("nan")])}, {"a": torch.tensor([float("nan")])}) == []
        assert differences({"a": float("nan")}, {"a": float("nan")}) == []
        assert differences({"a": torch.tensor([0.0])}, {"a": torch.tensor([-0.0])}) == ["a"]
        assert differences({"a": 0.0}, {"a": -0.0}) == ["a"]

    def test_two_nans_of_other_bits_differ(self):
        one, other = (
            torch.frombuffer(bytearray(struct.pack("I", bits)), dtype=torch.float32)
            for bits in (0x7FC00000, 0x7FC00001)
        )
        assert differences({"a": one}, {"a": other}) == ["a"]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_neighbours_are_one_unit_in_the_last_place_apart(self, dtype: torch.dtype):
        for value in (1.0, -3.0, 0.0):
            one = torch.tensor([value], dtype=dtype)
            [leaf] = compare_trees({"a": one}, {"a": torch.nextafter(one, torch.tensor([9.0], dtype=dtype))})[0]
            assert leaf.largest_ulps == 1

    def test_sizes_are_told(self):
        [leaf] = compare_trees({"w": torch.tensor([1.0, 2.0, 4.0])}, {"w": torch.tensor([1.0, 2.5, 4.0])})[0]
        assert (leaf.largest_absolute, leaf.largest_relative, leaf.differing, leaf.elements) == (0.5, 0.2, 1, 3)
        assert leaf.within(0.2)
        assert not leaf.within(0.1)

    @pytest.mark.parametrize(
        ("expected", "found"),
        [
            ({"a": 1}, {"a": True}),
            ({"a": 1}, {"a": 1.0}),
            ({"a": 1}, {}),
            ({}, {"a": None}),
            ({"a": []}, {"a": {}}),
            ({"a": torch.zeros(2)}, {"a": torch.zeros(2, dtype=torch.float64)}),
            ({"a": torch.zeros(2, 3)}, {"a": torch.zeros(3, 2)}),
            ({"a": torch.zeros(2)}, {"a": [0.0, 0.0]}),
            ({"a": [1.0] * 9}, {"a": [1.0] * 8 + [1.5]}),
            ({"a": np.array(["x"])}, {"a": np.array(["y"])}),
            ({"a": {1, 2}}, {"a": {1, 3}}),
            ({"a": torch.tensor([1 + 2j])}, {"a": torch.tensor([1 + 3j])}),
        ],
    )
    def test_what_differs_in_kind_or_value_is_found(self, expected: object, found: object):
        assert differences(expected, found)
        assert not differences(expected, expected)

    def test_infinity_and_integers_are_never_within_a_tolerance(self):
        [leaf] = compare_trees({"w": torch.tensor([float("inf")])}, {"w": torch.tensor([1.0])})[0]
        assert not leaf.within(1.0)
        [leaf] = compare_trees({"w": torch.tensor([1000])}, {"w": torch.tensor([1001])})[0]
        assert not leaf.within(1.0)


class TestFiles:
    def test_every_common_form_is_read(self, tmp_path: Path):
        tensor = torch.arange(6.0).reshape(2, 3)
        torch.save({"w": tensor}, tmp_path / "zip.pt")
        torch.save({"w": tensor}, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
        np.savez(tmp_path / "arrays.npz", w=tensor.numpy())
        header = json.dumps({"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
        (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + tensor.numpy().tobytes())
        trees = [read_tree(path) for path in sorted(tmp_path.iterdir())]
        assert len(trees) == 4
        assert all(not differences({"w": tensor}, tree) for tree in trees)

    def test_safetensors_of_the_library_are_read(self, tmp_path: Path):
        safetensors = pytest.importorskip("safetensors.torch", reason="not in this environment; make certify has it")
        tensors = {"a": torch.randn(3, 2).bfloat16(), "b": torch.arange(4), "c": torch.zeros(0)}
        safetensors.save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
        assert not differences(tensors, read_tree(tmp_path / "x.safetensors"))

    @pytest.mark.parametrize("name", ["a.pt", "b.npz", "c.safetensors", "d.json", "e.pkl"])
    def test_a_torn_file_is_unreadable_at_every_length(self, tmp_path: Path, name: str):
        whole = tmp_path / name
        if name == "a.pt":
            torch.save({"w": torch.arange(50.0)}, whole)
        elif name == "b.npz":
            np.savez(whole, w=np.arange(50.0))
        elif name == "c.safetensors":
            header = json.dumps({"w": {"dtype": "F32", "shape": [50], "data_offsets": [0, 200]}}).encode()
            whole.write_bytes(len(header).to_bytes(8, "little") + header + bytes(200))
        elif name == "d.json":
            whole.write_text(json.dumps({"w": [1.5] * 50}))
        else:
            torch.save({"w": torch.arange(50.0)}, whole, _use_new_zipfile_serialization=False)
        content = whole.read_bytes()
        for length in range(0, len(content), max(1, len(content) // 40)):
            whole.write_bytes(content[:length])
            with pytest.raises(UnreadableError):
                read_tree(whole)

    @pytest.mark.parametrize(
        ("path", "step"),
        [
            ("checkpoint-step000050-model.pt", 50),
            ("epoch=3-step=120.ckpt", 120),
            ("checkpoint-500/optimizer.pt", 500),
            ("checkpoint-500/rng_state_0.pth", 500),
            ("ckpt_0010.pt", 10),
            ("global_step40/mp_rank_00_model_states.pt", 40),
            ("iter_0000200/model.pt", 200),
            ("ckpt.pt", None),
            ("epoch_7.pt", None),
            ("last.ckpt", None),
        ],
    )
    def test_the_step_is_read_off_the_name(self, path: str, step: int | None):
        assert step_in_path(path) == step

    def test_files_of_one_checkpoint_are_one_unit_and_whole_only_together(self, tmp_path: Path):
        out = tmp_path / "out"
        for step in (10, 20):
            (out / f"checkpoint-{step}").mkdir(parents=True)
            for name in ("model.pt", "optimizer.pt"):
                torch.save({"step": step, "w": torch.zeros(3)}, out / f"checkpoint-{step}" / name)
        assert [unit.step for unit in units_of(find_artifacts(out))] == [10, 20]
        expected = ExpectedSaves(RunFiles(out, []))
        assert [saved.step for saved in expected.whole(out)] == [10, 20]
        (out / "checkpoint-20/optimizer.pt").rename(out / "checkpoint-20/optimizer.tmp0")
        assert [saved.step for saved in expected.whole(out)] == [10]
        halves = expected.half_written(out, ["checkpoint-20/model.pt", "checkpoint-20/optimizer.tmp0"])
        assert [half.why for half in halves] == ["temporary"]


class TestLogs:
    def test_every_common_form_is_read(self, tmp_path: Path):
        (tmp_path / "a.csv").write_text("epoch,step,loss,val\n0,1,0.5,\n0,2,0.25,\n0,2,,9.0\n")
        (tmp_path / "b.jsonl").write_text('{"iter": 1, "loss": 0.5, "eval": {"acc": 1}}\n{"iter": 2, "loss"')
        (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": 1, "loss": 0.5}]}))
        log = read_metrics(tmp_path, [])
        assert log.values["a.csv", "loss"] == {1: [0.5], 2: [0.25]}
        assert log.values["a.csv", "val"] == {2: [9.0]}
        assert log.values["b.jsonl", "eval/acc"] == {1: [1.0]}
        assert log.values["trainer_state.json", "loss"] == {1: [0.5]}
        assert log.main_series == ("a.csv", "loss")

    def test_tensorboard_events_are_read(self, tmp_path: Path):
        tensorboard = pytest.importorskip("torch.utils.tensorboard")
        writer = tensorboard.SummaryWriter(tmp_path / "runs")
        writer.add_scalar("loss", 0.5, 3)
        writer.close()
        [events] = (tmp_path / "runs").iterdir()
        [row] = rows_of(events)
        assert (row.step, dict(row.values)) == (3, {"loss": 0.5})

    def test_lines_of_text_are_read_where_nothing_else_is(self, tmp_path: Path):
        lines = "iter 10: loss 4.25, time 12.5ms\nResuming from step 10, loss 1.0\nepoch 1 step 20 | loss=3.5 lr 1e-3\n"
        (tmp_path / "stdout").write_text(lines)
        log = read_metrics(tmp_path / "out", [tmp_path / "stdout"])
        assert log.values["stdout", "loss"] == {10: [4.25], 20: [3.5]}
        assert log.values["stdout", "lr"] == {20: [0.001]}

    def test_a_step_that_was_logged_twice_must_be_the_same_twice(self, tmp_path: Path):
        for name, again in (("a", ""), ("b", '{"step": 2, "loss": 0.5}\n'), ("c", '{"step": 2, "loss": 0.75}\n')):
            (tmp_path / name).mkdir()
            (tmp_path / name / "log.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n' + again)
        runs = {name: RunFiles(tmp_path / name, []) for name in "abc"}
        equal, unequal = (compare_runs(runs["a"], runs[name]) for name in "bc")
        assert not equal.metric_differences
        assert equal.repeated_steps == {"log.jsonl": [2]}
        assert [(each.step, each.expected, each.found) for each in unequal.metric_differences] == [(2, 0.5, 0.75)]


class TestNames:
    @pytest.mark.parametrize(
        "name",
        ["train_runtime", "samples_per_second", "epoch_time", "time", "dt", "tok/s", "step_ms", "saved_at", "gpu_mem"],
    )
    def test_of_the_clock_are_known(self, name: str):
        assert is_clock_name(name)

    @pytest.mark.parametrize("name", ["loss", "timestep", "lr", "eta_min", "momentum", "val_acc", "grad_norm", "dtype"])
    def test_of_state_are_not_taken_for_it(self, name: str):
        assert not is_clock_name(name)
        assert not is_bookkeeping_name(name)

    @pytest.mark.parametrize(
        ("path", "component"),
        [
            ("optimizer_states/0/state/0/exp_avg", "optimizer state"),
            ("lr_schedulers/0/last_epoch", "learning-rate scheduler"),
            ("rng/torch", "random number generators"),
            ("ema/layer.weight", "averaged weights (EMA)"),
            ("state_dict/bn.running_mean", "batch-norm buffers"),
            ("scaler/scale", "gradient scaler"),
            ("model/schema.weight", "weights"),
            ("model.layers.0.weight", "weights"),
        ],
    )
    def test_of_components_are_told_apart(self, path: str, component: str):
        assert component_of(path) == component

    def test_a_loss_counts_whatever_else_its_name_says(self, tmp_path: Path):
        for name, value in (("a", 0.5), ("b", 0.75)):
            (tmp_path / name).mkdir()
            row = {"step": 1, "loss_after_resume": value, "resumed_from": value, "step_time": value}
            (tmp_path / name / "log.jsonl").write_text(json.dumps(row) + "\n")
        comparison = LeftOut().without(compare_runs(RunFiles(tmp_path / "a", []), RunFiles(tmp_path / "b", [])))
        assert [difference.name for difference in comparison.metric_differences] == ["loss_after_resume"]
        assert comparison.not_counted == ["resumed_from", "step_time"]

    def test_left_out_is_what_undisturbed_runs_differ_in(self, tmp_path: Path):
        for name, host in (("a", "x"), ("b", "y")):
            (tmp_path / name).mkdir()
            (tmp_path / name / "state.json").write_text(json.dumps({"step": 1, "place": host, "w": 1.5}))
        comparison = compare_runs(RunFiles(tmp_path / "a", []), RunFiles(tmp_path / "b", []))
        assert [leaf.path for file in comparison.files for leaf in file.differences] == ["place"]
        left_out = LeftOut(leaves=frozenset({("state.json", "place")}))
        assert [file.state for file in left_out.without(comparison).files] == ["equal"]


COMPARE_LARGE = """
import json, struct, sys, threading, time
from pathlib import Path
import torch
from neuromanifold_gpt.certify.artifacts import read_tree
from neuromanifold_gpt.certify.trees import compare_trees

def anonymous_mb():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024

def save(path, values):
    if path.suffix == ".pt":
        return torch.save({"w": values}, path)
    data = values.numpy().data
    header = json.dumps({"w": {"dtype": "F32", "shape": [len(values)], "data_offsets": [0, data.nbytes]}}).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.write(data)

values = torch.arange(1 << 24, dtype=torch.float32)  # 64 MB, each a whole number
a, b = (Path(sys.argv[1]) / f"{name}{sys.argv[2]}" for name in "ab")
save(a, values)
save(b, values + 1)
del values
before = peak = anonymous_mb()
done = False

def watch():
    global peak
    while not done:
        peak = max(peak, anonymous_mb())
        time.sleep(0.005)

watching = threading.Thread(target=watch)
watching.start()
[difference], _ = compare_trees(read_tree(a), read_tree(b))
done = True
watching.join()
assert (difference.differing, difference.elements, difference.scale) == (1 << 24, 1 << 24, float((1 << 24) - 1))
print(peak - before)
"""


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_large_tensors_are_compared_in_pieces(tmp_path: Path, suffix: str):
    run = subprocess.run(
        [sys.executable, "-c", COMPARE_LARGE, str(tmp_path), suffix],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 128, "of two files of 64 MB each, neither may be read whole"


class TestDistributedCheckpoints:
    """torch.distributed.checkpoint: a pickle with objects as keys, and files of one archive per tensor."""

    def saved(self, directory: Path, first: float) -> Path:
        state = {"a": torch.full((3,), first), "b": torch.zeros(2), "step": 4}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.save(state, checkpoint_id=directory / "global_step4", no_dist=True)
        return directory

    def compared(self, tmp_path: Path, first: float, again: float) -> dict[str, list[str]]:
        one, other = self.saved(tmp_path / "one", first), self.saved(tmp_path / "other", again)
        files = compare_runs(RunFiles(one, []), RunFiles(other, [])).files
        return {Path(file.relative).name: [leaf.path for leaf in file.differences] for file in files}

    def test_of_two_equal_ones_only_the_name_of_the_save_differs(self, tmp_path: Path):
        differing = self.compared(tmp_path, 1.0, 1.0)
        assert differing["__0_0.distcp"] == []
        # The path stands in it, which is the same in every run that certify makes.
        assert [path for path in differing[".metadata"] if "checkpoint_id" not in path] == [
            "state/storage_meta/state/save_id"
        ]

    def test_a_tensor_in_another_archive_than_the_last_is_compared_too(self, tmp_path: Path):
        differing = self.compared(tmp_path, 1.0, 2.0)["__0_0.distcp"]
        assert len(differing) == 1

    def test_what_stands_before_an_archive_is_not_passed_over(self, tmp_path: Path):
        torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
        (tmp_path / "b.pt").write_bytes(b"PK of another kind" + (tmp_path / "a.pt").read_bytes())
        with pytest.raises(UnreadableError):
            read_tree(tmp_path / "b.pt")


class TestWhatCounts:
    """Names of the clock are for lone numbers of the clock, not for all that they are in."""

    @pytest.mark.parametrize(
        ("name", "expected", "found"),
        [
            ("time_step", 400, 20),
            ("total_time_steps", 400, 20),
            ("best_at", 40, 30),
            ("memory", deque([(1, 0.5), (2, 0.25)]), deque()),
            ("memory", deque([(1, 0.5), (2, 0.25)]), deque([(1, 0.5), (2, 0.75)])),
        ],
    )
    def test_state_that_is_named_like_the_clock_counts(self, name: str, expected: object, found: object):
        differing, _ = compare_trees({name: expected}, {name: found})
        assert [leaf for leaf in differing if not leaf.is_clock]

    @pytest.mark.parametrize(
        ("name", "expected", "found"),
        [("time", 3, 4), ("saved_at", 1795641566, 1795641570), ("saved_at", "2026-11-25", "2026-11-26")],
    )
    def test_the_clock_does_not(self, name: str, expected: object, found: object):
        differing, _ = compare_trees({name: expected}, {name: found})
        assert all(leaf.is_clock for leaf in differing)

    @pytest.mark.parametrize(
        ("file", "differing"), [("state.yaml", ["tokens"]), ("hparams.yaml", []), ("logs/config.yml", [])]
    )
    def test_a_state_in_yaml_counts_and_settings_do_not(self, tmp_path: Path, file: str, differing: list[str]):
        for run, tokens in (("a", 900), ("b", 300)):
            (tmp_path / run / file).parent.mkdir(parents=True)
            (tmp_path / run / file).write_text(f"step: 3\ntokens: {tokens}\n")
        files = compare_runs(RunFiles(tmp_path / "a", []), RunFiles(tmp_path / "b", [])).files
        assert [leaf.path for compared in files for leaf in compared.differences] == differing

    def test_episodes_are_noticed(self):
        [row] = text_rows("episode 7 reward 0.250 eps 0.9\n")
        assert (row.step, row.values["reward"], row.unit) == (7, 0.25, "epoch")


def test_objects_in_an_npz_are_compared_too(tmp_path: Path):
    for name, seed in (("a", 1), ("b", 2)):
        generator = np.random.default_rng(seed).bit_generator.state
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "state.npz", w=np.ones(3), rng=np.array(generator, dtype=object))
    [file] = compare_runs(RunFiles(tmp_path / "a", []), RunFiles(tmp_path / "b", [])).files
    assert file.state == "different"
    assert [leaf.component for leaf in file.differences] == ["random number generators"] * len(file.differences)
    assert any("state" in leaf.path for leaf in file.differences)
    assert [leaf.path for leaf in file.differences if leaf.path.startswith("w")] == []
