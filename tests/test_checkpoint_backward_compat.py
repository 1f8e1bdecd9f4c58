"""Checkpoints of other programs go through ``load_checkpoint``, and training continues from them to the bit."""

from __future__ import annotations

import logging
import pickle
import warnings
from collections import OrderedDict
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from neuromanifold_gpt import LoadedCheckpoint, load_checkpoint
from neuromanifold_gpt.checkpoint.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    DamagedCheckpointError,
    InexactResumeWarning,
    MissingOptimizerError,
    StateMismatchError,
    UnknownFormatError,
)

from .record import Record


class Loop:
    """Five steps of training, then five more: what the second half must repeat."""

    def __init__(self, model: nn.Module | None = None) -> None:
        torch.manual_seed(0)
        self.model = model or nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 10)

    def run(self, first: int, last: int) -> list[float]:
        losses = []
        for step in range(first, last):
            x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
            loss = (self.model(x) - x.sum(1, keepdim=True)).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            losses.append(loss.item())
        return losses

    @property
    def weights(self) -> list[torch.Tensor]:
        return list(self.model.state_dict().values())


def assert_continues_exactly(loaded: LoadedCheckpoint, uninterrupted: Loop) -> None:
    """``uninterrupted`` stands after step 5; a loop restored from ``loaded`` does the same five steps."""
    resumed = Loop()
    resumed.run(20, 23)  # anything but the state to restore
    schedulers = resumed.scheduler if loaded.lr_scheduler_states else ()
    with nullcontext() if loaded.rng_states else pytest.warns(InexactResumeWarning, match="random number generators"):
        loaded.restore(model=resumed.model, optimizers=resumed.optimizer, schedulers=schedulers)
    if not loaded.lr_scheduler_states:
        resumed.scheduler = torch.optim.lr_scheduler.LambdaLR(resumed.optimizer, lambda _: 1.0)
        uninterrupted.scheduler = torch.optim.lr_scheduler.LambdaLR(uninterrupted.optimizer, lambda _: 1.0)
    assert resumed.run(5, 10) == uninterrupted.run(5, 10)
    for one, other in zip(resumed.weights, uninterrupted.weights, strict=True):
        assert torch.equal(one, other)


@pytest.fixture
def loop() -> Loop:
    loop = Loop()
    loop.run(0, 5)
    return loop


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "ckpt.pt"


def prefixed(prefix: str, state: dict[str, Any]) -> OrderedDict[str, Any]:
    return OrderedDict((prefix + name, value) for name, value in state.items())


def nanogpt(loop: Loop, prefix: str = "") -> dict[str, Any]:
    """As nanoGPT's ``train.py`` writes it."""
    return {
        "model": prefixed(prefix, loop.model.state_dict()),
        "optimizer": loop.optimizer.state_dict(),
        "model_args": {"n_layer": 2, "n_embd": 8, "vocab_size": None},
        "iter_num": 5,
        "best_val_loss": torch.tensor(1.5),
        "config": {"learning_rate": 1e-2, "out_dir": "out", "compile": True},
    }


class TestNanoGPT:
    @pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "_orig_mod.module.", "module._orig_mod."])
    def test_its_checkpoint_continues_exactly_whatever_the_model_was_wrapped_in(self, prefix, loop, path):
        torch.save(nanogpt(loop, prefix), path)
        loaded = load_checkpoint(path)
        assert loaded.form == "nanogpt"
        assert loaded.global_step == 5
        assert loaded.epoch is None
        assert loaded.config["n_layer"] == 2
        assert loaded.config["learning_rate"] == 1e-2
        assert list(loaded.model_state) == list(loop.model.state_dict())
        assert_continues_exactly(loaded, loop)

    def test_its_weights_alone(self, loop, path):
        torch.save(nanogpt(loop), path)
        loaded = load_checkpoint(path, load_optimizer=False)
        assert loaded.optimizer_states is None
        model = Loop().model
        loaded.restore(model=model)
        assert all(map(torch.equal, model.state_dict().values(), loop.weights))

    def test_prefixes_of_compiled_parts_are_taken_out_of_the_middle_too(self, path):
        state = {
            "layers.0._orig_mod.weight": torch.ones(1),
            "head.weight": torch.ones(1),
            "x_orig_mod.y": torch.ones(1),
        }
        torch.save({"model": state, "iter_num": 1}, path)
        loaded = load_checkpoint(path, load_optimizer=False)
        assert list(loaded.model_state) == ["layers.0.weight", "head.weight", "x_orig_mod.y"]


