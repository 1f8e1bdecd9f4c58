"""What separating is for: a model file that is a third of the whole, and needs nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from neuromanifold_gpt import Checkpoint, list_checkpoints, load_checkpoint, save_checkpoint, verify_checkpoint
from neuromanifold_gpt.checkpoint.errors import MissingOptimizerError
from neuromanifold_gpt.gpt.model import GPT, GPTConfig

CONFIG = GPTConfig(block_size=64, vocab_size=512, n_layer=3, n_head=4, n_embd=128, dropout=0.1)


class Training:
    """A GPT after three steps of AdamW."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = GPT(CONFIG)
        self.optimizer = torch.optim.AdamW(self.model.optimizer_parameter_groups(weight_decay=0.1), lr=1e-3)
        self.scheduler = torch.optim.lr_scheduler.LinearLR(self.optimizer, total_iters=10)
        for _ in range(3):
            self.step()

    def step(self) -> float:
        tokens = torch.randint(CONFIG.vocab_size, (2, 65))
        loss = self.model(tokens[:, :-1], tokens[:, 1:])[1]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return loss.item()

    def save(self, directory: Path, **options: object) -> Checkpoint:
        return save_checkpoint(
            directory,
            step=3,
            model=self.model,
            optimizers=self.optimizer,
            schedulers=self.scheduler,
            config=vars(CONFIG),
            **options,
        )

    def save_unified(self, path: Path) -> int:
        """What a loop without this package writes; its size in bytes."""
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "iter_num": 3,
                "config": vars(CONFIG),
            },
            path,
        )
        return path.stat().st_size


@pytest.fixture(scope="module")
def training() -> Training:
    return Training()


@pytest.fixture
def checkpoint(training, tmp_path) -> Checkpoint:
    return training.save(tmp_path / "run")


class TestSizes:
    """AdamW keeps two numbers for each weight; nothing is stored twice."""

    def test_the_model_file_is_a_third_of_the_unified_one(self, training, checkpoint, tmp_path):
        unified_bytes = training.save_unified(tmp_path / "unified.pt")
        assert checkpoint.model_path.stat().st_size <= 0.34 * unified_bytes

    def test_both_files_together_are_hardly_larger_than_the_unified_one(self, training, checkpoint, tmp_path):
        unified_bytes = training.save_unified(tmp_path / "unified.pt")
        assert checkpoint.size_bytes <= 1.01 * unified_bytes

    def test_the_model_file_is_hardly_larger_than_its_weights(self, training, checkpoint):
        weights_bytes = 4 * sum(parameter.numel() for parameter in training.model.parameters())
        assert checkpoint.model_path.stat().st_size <= 1.01 * weights_bytes

    def test_the_optimizer_file_holds_no_weights(self, training, checkpoint):
        """Every tensor of the model's shapes in it is a moment."""
        weights = {weight.numpy().tobytes() for weight in training.model.state_dict().values()}
        optimizer_file = checkpoint.optimizer_path.read_bytes()
        assert len(weights) > 20
        assert not any(weight in optimizer_file for weight in weights if weight.strip(b"\0") and len(weight) > 1000)
        assert not any(record.path.startswith("state_dict") for record in checkpoint.manifest.tensors["optimizer"])

    def test_there_are_three_files_with_the_documented_names(self, checkpoint):
        assert sorted(path.name for path in checkpoint.directory.iterdir()) == [
            "checkpoint-step000003-model.pt",
            "checkpoint-step000003-optimizer.pt",
            "checkpoint-step000003.json",
        ]


