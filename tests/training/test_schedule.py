"""The learning rate is a function of the step."""

from __future__ import annotations

import itertools

import pytest

from neuromanifold_gpt.training.schedule import learning_rate_factor


def test_linear_warm_up_then_constant():
    factor = learning_rate_factor(learning_rate=1e-3, min_lr=1e-4, warmup_iters=10, lr_decay_iters=None)
    assert [factor(step) for step in range(10)] == [(step + 1) / 10 for step in range(10)]
    assert {factor(step) for step in (9, 10, 11, 1000)} == {1.0}


def test_cosine_falls_to_min_lr_and_stays():
    factor = learning_rate_factor(learning_rate=1e-3, min_lr=1e-4, warmup_iters=10, lr_decay_iters=110)
    rates = [1e-3 * factor(step) for step in range(10, 111)]
    assert rates[0] == 1e-3
    assert all(earlier > later for earlier, later in itertools.pairwise(rates))
    assert rates[50] == pytest.approx((1e-3 + 1e-4) / 2)
    assert rates[-1] == pytest.approx(1e-4)
    assert factor(5000) == factor(110)


def test_no_warm_up():
    factor = learning_rate_factor(learning_rate=1e-3, min_lr=0.0, warmup_iters=0, lr_decay_iters=None)
    assert factor(0) == 1.0