MODEL_KEYS = ("model_state_dict", "state_dict", "model")
OPTIMIZER_KEYS = ("optimizer_states", "optimizer_state_dict", "optimizer_state_dicts", "optimizer", "optimizers")
SCHEDULER_KEYS = (
    "lr_scheduler_states",
    "lr_schedulers",
    "scheduler_state_dict",
    "lr_scheduler_state_dict",
    "lr_scheduler",
    "scheduler",
)
STEP_KEYS = ("global_step", "step", "iter_num", "iteration", "iter")
CONFIG_KEYS = ("config", "hyper_parameters", "model_args", "args")


class TestPlainDicts:
    """The dicts of hand-written loops, under every name that is known for each part."""

    @pytest.mark.parametrize("model_key", MODEL_KEYS)
    @pytest.mark.parametrize("optimizer_key", OPTIMIZER_KEYS)
    @pytest.mark.parametrize("listed", [lambda state: state, lambda state: [state], lambda state: (state,)])
    def test_model_and_optimizer_under_every_key(self, model_key, optimizer_key, listed, loop, path):
        content = {model_key: loop.model.state_dict(), optimizer_key: listed(loop.optimizer.state_dict()), "epoch": 2}
        torch.save(content, path)
        loaded = load_checkpoint(path)
        assert loaded.form == "plain"
        assert loaded.epoch == 2
        assert_continues_exactly(loaded, loop)

    @pytest.mark.parametrize("key", SCHEDULER_KEYS)
    @pytest.mark.parametrize("listed", [lambda state: state, lambda state: [state]])
    def test_a_scheduler_under_every_key(self, key, listed, loop, path):
        content = {
            "model": loop.model.state_dict(),
            "optimizer": loop.optimizer.state_dict(),
            key: listed(loop.scheduler.state_dict()),
        }
        torch.save(content, path)
        loaded = load_checkpoint(path)
        assert loaded.lr_scheduler_states == [loop.scheduler.state_dict()]
        assert_continues_exactly(loaded, loop)

    @pytest.mark.parametrize("key", STEP_KEYS)
    def test_the_step_under_every_key(self, key, path):
        torch.save({"state_dict": {"w": torch.ones(1)}, key: 7}, path)
        assert load_checkpoint(path, load_optimizer=False).global_step == 7

    @pytest.mark.parametrize("key", CONFIG_KEYS)
    def test_the_configuration_under_every_key(self, key, path):
        torch.save({"state_dict": {"w": torch.ones(1)}, key: {"n": 3}}, path)
        assert load_checkpoint(path, load_optimizer=False).config == {"n": 3}

    def test_several_optimizers_and_schedulers_keep_their_order(self, loop, path):
        other = torch.optim.SGD(loop.model.parameters(), lr=0.5, momentum=0.9)
        content = {
            "model": loop.model.state_dict(),
            "optimizers": [loop.optimizer.state_dict(), other.state_dict()],
            "lr_schedulers": [loop.scheduler.state_dict(), {"last_epoch": 9}],
        }
        torch.save(content, path)
        loaded = load_checkpoint(path)
        assert [state["param_groups"][0]["lr"] for state in loaded.optimizer_states] == [
            loop.optimizer.param_groups[0]["lr"],
            0.5,
        ]
        assert [state["last_epoch"] for state in loaded.lr_scheduler_states] == [5, 9]
        with pytest.raises(StateMismatchError, match="state of 2 optimizers, 1 were given"):
            loaded.restore(model=Loop().model, optimizers=Loop().optimizer)

    @pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_bare_state_dict_with_its_metadata(self, prefix, zipped, loop, path):
        """As ``torch.save(model.state_dict())`` or that of a wrapper; its versions decide how torch reads it."""
        wrapped = nn.ModuleDict({"module": loop.model}) if "module." in prefix else loop.model
        state = prefixed(prefix, loop.model.state_dict())
        state._metadata = OrderedDict(
            (prefix.replace("module.", "") + name if name else "", value)
            for name, value in wrapped.state_dict()._metadata.items()
        )
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
        loaded = load_checkpoint(path, load_optimizer=False)
        assert loaded.form == "plain"
        assert list(loaded.model_state) == list(loop.model.state_dict())
        assert loaded.model_state._metadata["1"] == {"version": 2}
        model = Loop().model
        loaded.restore(model=model)
        assert all(map(torch.equal, model.state_dict().values(), loop.weights))
        with pytest.raises(MissingOptimizerError, match=r"ckpt\.pt.*no optimizer state.*load_optimizer=False"):
            load_checkpoint(path)

    def test_a_legacy_file_written_before_torch_1_6(self, loop, path):
        content = {"state_dict": loop.model.state_dict(), "optimizer": loop.optimizer.state_dict(), "epoch": 3}
        torch.save(content, path, _use_new_zipfile_serialization=False)
        assert path.read_bytes()[:1] == b"\x80"
        loaded = load_checkpoint(path)
        assert loaded.epoch == 3
        assert_continues_exactly(loaded, loop)

    def test_data_parallel_names_lose_their_prefix_only_if_all_have_it(self, path):
        for names, expected in (
            (["module.a", "module.b.module.c"], ["a", "b.module.c"]),
            (["module.a", "n_averaged"], ["module.a", "n_averaged"]),
        ):
            torch.save({"model": {name: torch.ones(1) for name in names}}, path)
            assert list(load_checkpoint(path, load_optimizer=False).model_state) == expected

    def test_tied_weights_stay_tied(self, path):
        weight = torch.randn(3)
        torch.save({"model": {"wte": weight, "lm_head": weight, "view": weight[1:]}}, path)
        state = load_checkpoint(path, load_optimizer=False).model_state
        state["wte"].fill_(5)
        assert state["lm_head"].tolist() == [5, 5, 5]
        assert state["view"].tolist() == [5, 5]

    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_tensors_that_are_more_than_memory_keep_their_values(self, path):
        """Lazily conjugated or negated, sparse, quantized, without data: what stock torch reads is what comes."""
        z = torch.randn(3, dtype=torch.complex64)
        state = {
            "conj": z.conj(),
            "neg": torch._neg_view(torch.arange(3.0)),
            "sparse": torch.eye(3).to_sparse(),
            "quantized": torch.quantize_per_tensor(torch.ones(3), 0.5, 1, torch.qint8),
            "parameter": nn.Parameter(torch.ones(2)),
            "meta": torch.ones(2, device="meta"),
            "strided": torch.arange(12.0).reshape(3, 4)[:, ::2],
        }
        torch.save({"model": state}, path)
        loaded = load_checkpoint(path, load_optimizer=False).model_state
        assert torch.equal(loaded["conj"], z.conj())
        assert torch.equal(loaded["neg"], -torch.arange(3.0))
        assert torch.equal(loaded["sparse"].to_dense(), torch.eye(3))
        assert torch.equal(loaded["quantized"].dequantize(), torch.ones(3))
        assert isinstance(loaded["parameter"], nn.Parameter)
        assert loaded["meta"].is_meta
        assert torch.equal(loaded["strided"], state["strided"])

    def test_loading_does_not_hold_on_to_the_file(self, loop, path):
        torch.save(nanogpt(loop), path)
        loaded = load_checkpoint(path)
        path.write_bytes(b"\xff" * path.stat().st_size)
        assert_continues_exactly(loaded, loop)


