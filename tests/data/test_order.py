"""The order of samples: a permutation, the same one forever, however its positions are asked for."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuromanifold_gpt.data.order import mixed, permuted

ANY_INTEGER = st.integers(-(2**70), 2**70)
EPOCHS = st.integers(0, 1_000_000)
EDGES = sorted({size for power in range(13) for size in (2**power - 1, 2**power, 2**power + 1) if size > 0})

GOLDEN_2 = [1, 0]
GOLDEN_10 = [2, 9, 5, 0, 1, 4, 8, 6, 3, 7]
GOLDEN_10_EPOCH_1 = [7, 2, 4, 0, 6, 5, 9, 1, 8, 3]
GOLDEN_17 = [6, 8, 14, 11, 1, 9, 4, 15, 7, 0, 12, 10, 5, 16, 3, 2, 13]
GOLDEN_DIGEST = "5f0ea6654f4cd565dfdf30042db5638145dc715332fbc4c1b1259cc6df38743d"
GOLDEN_HUGE = [543416742704, 123967718473, 553851856483, 587662184414]
GOLDEN_MIXED = [16294208416658607535, 10451216379200822465, 15020427595393229491, 6755974106381971767]


def whole_order(size, seed=0, epoch=0):
    return permuted(np.arange(size, dtype=np.int64), size, seed, epoch)


class TestPermutation:
    @settings(max_examples=60, deadline=None)
    @given(size=st.integers(1, 5000), seed=ANY_INTEGER, epoch=EPOCHS)
    def test_holds_every_id_exactly_once(self, size, seed, epoch):
        order = whole_order(size, seed, epoch)
        assert order.dtype == np.int64
        assert np.array_equal(np.sort(order), np.arange(size))

    @pytest.mark.parametrize("size", EDGES)
    def test_holds_every_id_exactly_once_at_and_beside_powers_of_two(self, size):
        assert sorted(whole_order(size, seed=5, epoch=3).tolist()) == list(range(size))

    @settings(max_examples=40, deadline=None)
    @given(size=st.integers(1, 400), data=st.data())
    def test_does_not_depend_on_how_positions_are_grouped_or_ordered(self, size, data):
        order = whole_order(size, 7, 1)
        positions = data.draw(st.lists(st.integers(0, size - 1), max_size=30))
        assert permuted(np.array(positions, dtype=np.int64), size, 7, 1).tolist() == [order[p] for p in positions]
        cut = data.draw(st.integers(0, size))
        parts = [permuted(np.arange(*ends, dtype=np.int64), size, 7, 1) for ends in ((0, cut), (cut, size))]
        assert np.array_equal(np.concatenate(parts), order)

    def test_leaves_the_positions_that_it_is_given_alone(self):
        positions = np.arange(100, dtype=np.int64)
        permuted(positions, 100, 1, 1)
        assert np.array_equal(positions, np.arange(100))

    @pytest.mark.parametrize("size", [10**9 + 7, 10**12, 2**40, 2**62])
    def test_is_evaluated_at_a_position_of_a_huge_data_set_without_building_it(self, size):
        positions = np.array([0, 1, size // 2, size - 2, size - 1], dtype=np.int64)
        ids = permuted(positions, size, 3, 0)
        assert len(set(ids.tolist())) == len(positions)
        assert ((ids >= 0) & (ids < size)).all()


class TestEpochsAndSeeds:
    def test_each_epoch_and_each_seed_has_an_order_of_its_own(self):
        orders = {tuple(whole_order(50, seed, epoch).tolist()) for seed in (0, 1, -1, 2**65 + 5) for epoch in range(20)}
        assert len(orders) == 80

    def test_an_epoch_of_one_seed_is_not_another_epoch_of_its_neighbour(self):
        assert whole_order(50, 1, 2).tolist() != whole_order(50, 2, 1).tolist()
        assert whole_order(50, 0, 1).tolist() != whole_order(50, 1, 0).tolist()

    def test_consecutive_epochs_agree_in_no_more_places_than_chance_would(self):
        agreements = [int((whole_order(1000, 0, e) == whole_order(1000, 0, e + 1)).sum()) for e in range(20)]
        assert sum(agreements) < 45  # 20 are expected; Poisson: 45 once in a million
        kept_neighbours = [int((np.diff(whole_order(1000, 0, e)) == 1).sum()) for e in range(20)]
        assert sum(kept_neighbours) < 45

    @pytest.mark.parametrize(("size", "epochs"), [(3, 300), (4, 720)])
    def test_all_permutations_of_few_samples_are_about_equally_frequent(self, size, epochs):
        counts = {}
        for epoch in range(epochs):
            order = tuple(whole_order(size, 11, epoch).tolist())
            counts[order] = counts.get(order, 0) + 1
        kinds = math.factorial(size)
        assert len(counts) == kinds
        expected = epochs / kinds
        chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
        assert chi_squared < {3: 20.5, 4: 49.7}[size]  # the 99.9 % quantiles for 5 and 23 degrees of freedom

    def test_each_sample_comes_first_about_equally_often(self):
        counts = np.bincount([permuted(np.array([0]), 10, 4, epoch)[0] for epoch in range(500)], minlength=10)
        assert ((counts - 50) ** 2 / 50).sum() < 27.9  # 99.9 % for 9 degrees of freedom


class TestTheOrderNeverChanges:
    """A resume depends on these very numbers: a run that was stopped before an update continues after it."""

    def test_small_orders(self):
        assert whole_order(1, 9, 9).tolist() == [0]
        assert whole_order(2, 0, 0).tolist() == GOLDEN_2
        assert whole_order(10, 0, 0).tolist() == GOLDEN_10
        assert whole_order(10, 0, 1).tolist() == GOLDEN_10_EPOCH_1
        assert whole_order(17, -5, 123).tolist() == GOLDEN_17

    def test_a_large_order(self):
        digest = hashlib.sha256(whole_order(100_003, 2**63 + 11, 4).astype("<i8").tobytes()).hexdigest()
        assert digest == GOLDEN_DIGEST

    def test_a_huge_order(self):
        positions = np.array([0, 1, 10**11, 10**12 - 1], dtype=np.int64)
        assert permuted(positions, 10**12, 42, 7).tolist() == GOLDEN_HUGE

    def test_mixed_numbers(self):
        assert [mixed(0), mixed(1), mixed(1, 2, 3), mixed(-1, 2**64)] == GOLDEN_MIXED


class TestMixed:
    @settings(max_examples=50, deadline=None)
    @given(values=st.lists(ANY_INTEGER, min_size=1, max_size=5))
    def test_is_a_number_of_64_bits(self, values):
        result = mixed(*values)
        assert type(result) is int
        assert 0 <= result < 2**64

    def test_depends_on_every_value_and_on_their_order(self):
        values = [(), (0,), (0, 0), (1,), (1, 0), (0, 1), (1, 2), (2, 1), (1, 2, 3), (3, 2, 1), (1, 2, 0)]
        assert len({mixed(*value) for value in values}) == len(values)

    def test_has_no_collision_among_a_lot_of_small_numbers(self):
        results = {mixed(seed, epoch, sample) for seed in range(4) for epoch in range(10) for sample in range(100)}
        assert len(results) == 4000
