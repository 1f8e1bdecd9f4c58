"""The second look at a torch program: what went into the first wrong optimizer step, whatever is in its checkpoints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from neuromanifold_gpt.certify.interruptions import Plan
from neuromanifold_gpt.certify.second_look import diagnose_traces, read_trace, tracing_environment
from neuromanifold_gpt.certify.verdict import Verdict

from .running import HERE, KnownPrograms
from .test_front import ENVIRONMENT

TORCH = [sys.executable, str(HERE / "torch_program.py"), "{out}"]

# Bug, component, words of the sentence. Nothing of this is in the checkpoints: no position, no random numbers.
BUGS = [
    ("data_restarted", "position in the data", "trained on the first batch again"),
    ("data_skipped", "position in the data", "2 batches were skipped"),
    ("batch_repeated", "position in the data", "the last batch was repeated"),
    ("other_order", "position in the data", "another order"),
    ("rng", "random number generators", "dropout"),
    ("momentum", "optimizer state", "exp_avg of the optimizer was not restored, step, exp_avg_sq was"),
    ("exp_avg_sq", "optimizer state", "exp_avg_sq of the optimizer was not restored, step, exp_avg was"),
    ("step_counter", "optimizer state", "It counts its steps anew"),
    ("optimizer", "optimizer state", "empty buffers"),
    ("scheduler", "learning-rate scheduler", "that of step 12, 1 ahead"),
    ("wrong_weights", "weights", "they are those before step 6"),
    ("batch_norm", "batch-norm buffers", "running means"),
    ("weight_decay", "optimizer settings", "weight decay"),
    ("gradients", "gradients", "something else enters them"),
]


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces of an undisturbed run, and of a resume with each bug: of one process that forks, to import torch once."""
    directory = tmp_path_factory.mktemp("traces")
    environment = {**ENVIRONMENT, **tracing_environment(directory / "unused", str(HERE.parents[1]))}
    names = [bug for bug, *_ in BUGS]
    subprocess.run(
        [sys.executable, str(HERE / "torch_program.py"), "--each", str(directory), *names], env=environment, check=True
    )
    return directory


@pytest.mark.parametrize(("bug", "component", "words"), BUGS, ids=[row[0] for row in BUGS])
def test_the_cause_is_named(traces: Path, bug: str, component: str, words: str):
    undisturbed, before = read_trace(traces / "undisturbed"), read_trace(traces / "before")
    assert (len(undisturbed), len(before)) == (20, 10)
    found = diagnose_traces(undisturbed, before, read_trace(traces / bug), 11, range(1, 21))
    assert found is not None
    assert found.component == component
    assert words in found.sentence
    assert "optimizer step 1" in found.evidence[0]


def test_a_resume_without_a_bug_shows_no_difference(traces: Path):
    undisturbed = read_trace(traces / "undisturbed")
    assert (
        diagnose_traces(undisturbed, read_trace(traces / "before"), read_trace(traces / "none"), 11, range(1, 21))
        is None
    )


@pytest.mark.slow
def test_certify_looks_again_and_names_what_files_cannot_tell(programs: KnownPrograms):
    resume = [*TORCH, "--bug=data_skipped"]
    plan = Plan(at_steps=(13,))
    certificate = programs.certify(TORCH, resume, plan, second_look=True, stall_sec=60.0)
    [found] = certificate.interrupted
    assert found.judgement.verdict is Verdict.DIVERGED
    assert found.judgement.first_step == 11
    assert found.diagnosis is not None
    assert found.diagnosis.component == "position in the data"
    assert "2 batches were skipped" in found.diagnosis.sentence


def test_the_hooks_change_nothing(tmp_path: Path):
    traced = {**ENVIRONMENT, **tracing_environment(tmp_path / "trace", str(HERE.parents[1]))}
    for name, environment in (("plain", ENVIRONMENT), ("traced", traced)):
        (tmp_path / name).mkdir()
        subprocess.run([sys.executable, TORCH[1], str(tmp_path / name)], env=environment, check=True)
    assert len(read_trace(tmp_path / "trace")) == 20
    files = {path.name: path.read_bytes() for path in (tmp_path / "plain").iterdir()}
    assert len(files) == 5
    assert {path.name: path.read_bytes() for path in (tmp_path / "traced").iterdir()} == files


def test_another_sitecustomize_still_runs(tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.project_was_here = True")
    environment = {**ENVIRONMENT, **tracing_environment(tmp_path / "trace", str(tmp_path))}
    subprocess.run([sys.executable, "-c", "assert project_was_here"], env=environment, check=True)
