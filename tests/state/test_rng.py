"""Random number generators: what is drawn after a restore is what would have been drawn without it."""

import random
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neuromanifold_gpt import load_checkpoint, save_checkpoint
from neuromanifold_gpt.state.rng import (
    RandomStateWarning,
    capture_rng_state,
    gather_across_ranks,
    restore_own_rng_state,
    restore_rng_state,
)


@pytest.fixture(autouse=True)
def own_generators():
    before = capture_rng_state()
    yield
    restore_rng_state(before)


def draw(count=1):
    """From every generator; an odd number of normal values leaves a second one in store."""
    return [
        (
            random.random(),
            random.gauss(0, 1),
            random.getrandbits(70),
            np.random.rand(),
            np.random.randn(),
            float(torch.rand(())),
            float(torch.randn(())),
            float(torch.randn((), dtype=torch.float64)),
            torch.randperm(5).tolist(),
            nn.functional.dropout(torch.ones(20), 0.5).tolist(),
        )
        for _ in range(count)
    ]


def comparable(state):
    """A captured state as values that ``==`` compares."""
    return {
        key: [item.tolist() if isinstance(item, torch.Tensor) else item for item in value]
        if isinstance(value, list)
        else value.tolist()
        for key, value in state.items()
    }


class TestCaptureAndRestore:
    @settings(max_examples=25, deadline=None)
    @given(
        seed=st.integers(0, 2**32 - 1),
        before=st.integers(0, 5),
        between=st.integers(0, 5),
        halves=st.tuples(*[st.booleans()] * 3),
    )
    def test_what_is_drawn_next_is_the_same(self, seed, before, between, halves):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        draw(before)
        for half, take_half in zip(
            halves, (lambda: random.gauss(0, 1), np.random.randn, lambda: torch.randn(())), strict=True
        ):
            if half:
                take_half()
        state = capture_rng_state()
        expected = draw(3)
        draw(between)
        restore_rng_state(state)
        assert draw(3) == expected

    def test_the_second_normal_value_of_a_pair_survives(self):
        random.gauss(0, 1)
        np.random.randn()
        torch.randn((), dtype=torch.float64)
        state = capture_rng_state()
        assert state["python"][2] is not None
        assert state["numpy"][3] == 1
        expected = [(random.gauss(0, 1), np.random.randn(), float(torch.randn((), dtype=torch.float64)))] * 2
        found = []
        for seed in (1, 2):  # neither is a fresh generator, which has none, mixed up with the restored one
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            restore_rng_state(state)
            found.append((random.gauss(0, 1), np.random.randn(), float(torch.randn((), dtype=torch.float64))))
        assert found == expected

    def test_a_second_normal_value_that_was_not_there_is_forgotten(self):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        state = capture_rng_state()
        expected = draw()
        random.gauss(0, 1)
        np.random.randn()
        torch.randn((), dtype=torch.float64)
        restore_rng_state(state)
        assert draw() == expected

    def test_capturing_draws_nothing_and_what_was_captured_does_not_change(self):
        state = capture_rng_state()
        copied = comparable(state)
        assert comparable(capture_rng_state()) == copied
        draw(3)
        assert comparable(state) == copied
        restore_rng_state(state)
        assert comparable(capture_rng_state()) == copied
        draw(3)
        assert comparable(state) == copied

    def test_the_state_may_be_restored_any_number_of_times(self):
        state = capture_rng_state()
        drawn = []
        for _ in range(3):
            restore_rng_state(state)
            drawn.append(draw())
        assert drawn == [drawn[0]] * 3


class TestThroughACheckpoint:
    def test_the_generators_continue(self, tmp_path):
        draw()
        random.gauss(0, 1)
        np.random.randn()
        save_checkpoint(tmp_path, step=1, model=nn.Linear(1, 1))
        expected = draw(3)
        model = nn.Linear(1, 1)  # draws too
        load_checkpoint(tmp_path).restore(model=model)
        assert draw(3) == expected

    def test_saving_draws_nothing(self, tmp_path):
        model = nn.Linear(3, 3)
        optimizer = torch.optim.AdamW(model.parameters())
        before = comparable(capture_rng_state())
        save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer)
        assert comparable(capture_rng_state()) == before
        saved = load_checkpoint(tmp_path).rng_states
        assert comparable(capture_rng_state()) == before
        assert [comparable(state) for state in saved] == [before]

    def test_stock_torch_reads_the_states_with_weights_only(self, tmp_path):
        random.gauss(0, 1)
        checkpoint = save_checkpoint(tmp_path, step=1, model=nn.Linear(1, 1))
        (state,) = torch.load(checkpoint.optimizer_path, weights_only=True)["rng_states"]
        assert comparable(state) == comparable(capture_rng_state())
        tensors = [state["python"][1], state["numpy"][1], state["torch"]]
        assert [tensor.dtype for tensor in tensors] == [torch.int64, torch.int64, torch.uint8]

    def test_equal_generators_give_equal_bytes(self, tmp_path):
        model = nn.Linear(2, 2)
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        draw(2)
        first = save_checkpoint(tmp_path / "a", step=1, model=model)
        state = capture_rng_state()
        draw(3)
        restore_rng_state(state)
        second = save_checkpoint(tmp_path / "b", step=1, model=model)
        assert first.optimizer_path.read_bytes() == second.optimizer_path.read_bytes()

    def test_restoring_is_the_last_thing_that_a_restore_does(self, tmp_path):
        class DrawsWhileLoading:
            def state_dict(self):
                return {}

            def load_state_dict(self, state):
                draw()

        model, loader = nn.Linear(1, 1), DrawsWhileLoading()
        save_checkpoint(tmp_path, step=1, model=model, loaders=loader, stateful={"other": loader})
        expected = draw()
        load_checkpoint(tmp_path).restore(model=model, loaders=loader, stateful={"other": loader})
        assert draw() == expected


class TestOtherRanksAndDevices:
    def states(self):
        states = []
        for seed in range(2):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            states.append(capture_rng_state())
        return states

    def test_one_process_has_one_state(self):
        state = capture_rng_state()
        assert gather_across_ranks(state) == [state]

    def test_another_number_of_ranks_is_said_and_the_own_state_restored(self):
        states = self.states()
        with pytest.warns(RandomStateWarning, match="of 2 ranks were saved, 1 ranks are here") as caught:
            restore_own_rng_state(states)
        assert len(caught) == 1
        assert comparable(capture_rng_state()) == comparable(states[0])

    def test_the_same_number_of_ranks_is_not_worth_a_word(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            restore_own_rng_state(self.states()[1:])
        assert comparable(capture_rng_state()) == comparable(self.states()[1])

    @pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without the device")
    def test_a_device_that_is_not_here_is_said(self):
        state = {**self.states()[0], "cuda": [torch.zeros(16, dtype=torch.uint8)]}
        with pytest.warns(RandomStateWarning, match="1 cuda generators were saved, 0 devices are here"):
            restore_rng_state(state)
        assert comparable(capture_rng_state()) == comparable(self.states()[0])
