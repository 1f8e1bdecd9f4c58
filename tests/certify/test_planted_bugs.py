"""Each program has one planted bug; certify must give the right verdict and name the right cause."""

from __future__ import annotations

import pytest

from neuromanifold_gpt.certify.interruptions import Plan
from neuromanifold_gpt.certify.verdict import Verdict

from .running import NUMPY, KnownPrograms

# Bug, component, words of the sentence, first step that differs in a log or checkpoint (resumed at 21, saved at 25).
DIVERGING = [
    ("rng", "random number generators", "random numbers were not restored", 21),
    ("data_restarted", "position in the data", "began anew", 21),
    ("data_skipped", "position in the data", "2 samples or batches were skipped", 21),
    ("batch_repeated", "position in the data", "the last batch was repeated", 21),
    ("scheduler", "learning-rate scheduler", "that of step 22, 1 steps ahead", 21),
    ("momentum", "optimizer state", "exp_avg is", 22),
    ("exp_avg_sq", "optimizer state", "exp_avg_sq is", 22),
    ("step_counter", "optimizer state", "counts its steps anew", 22),
    ("ema", "averaged weights (EMA)", "average of the weights", 25),
    ("scaler", "gradient scaler", "scale", 25),
    ("wrong_weights", "weights", "other weights were loaded", 21),
    ("batch_norm", "batch-norm buffers", "running means", 25),
]


@pytest.mark.parametrize(("bug", "component", "words", "first_step"), DIVERGING, ids=[row[0] for row in DIVERGING])
def test_the_cause_is_named(programs: KnownPrograms, bug: str, component: str, words: str, first_step: int):
    certificate = programs.certify(NUMPY, [*NUMPY, f"--bug={bug}"])
    [found] = certificate.interrupted
    assert found.judgement.verdict is Verdict.DIVERGED
    assert certificate.verdict is Verdict.DIVERGED
    assert found.diagnosis is not None
    assert found.diagnosis.component == component, found.diagnosis
    assert words in found.diagnosis.sentence
    assert found.judgement.first_step == first_step


def test_a_program_without_a_bug_is_exact(programs: KnownPrograms):
    certificate = programs.certify(NUMPY, plan=Plan(at_steps=(22,), at_random=1, times=2, seed=1))
    assert certificate.verdict is Verdict.EXACT, [run.judgement for run in certificate.interrupted]
    assert all(len(run.restarts) == 2 for run in certificate.interrupted)
    assert [restart.first_step for restart in certificate.interrupted[0].restarts] == [21, 21]


def test_one_that_begins_anew_does_not_resume_although_its_bytes_are_equal(programs: KnownPrograms):
    certificate = programs.certify(NUMPY, [*NUMPY, "--bug=started_over"])
    [found] = certificate.interrupted
    assert found.comparison is not None
    assert not any(file.differences for file in found.comparison.files)
    assert found.judgement.verdict is Verdict.DOES_NOT_RESUME
    assert "began anew, although step 20 was there" in found.judgement.reasons[0]


def test_one_that_resumes_from_an_older_checkpoint_loses_work(programs: KnownPrograms):
    [found] = programs.certify(NUMPY, [*NUMPY, "--bug=older"]).interrupted
    assert found.judgement.verdict is Verdict.LOST_WORK
    [restart] = found.restarts
    assert (restart.checkpoint_step, restart.first_step, restart.lost_steps) == (20, 16, 5)


def test_one_that_fails_to_start_again_does_not_resume(programs: KnownPrograms):
    [found] = programs.certify(NUMPY, [*NUMPY, "--bug=crash"]).interrupted
    assert found.judgement.verdict is Verdict.DOES_NOT_RESUME
    assert "exit code 1" in found.judgement.reasons[0]
    assert "KeyError: 'model' is not in the checkpoint" in found.judgement.reasons[1]


def test_one_that_hangs_does_not_resume(programs: KnownPrograms):
    [found] = programs.certify(NUMPY, [*NUMPY, "--bug=hang"], stall_sec=1.5).interrupted
    assert found.judgement.verdict is Verdict.DOES_NOT_RESUME
    assert "does not end" in found.judgement.reasons[0]


def test_one_that_trains_too_long_diverges(programs: KnownPrograms):
    [found] = programs.certify(NUMPY, [*NUMPY, "--bug=too_long"]).interrupted
    assert found.judgement.verdict is Verdict.DIVERGED
    assert "trained on to step 50; undisturbed, it ends at step 40" in found.judgement.reasons[0]


def test_a_tiny_difference_is_told_with_its_size(programs: KnownPrograms):
    [found] = programs.certify(NUMPY, [*NUMPY, "--bug=tiny_error"]).interrupted
    assert found.judgement.verdict is Verdict.EQUAL_WITHIN
    assert found.judgement.within is not None
    absolute, relative, ulps = found.judgement.within
    assert 0 < absolute < 1e-9
    assert 0 < relative < 1e-6
    assert ulps is not None
    assert ulps > 1
    [found] = programs.certify(NUMPY, [*NUMPY, "--bug=tiny_error"], tolerance=0.0).interrupted
    assert found.judgement.verdict is Verdict.DIVERGED


def test_a_logged_number_that_undisturbed_runs_differ_in_is_left_out_and_named(programs: KnownPrograms):
    certificate = programs.certify([*NUMPY, "--bug=random_log"])
    assert certificate.verdict is Verdict.EXACT
    assert certificate.determinism is not None
    assert "loss" in certificate.determinism.left_out


def test_a_program_that_is_not_deterministic_is_told_so(programs: KnownPrograms):
    certificate = programs.certify([*NUMPY, "--bug=unseeded"])
    assert certificate.verdict is Verdict.NOT_DETERMINISTIC
    assert not certificate.interrupted
    assert certificate.determinism is not None
    assert certificate.determinism.first_step == 2  # the weights begin with zeros, so dropout shows in the second loss
    assert any("ckpt-0005.npz: model/weight" in line for line in certificate.determinism.differing)
