"""Each program has one planted bug; certify must give the right verdict and name the right cause."""

from __future__ import annotations

import pytest

from neuromanifold_gpt.certify.interruptions import Plan
from neuromanifold_gpt.certify.verdict import Verdict

from .running import NUMPY, KnownPrograms

# Bug, component, words of the sentence, how many steps behind the first resumed one something differs first; it saves
# every five steps, four behind.
DIVERGING = [
    ("rng", "random number generators", "random numbers were not restored", 0),
    ("data_restarted", "position in the data", "began anew", 0),
    ("data_skipped", "position in the data", "2 samples or batches were skipped", 0),
    ("batch_repeated", "position in the data", "the last batch was repeated", 0),
    ("scheduler", "learning-rate scheduler", "that of step {next}, 1 steps ahead", 0),
    ("momentum", "optimizer state", "exp_avg is", 1),
    ("exp_avg_sq", "optimizer state", "exp_avg_sq is", 1),
    ("step_counter", "optimizer state", "counts its steps anew", 1),
    ("ema", "averaged weights (EMA)", "average of the weights", 4),
    ("scaler", "gradient scaler", "scale", 4),
    ("wrong_weights", "weights or data", "other weights were loaded", 0),
    ("curriculum", "counter or schedule", "difficulty of step {resumed_at} is that of step 1", 0),
    ("tokens", "other state", "tokens_seen was not restored", 4),
    ("batch_norm", "batch-norm buffers", "running means", 4),
]


@pytest.mark.parametrize(("bug", "component", "words", "behind"), DIVERGING, ids=[row[0] for row in DIVERGING])
def test_the_cause_is_named(programs: KnownPrograms, bug: str, component: str, words: str, behind: int):
    certificate = programs.certify(NUMPY, [*NUMPY, f"--bug={bug}"])
    [found] = certificate.interrupted
    assert found.judgement.verdict is Verdict.DIVERGED
    assert certificate.verdict is Verdict.DIVERGED
    assert found.diagnosis is not None
    assert found.diagnosis.component == component, found.diagnosis
    # 21; later where the machine was busy, and the program faster than the kill.
    resumed_at = found.restarts[0].first_step
    assert resumed_at in range(21, 40, 5)
    assert words.format(resumed_at=resumed_at, next=resumed_at + 1) in found.diagnosis.sentence
    assert found.judgement.first_step == resumed_at + behind


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


def test_one_that_ends_at_once_is_not_said_to_have_trained(programs: KnownPrograms):
    [found] = programs.certify(NUMPY, [*NUMPY, "--bug=ends_at_once"]).interrupted
    assert found.judgement.verdict is Verdict.DOES_NOT_RESUME
    assert "it ended with exit code 0 and trained nothing, although step" in found.judgement.reasons[0]


@pytest.mark.parametrize(("log", "how"), [("jsonl", "all at once"), ("print", "not logged at all")])
def test_one_that_copies_what_a_run_left_elsewhere_is_not_proven(programs: KnownPrograms, log: str, how: str):
    certificate = programs.certify([*NUMPY, "--bug=copies", "--sleep_ms=10", f"--log={log}"])
    assert certificate.verdict is Verdict.NOT_PROVEN
    [found] = certificate.interrupted
    assert found.comparison is not None
    assert not any(file.differences for file in found.comparison.files)
    assert how in found.judgement.reasons[0]


def test_one_that_trained_to_its_end_after_sigterm_has_shown_no_resume(programs: KnownPrograms):
    certificate = programs.certify([*NUMPY, "--bug=deaf"], plan=Plan(at_steps=(12,), signal_names=("TERM",)))
    assert certificate.verdict is Verdict.NOT_PROVEN
    [found] = certificate.interrupted
    assert [attempt.exit_code for attempt in found.run.attempts] == [0, 0]
    assert any("trained on to its end after SIGTERM" in note for note in found.judgement.notes)


def test_one_that_finishes_its_last_save_after_sigterm_has_nothing_left_to_do(programs: KnownPrograms):
    plan = Plan(during_save=1, signal_names=("TERM",))  # of two saves the last: the first has no other beside it
    certificate = programs.certify([*NUMPY, "--bug=polite", "--steps=10", "--sleep_ms=20"], plan=plan)
    [found] = certificate.interrupted
    assert found.judgement.verdict is Verdict.EXACT, found.judgement
    assert any("nothing was left to do" in note for note in found.judgement.notes)
    [restart] = found.restarts
    assert (restart.interrupted_at, restart.checkpoint_step, restart.first_step) == (10, 10, None)
    assert certificate.verdict is Verdict.NOT_PROVEN  # no resume was seen


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
