"""Several ranks: all of them are killed, and what differs on one alone is found."""

from __future__ import annotations

import sys

import pytest

from neuromanifold_gpt.certify.interruptions import Plan
from neuromanifold_gpt.certify.verdict import Verdict

from .running import HERE, KnownPrograms

pytestmark = pytest.mark.slow
TWO_RANKS = [
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
    *(str(HERE / "ddp_program.py"), "{out}"),
]


def test_two_ranks_that_resume_are_exact(programs: KnownPrograms):
    certificate = programs.certify(TWO_RANKS, plan=Plan(at_steps=(13,), during_save=1), stall_sec=120.0)
    assert certificate.verdict is Verdict.EXACT, [run.judgement for run in certificate.interrupted]


def test_random_numbers_of_another_rank_are_found(programs: KnownPrograms):
    certificate = programs.certify(
        TWO_RANKS, [*TWO_RANKS, "--bug"], Plan(at_steps=(13,)), second_look=True, stall_sec=120.0
    )
    [found] = certificate.interrupted
    assert found.judgement.verdict is Verdict.DIVERGED
    assert found.judgement.first_step == found.restarts[0].first_step
    assert found.diagnosis is not None
    assert found.diagnosis.component == "random number generators"
    assert found.diagnosis.sentence.startswith("on rank 1, ")