@pytest.fixture(scope="module")
def module_class() -> Any:
    from lightning.pytorch import LightningModule

    class Module(LightningModule):
        def __init__(self, width: int = 8) -> None:
            super().__init__()
            self.save_hyperparameters()
            torch.manual_seed(0)
            self.module = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1))
            self.record = Record(losses=[])

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = (self.module(batch) - batch.sum(1, keepdim=True)).square().mean()
            self.record.losses.append(loss.item())
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    return Module


def batches(first: int, last: int) -> list[torch.Tensor]:
    return [torch.randn(6, 4, generator=torch.Generator().manual_seed(step)) for step in range(first, last)]


@pytest.fixture(scope="module")
def trained(module_class, tmp_path_factory) -> tuple[Path, list[float], list[torch.Tensor]]:
    """A checkpoint after five of ten steps; the losses of the other five, and the weights in the end."""
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    directory = tmp_path_factory.mktemp("lightning")
    callback = ModelCheckpoint(directory, filename="at-{step}", every_n_train_steps=5, save_top_k=-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            max_steps=10,
            accelerator="cpu",
            logger=False,
            callbacks=[callback],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = module_class()
        trainer.fit(module, torch.utils.data.DataLoader(batches(0, 10), batch_size=None))
    return directory / "at-step=5.ckpt", module.record.losses[5:], list(module.state_dict().values())


class TestLightning:
    """A file that a real ``Trainer`` wrote, without this package's callback."""

    def test_what_is_in_it_is_found(self, trained):
        loaded = load_checkpoint(trained[0])
        assert loaded.form == "lightning"
        assert loaded.global_step == 5
        assert loaded.epoch == 0
        assert loaded.config == {"width": 8}
        assert len(loaded.optimizer_states) == len(loaded.lr_scheduler_states) == 1
        assert loaded.checkpoint is None

    def test_a_hand_written_loop_continues_it_exactly(self, trained, module_class):
        """Its one child is called ``module``: no data-parallel wrapper, and its name stays."""
        path, losses, weights = trained
        module = module_class(width=8)
        (optimizer,), (scheduler,) = module.configure_optimizers()
        scheduler = scheduler["scheduler"]
        loaded = load_checkpoint(path)
        assert list(loaded.model_state) == list(module.state_dict())
        with pytest.warns(InexactResumeWarning, match="random number generators"):
            loaded.restore(model=module, optimizers=optimizer, schedulers=scheduler)
        for batch in batches(5, 10):
            optimizer.zero_grad()
            module.training_step(batch, 0).backward()
            optimizer.step()
            scheduler.step()
        assert module.record.losses == losses
        assert all(map(torch.equal, module.state_dict().values(), weights))

    def test_under_any_name(self, trained, tmp_path):
        for name in ("x.json", "x-optimizer.pt", "x-model.pt", "nanogpt.pt", "model"):
            (tmp_path / name).write_bytes(trained[0].read_bytes())
            assert load_checkpoint(tmp_path / name).form == "lightning"


class TestFormIsFoundByContent:
    """Names say nothing: a file may be called like a part of ours, or like anybody's."""

    @pytest.mark.parametrize(
        "name",
        [
            "checkpoint-step000005-model.pt",
            "checkpoint-step000005-optimizer.pt",
            "checkpoint-step000005.json",
            "last.ckpt",
            "weights.bin",
            "no-extension",
        ],
    )
    @pytest.mark.parametrize("zipped", [True, False])
    def test_of_one_file(self, name, zipped, loop, tmp_path):
        torch.save(nanogpt(loop), tmp_path / name, _use_new_zipfile_serialization=zipped)
        loaded = load_checkpoint(tmp_path / name)
        assert loaded.form == "nanogpt"
        assert_continues_exactly(loaded, loop)

    def test_of_two_files_that_somebody_else_named_like_ours(self, loop, tmp_path):
        """``x-model.pt`` and ``x-optimizer.pt``, written by a loop that had the same idea."""
        torch.save(loop.model.state_dict(), tmp_path / "x-model.pt")
        torch.save({"state_dict": {"w": torch.ones(1)}, "optimizer": {}}, tmp_path / "x-optimizer.pt")
        assert list(load_checkpoint(tmp_path / "x-model.pt", load_optimizer=False).model_state) == list(
            loop.model.state_dict()
        )
        with pytest.raises(MissingOptimizerError):
            load_checkpoint(tmp_path / "x-model.pt")
        assert load_checkpoint(tmp_path / "x-optimizer.pt").form == "plain"

    def test_through_a_link(self, loop, tmp_path):
        torch.save(nanogpt(loop), tmp_path / "real.pt")
        (tmp_path / "last.pt").symlink_to("real.pt")
        assert load_checkpoint(str(tmp_path / "last.pt")).form == "nanogpt"


class TestRefusals:
    @pytest.mark.parametrize(
        ("content", "found"),
        [
            ({"weights": {"w": torch.ones(1)}, "epoch": 1}, r"a dict with the keys \['epoch', 'weights'\]"),
            ({"state": {}, "param_groups": []}, r"a dict with the keys \['param_groups', 'state'\]"),
            ({}, r"a dict with the keys \[\]"),
            ({"model": torch.ones(1), "epoch": 1}, r"a dict with the keys \['epoch', 'model'\]"),
            (dict.fromkeys(range(50), 0), r"a dict with the keys \['0', '1', '10', .*\]"),
            ([1, 2], "a list"),
            (torch.ones(2), "a Tensor"),
            (None, "a NoneType"),
        ],
        ids=lambda value: str(value)[:25],
    )
    def test_what_is_no_known_form_is_refused_with_what_is_in_it(self, content, found, path):
        torch.save(content, path)
        with pytest.raises(
            UnknownFormatError, match=rf"ckpt\.pt: this is not a checkpoint.*found {found}.*torch\.load"
        ):
            load_checkpoint(path)

    @pytest.mark.parametrize("content", [b'{"n_layer": 2}', b"#!/bin/sh\n", b"\x00" * 100, b"\x89HDF\r\n"])
    @pytest.mark.parametrize("name", ["config.json", "ckpt.pt"])
    def test_a_file_that_torch_never_wrote_is_no_reason_to_trust_it(self, content, name, tmp_path):
        """The error must not be the one whose remedy is ``trusted=True``."""
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnknownFormatError, match="neither a zip archive nor a pickle"):
            load_checkpoint(tmp_path / name)

    def test_an_empty_file_is_damage(self, path):
        """What a full disk leaves of a file that was written in place."""
        path.write_bytes(b"")
        with pytest.raises(DamagedCheckpointError, match=r"ckpt\.pt"):
            load_checkpoint(path)

    def test_no_file(self, tmp_path):
        with pytest.raises(CheckpointNotFoundError, match=r"none\.ckpt"):
            load_checkpoint(tmp_path / "none.ckpt")

    def test_a_plain_pickle_is_not_read(self, path):
        path.write_bytes(pickle.dumps({"state_dict": {}}, protocol=2))
        with pytest.raises(CheckpointError, match=r"ckpt\.pt"):
            load_checkpoint(path)

    def test_a_model_that_it_does_not_fit_is_told_the_names(self, loop, path):
        torch.save(nanogpt(loop), path)
        model = nn.Sequential(nn.Linear(4, 9), nn.BatchNorm1d(9), nn.Linear(9, 1), nn.Linear(1, 1))
        with pytest.raises(
            StateMismatchError, match=r"missing in the checkpoint: 3\.weight.*0\.weight: shape \(8, 4\)"
        ):
            load_checkpoint(path).restore(model=model)


