"""What certify says of common ways of training: the programs in ``examples/``, and this package's own ``train.py``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from neuromanifold_gpt.certify import Verdict, certify

from .running import HERE

EXAMPLES = HERE.parents[1] / "examples"
TRAIN = [
    *(sys.executable, str(HERE.parents[1] / "train.py"), "--out_dir={out}", "--max_iters=60", "--n_layer=2"),
    *("--n_embd=64", "--block_size=64", "--eval_interval=20", "--save_interval=20", "--log_interval=1"),
    "--sample_tokens=0",
]


def example(name: str) -> list[str]:
    return [sys.executable, str(EXAMPLES / f"{name}.py"), "--out_dir={out}"]


@pytest.mark.slow
def test_a_nanogpt_style_loop_diverges_in_its_random_numbers(tmp_path: Path):
    command = example("nanogpt_style")
    certificate = certify(command, resume_command=[*command, "--resume"], work=tmp_path / "w", at_steps=[35])
    [found] = certificate.interrupted
    assert found.judgement.verdict is Verdict.DIVERGED
    assert found.judgement.first_step == found.restarts[0].first_step
    assert found.diagnosis is not None
    assert found.diagnosis.component == "random number generators"


@pytest.mark.slow
def test_a_nanogpt_style_loop_loses_everything_in_the_middle_of_a_save(tmp_path: Path):
    command = example("nanogpt_style")
    certificate = certify(command, resume_command=[*command, "--resume"], work=tmp_path / "w", during_save=1)
    assert certificate.verdict is Verdict.DOES_NOT_RESUME
    assert [half.relative for half in certificate.interrupted[0].run.attempts[0].half_written] == ["ckpt.pt"]


@pytest.mark.slow
def test_train_py_is_exact_by_either_signal_and_in_the_middle_of_saves(tmp_path: Path):
    certificate = certify(TRAIN, work=tmp_path / "w", at_random=1, during_save=1, signals=["KILL", "TERM"], times=2)
    assert certificate.exact, [found.judgement for found in certificate.interrupted]


@pytest.mark.slow
def test_stock_lightning_diverges_at_the_first_resumed_step(tmp_path: Path):
    pytest.importorskip("lightning")
    certificate = certify(example("lightning_stock"), work=tmp_path / "w", at_steps=[32])
    [found] = certificate.interrupted
    assert found.judgement.verdict is Verdict.DIVERGED
    assert found.judgement.first_step == 27  # Lightning counts from 0: the 28th step, after the checkpoint of 27
    assert found.diagnosis is not None
    assert found.diagnosis.component == "random number generators"
    assert "began anew" in found.diagnosis.sentence


@pytest.mark.slow
def test_hf_trainer_is_exact_between_saves_and_takes_a_torn_checkpoint(tmp_path: Path):
    pytest.importorskip("transformers", reason="not in this environment; make certify has it")
    certificate = certify(example("hf_trainer"), work=tmp_path / "w", at_steps=[32], during_save=1)
    between, during = certificate.interrupted
    assert between.judgement.verdict is Verdict.EXACT
    assert during.judgement.verdict is Verdict.DOES_NOT_RESUME


@pytest.mark.slow
def test_accelerate_diverges_in_torchs_random_numbers(tmp_path: Path):
    pytest.importorskip("accelerate", reason="not in this environment; make certify has it")
    certificate = certify(example("accelerate_loop"), work=tmp_path / "w", at_steps=[32])
    [found] = certificate.interrupted
    assert found.judgement.verdict is Verdict.DIVERGED
    assert found.judgement.first_step == found.restarts[0].first_step
    assert found.judgement.first_step % 9 == 1  # behind a save, 28 unless the kill comes late
    assert found.diagnosis is not None
    assert found.diagnosis.component == "random number generators"