class TestModelFileAlone:
    """Copied away from the others, it is enough for inference."""

    @pytest.fixture
    def alone(self, checkpoint, tmp_path) -> Path:
        path = tmp_path / "elsewhere" / "gpt.pt"
        path.parent.mkdir()
        path.write_bytes(checkpoint.model_path.read_bytes())
        return path

    def logits(self, model: GPT) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(torch.arange(64)[None])[0]

    @pytest.mark.parametrize("mmap", [True, False])
    def test_stock_torch_builds_the_same_model_from_it(self, training, alone, mmap):
        content = torch.load(alone, weights_only=True, mmap=mmap)
        model = GPT(GPTConfig(**content["config"]))
        model.load_state_dict(content["state_dict"])
        assert torch.equal(self.logits(model), self.logits(training.model))

    def test_load_checkpoint_reads_it_without_the_others(self, training, alone):
        loaded = load_checkpoint(alone, load_optimizer=False)
        assert loaded.global_step == 3
        assert loaded.config == vars(CONFIG)
        assert loaded.optimizer_states is None
        assert loaded.checkpoint is None
        model = GPT(GPTConfig(**loaded.config))
        loaded.restore(model=model)
        assert torch.equal(self.logits(model), self.logits(training.model))

    def test_the_optimizer_file_is_not_even_opened_without_need(self, training, checkpoint):
        checkpoint.optimizer_path.unlink()
        checkpoint.optimizer_path.write_bytes(bytes(checkpoint.manifest.files["optimizer"].size_bytes))
        model = GPT(CONFIG)
        load_checkpoint(checkpoint, load_optimizer=False).restore(model=model)
        assert torch.equal(self.logits(model), self.logits(training.model))

    def test_it_can_be_trained_on_with_a_new_optimizer(self, alone):
        loaded = load_checkpoint(alone, load_optimizer=False)
        model = GPT(GPTConfig(**loaded.config))
        optimizer = torch.optim.AdamW(model.parameters())
        with pytest.raises(MissingOptimizerError, match="no optimizer state"):
            loaded.restore(model=model, optimizers=optimizer)
        loaded.restore(model=model)
        before = model.state_dict()["transformer.wte.weight"].clone()
        F.cross_entropy(model(torch.arange(8)[None])[0].flatten(0, 1), torch.zeros(1, dtype=torch.long)).backward()
        optimizer.step()
        assert not torch.equal(before, model.state_dict()["transformer.wte.weight"])


class TestModelOnly:
    """``save_model_only=True``: a model file, and a manifest that says so."""

    def test_it_is_complete_without_an_optimizer_file(self, training, tmp_path):
        checkpoint = training.save(tmp_path, save_model_only=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "checkpoint-step000003-model.pt",
            "checkpoint-step000003.json",
        ]
        assert checkpoint.model_only
        assert checkpoint.optimizer_path is None
        assert list_checkpoints(tmp_path) == [checkpoint]
        assert verify_checkpoint(checkpoint).files == 1

    def test_its_model_holds_the_same_weights(self, training, checkpoint, tmp_path):
        only = training.save(tmp_path / "only", save_model_only=True)
        one, other = (load_checkpoint(path, load_optimizer=False).model_state for path in (only, checkpoint))
        assert list(one) == list(other)
        assert all(torch.equal(one[name], other[name]) for name in one)

    def test_asked_for_optimizer_state_it_says_that_there_is_none(self, training, tmp_path):
        checkpoint = training.save(tmp_path, save_model_only=True)
        for argument in (checkpoint, checkpoint.model_path, checkpoint.paths.manifest, tmp_path):
            with pytest.raises(MissingOptimizerError, match=r"model-only.*load_optimizer=False"):
                load_checkpoint(argument)


def test_both_files_continue_the_training_to_the_bit(checkpoint):
    """The weights, the moments, the schedule and the random numbers of dropout and of the data."""
    uninterrupted = Training()  # from the seed to the moment of the save, once more
    load_checkpoint(checkpoint).restore()  # the random numbers: saving drew none, but other tests may have
    expected = [uninterrupted.step() for _ in range(3)]

    resumed = Training()
    with torch.no_grad():
        for parameter in resumed.model.parameters():
            parameter.zero_()
    loaded = load_checkpoint(checkpoint)
    loaded.restore(model=resumed.model, optimizers=resumed.optimizer, schedulers=resumed.scheduler)
    assert [resumed.step() for _ in range(3)] == expected
    for one, other in zip(uninterrupted.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