class TestDamage:
    """Unified files have no digests, but zip archives have a CRC-32 for each record."""

    def same(self, one: LoadedCheckpoint, other: LoadedCheckpoint) -> bool:
        return str((one.form, one.config, one.global_step, one.optimizer_states, one.model_state)) == str(
            (other.form, other.config, other.global_step, other.optimizer_states, other.model_state)
        )

    def damaged(self, path: Path, step: int = 1) -> Any:
        """The file with one bit flipped, at one byte after the other."""
        raw = path.read_bytes()
        for at in range(0, len(raw), step):
            changed = bytearray(raw)
            changed[at] ^= 1 << at % 8
            path.write_bytes(changed)
            yield at
        path.write_bytes(raw)

    def small(self, path: Path, **options: Any) -> LoadedCheckpoint:
        torch.save({"model": {"w": torch.arange(30.0)}, "optimizer": {"state": {}}, "iter_num": 3}, path, **options)
        return load_checkpoint(path)

    @pytest.mark.filterwarnings("ignore:Detected pickle protocol")
    def test_a_flipped_bit_is_refused_or_has_changed_nothing(self, path):
        """Nothing but padding, times and flags of the archive is not covered; and every error is a typed one."""
        whole = self.small(path)
        refused = passed = 0
        for _ in self.damaged(path, step=2):
            try:
                loaded = load_checkpoint(path)
            except (DamagedCheckpointError, UnknownFormatError):
                refused += 1
            else:
                assert self.same(loaded, whole)
                passed += 1
        assert refused > 250
        assert passed > 50

    def test_in_a_tensor_it_is_named_by_its_record(self, path):
        self.small(path)
        raw = path.read_bytes()
        at = raw.index(torch.arange(30.0).numpy().tobytes())
        path.write_bytes(raw[: at + 50] + b"\xff" + raw[at + 51 :])
        with pytest.raises(DamagedCheckpointError, match=r"ckpt\.pt: .* in record ckpt/data/0: its CRC-32.*another"):
            load_checkpoint(path)
        assert not torch.equal(load_checkpoint(path, verify=False).model_state["w"], torch.arange(30.0))

    @pytest.mark.filterwarnings("ignore:Detected pickle protocol")
    @pytest.mark.parametrize("zipped", [True, False])
    def test_unverified_every_error_is_a_typed_one(self, zipped, path):
        whole = self.small(path, _use_new_zipfile_serialization=zipped)
        outcomes = set()
        for _ in self.damaged(path, step=3):
            try:
                outcomes.add(self.same(load_checkpoint(path, verify=False), whole))
            except CheckpointError as error:
                outcomes.add(type(error))
        assert DamagedCheckpointError in outcomes

    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_truncated_file_is_refused(self, zipped, path):
        self.small(path, _use_new_zipfile_serialization=zipped)
        raw = path.read_bytes()
        for length in range(1 if zipped else 200, len(raw), 9):
            path.write_bytes(raw[:length])
            with pytest.raises(CheckpointError, match=r"ckpt\.pt"):
                load_checkpoint(path)

    def test_an_archive_without_checksums_is_read_all_the_same(self, path):
        torch.utils.serialization.config.save.compute_crc32 = False
        try:
            assert self.small(path).global_step == 3
        finally:
            torch.utils.serialization.config.save.compute_crc32 = True


def test_every_listed_key_is_one_that_the_reader_knows():
    """So that a key that is added there is tested here."""
    from neuromanifold_gpt.checkpoint import foreign

    assert foreign._MODEL_KEYS == MODEL_KEYS
    assert foreign._OPTIMIZER_KEYS == OPTIMIZER_KEYS
    assert foreign._SCHEDULER_KEYS == SCHEDULER_KEYS
    assert foreign._STEP_KEYS == STEP_KEYS
    assert foreign._CONFIG_KEYS == CONFIG_KEYS
