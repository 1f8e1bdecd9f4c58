"""The randomness of a sample: its own, whoever fetches it and whenever, and nobody else's."""

import functools
import random
import traceback

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from neuromanifold_gpt.data.loader import ResumableDataLoader
from neuromanifold_gpt.data.sample_seeds import SeededSamples, isolated_generators, seed_generators

SIZE = 11


class Drawing(Dataset):
    """Each sample is its id and what it draws: normal values too, which leave a second one in the generator."""

    def __init__(self, fails_at=None):
        self.fails_at = fails_at

    def __len__(self):
        return SIZE

    def __getitem__(self, sample_id):
        values = [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), float(torch.rand(()))]
        if sample_id == self.fails_at:
            raise ValueError("a sample cannot be read")
        return sample_id, torch.tensor([*values, float(torch.randn(()))], dtype=torch.float64)


class Fixed(Dataset):
    def __len__(self):
        return SIZE

    def __getitem__(self, sample_id):
        return sample_id


class FetchesMany(Fixed):
    """Knows how to fetch several samples at once."""

    def __getitems__(self, sample_ids):
        return [("together", sample_id) for sample_id in sample_ids]


def drawing_collate(samples):
    return samples, random.random(), np.random.rand(), float(torch.rand(()))


def failing_collate(samples):
    torch.rand(1)
    raise ValueError("cannot be collated")


def drawn_by_id(loader):
    """What each sample of one epoch drew, by its id."""
    return {
        sample_id: tuple(values)
        for ids, batch in loader
        for sample_id, values in zip(ids.tolist(), batch.tolist(), strict=True)
    }


def generator_states():
    """All that the CPU generators of this process hold, as values that can be compared."""
    name, key, *rest = np.random.get_state()
    return random.getstate(), name, key.tobytes(), rest, torch.get_rng_state().numpy().tobytes()


@pytest.fixture
def stirred_generators():
    """Generators in the middle of their work, each with half a pair of normal values in store."""
    with isolated_generators():
        random.seed(1)
        np.random.seed(2)
        torch.manual_seed(3)
        random.gauss(0, 1)
        np.random.randn()
        torch.randn(())
        yield generator_states()


@functools.cache
def expected_epochs():
    """What the samples draw in two epochs, fetched one by one."""
    loader = ResumableDataLoader(Drawing(), 1, seed=5)
    return [drawn_by_id(loader), drawn_by_id(loader)]


class TestSamples:
    @pytest.mark.parametrize(
        ("workers", "batch_size", "shuffle", "options"),
        [
            (0, 1, False, {}),
            (0, 4, True, {}),
            (0, SIZE, False, {}),
            (2, 1, True, {}),
            (2, 4, False, {"persistent_workers": True}),
            (2, 3, True, {"prefetch_factor": 4, "persistent_workers": True}),
            (3, 2, True, {}),
        ],
    )
    @pytest.mark.filterwarnings("ignore:This DataLoader will create")
    def test_draw_the_same_numbers_whoever_fetches_them_in_whatever_batches(
        self, workers, batch_size, shuffle, options
    ):
        loader = ResumableDataLoader(Drawing(), batch_size, shuffle=shuffle, seed=5, num_workers=workers, **options)
        assert [drawn_by_id(loader), drawn_by_id(loader)] == expected_epochs()

    def test_draw_other_numbers_in_another_epoch_of_another_seed_and_of_another_id(self):
        first, second = expected_epochs()
        other_seed = drawn_by_id(ResumableDataLoader(Drawing(), 1, seed=6))
        for place in range(6):
            drawn = [values[place] for epoch in (first, second, other_seed) for values in epoch.values()]
            assert len(set(drawn)) == 3 * SIZE

    def test_draw_the_same_numbers_whatever_the_state_of_the_global_generators(self, stirred_generators):
        assert drawn_by_id(ResumableDataLoader(Drawing(), 2, seed=5)) == expected_epochs()[0]

    def test_draw_the_same_numbers_after_a_resume(self):
        loader = ResumableDataLoader(Drawing(), 4, shuffle=True, seed=5)
        next(iter(loader))
        resumed = ResumableDataLoader(Drawing(), 4, shuffle=True, seed=5, num_workers=2)
        resumed.load_state_dict(loader.state_dict())
        rest = drawn_by_id(resumed)
        assert len(rest) == SIZE - 4
        assert rest.items() <= expected_epochs()[0].items()

    @pytest.mark.parametrize("seed", [0, 1, -1, 2**32, 2**63, 2**64 - 1, np.int64(7)])
    def test_may_have_any_integer_as_seed(self, seed):
        loader = ResumableDataLoader(Drawing(), 4, shuffle=True, seed=seed)
        assert len(drawn_by_id(loader)) == SIZE
        assert type(loader.state_dict()["seed"]) is int

    def test_are_a_pure_function_of_seed_epoch_and_id(self):
        samples = SeededSamples(Drawing(), True)
        one, two = samples.__getitems__([(5, 0, 3, 3), (5, 1, 3, 3)])
        again = samples.__getitems__([(5, 1, 3, 3), (5, 0, 3, 3), (5, 0, 3, 3)])
        assert [value.tolist() for _, value in again] == [value.tolist() for _, value in (two, one, one)]
        assert one[1].tolist() != two[1].tolist()


class TestCollation:
    def batches(self, **options):
        return list(ResumableDataLoader(Fixed(), 4, shuffle=True, seed=5, collate_fn=drawing_collate, **options))

    def test_draws_the_same_numbers_with_any_number_of_workers(self):
        assert self.batches(num_workers=2) == self.batches()

    def test_draws_other_numbers_for_each_batch_and_epoch(self):
        loader = ResumableDataLoader(Fixed(), 4, seed=5, collate_fn=drawing_collate)
        drawn = [batch[1:] for _ in range(2) for batch in loader]
        assert all(len(set(values)) == 6 for values in zip(*drawn, strict=True))

    def test_is_the_same_after_a_resume(self):
        loader = ResumableDataLoader(Fixed(), 4, seed=5, collate_fn=drawing_collate)
        iterator = iter(loader)
        next(iterator)
        resumed = ResumableDataLoader(Fixed(), 4, seed=5, collate_fn=drawing_collate)
        resumed.load_state_dict(loader.state_dict())
        assert list(resumed) == list(iterator)

    def test_of_a_single_sample_does_not_repeat_what_the_sample_drew(self):
        class One(Fixed):
            def __getitem__(self, sample_id):
                return random.random(), np.random.rand(), float(torch.rand(()))

        for samples, *drawn in ResumableDataLoader(One(), 1, collate_fn=drawing_collate):
            assert not set(samples[0]) & set(drawn)

    def test_gets_a_plain_list(self):
        loader = ResumableDataLoader(Fixed(), 4, collate_fn=lambda samples: (type(samples), samples))
        assert next(iter(loader)) == (list, [0, 1, 2, 3])


class TestGlobalGenerators:
    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("seed_samples", [True, False])
    def test_are_as_before_after_each_batch(self, stirred_generators, workers, seed_samples):
        dataset = Drawing() if seed_samples else Fixed()
        loader = ResumableDataLoader(dataset, 4, shuffle=True, seed_samples=seed_samples, num_workers=workers)
        assert generator_states() == stirred_generators
        for _ in range(2):
            for _ in loader:
                assert generator_states() == stirred_generators
        assert generator_states() == stirred_generators

    @pytest.mark.parametrize("workers", [0, 2])
    def test_are_as_before_when_a_sample_cannot_be_read(self, stirred_generators, workers):
        loader = ResumableDataLoader(Drawing(fails_at=6), 4, num_workers=workers)
        with pytest.raises(ValueError, match="a sample cannot be read") as caught:
            list(loader)
        traceback.clear_frames(caught.tb)  # torch's are a cycle, and workers that garbage collection ends take seconds
        assert generator_states() == stirred_generators

    @pytest.mark.parametrize("workers", [0, 2])
    def test_are_as_before_when_a_batch_cannot_be_collated(self, stirred_generators, workers):
        with pytest.raises(ValueError, match="cannot be collated") as caught:
            list(ResumableDataLoader(Fixed(), 4, collate_fn=failing_collate, num_workers=workers))
        traceback.clear_frames(caught.tb)
        assert generator_states() == stirred_generators

    def test_are_as_before_when_a_pass_is_left_early(self, stirred_generators):
        for _ in ResumableDataLoader(Drawing(), 2, shuffle=True):
            break
        assert generator_states() == stirred_generators

    def test_go_on_as_if_nothing_had_been_drawn_between(self, stirred_generators):
        def draw():
            return random.gauss(0, 1), random.random(), np.random.randn(), np.random.rand(), float(torch.randn(()))

        with isolated_generators():
            undisturbed = [draw() for _ in range(3)]
        disturbed = []
        for _ in zip(range(3), ResumableDataLoader(Drawing(), 2), strict=False):
            disturbed.append(draw())
        assert disturbed == undisturbed

    def test_are_put_back_even_if_the_block_raises(self, stirred_generators):
        def interrupted():
            with isolated_generators():
                seed_generators(9)
                raise KeyError

        with pytest.raises(KeyError):
            interrupted()
        assert generator_states() == stirred_generators

    def test_are_all_three_seeded(self):
        def drawn(seed):
            with isolated_generators():
                seed_generators(seed)
                return random.random(), np.random.rand(), float(torch.rand(()))

        seeds = (0, 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1)
        by_python, by_numpy, by_torch = zip(*map(drawn, seeds), strict=True)
        assert len(set(by_python)) == len(set(by_numpy)) == len(seeds)
        assert len(set(by_torch)) == 4  # torch's CPU generator takes the lower 32 bits of a seed
        assert drawn(2**63) == drawn(2**63)


class TestWithoutSeeding:
    def test_several_samples_are_fetched_at_once_where_the_dataset_can(self):
        loader = ResumableDataLoader(FetchesMany(), 4, seed_samples=False, collate_fn=list)
        assert next(iter(loader)) == [("together", i) for i in range(4)]

    def test_with_seeding_they_are_fetched_one_by_one(self):
        loader = ResumableDataLoader(FetchesMany(), 4, collate_fn=list)
        assert next(iter(loader)) == [0, 1, 2, 3]

    def test_what_the_dataset_draws_comes_from_the_global_generators(self, stirred_generators):
        with isolated_generators():
            expected = random.random()
        _, values = next(iter(ResumableDataLoader(Drawing(), 1, seed_samples=False)))
        assert values[0, 0].item() == expected


class MadeWhenNeeded(Dataset):
    """Two transforms, each with a generator that it makes at its first use, which is not at the first sample."""

    def __init__(self):
        self.first = self.second = None

    def __len__(self):
        return SIZE

    def __getitem__(self, sample_id):
        drawn = []
        if random.random() < 0.5:
            if self.first is None:
                self.first = np.random.default_rng(torch.initial_seed() % 2**32)
            drawn.append(self.first.random())
        if random.random() < 0.3:
            if self.second is None:
                self.second = random.Random(torch.initial_seed())
            drawn.append(self.second.random())
        return sample_id, drawn


def check_resumes(loader, whole):
    """Behind each batch."""
    for stop in range(1, len(whole)):
        stopped, resumed = loader(), loader()
        iterator = iter(stopped)
        for _ in range(stop):
            next(iterator)
        resumed.load_state_dict(stopped.state_dict())
        assert list(resumed) == whole[stop:]


@pytest.mark.parametrize("workers", [0, 2])
def test_generators_that_are_made_when_they_are_needed_are_seeded_too(workers):
    def loader():
        return ResumableDataLoader(MadeWhenNeeded(), 2, num_workers=workers, collate_fn=list)

    whole = list(loader())
    assert sum(len(drawn) for batch in whole for _, drawn in batch) > 3
    check_resumes(loader, whole)


def test_a_batch_that_is_made_once_more_for_a_new_generator_counts_once():
    class Counts(Fixed):
        def __init__(self):
            self.samples_made, self.rng = 0, None

        def __getitem__(self, sample_id):
            self.samples_made += 1
            if self.rng is None:
                self.rng = random.Random(3)
            return self.samples_made

    loader = ResumableDataLoader(Counts(), 2, collate_fn=list)
    assert [count for batch in loader for count in batch] == [*range(1, len(Counts()) + 1)]


def test_those_of_a_collation_too():
    class Collates:
        def __init__(self):
            self.rng = None

        def __call__(self, samples):
            if random.random() < 0.5:
                if self.rng is None:
                    self.rng = random.Random(3)
                return self.rng.random()
            return 0.0

    def loader():
        return ResumableDataLoader(Fixed(), 1, collate_fn=Collates())

    whole = list(loader())
    assert len({*whole}) > 3
    check_resumes(loader, whole)


def test_a_dataset_that_makes_one_for_each_sample_comes_to_its_end():
    class Makes(Fixed):
        def __init__(self):
            self.made = []

        def __getitem__(self, sample_id):
            self.made.append(random.Random(sample_id))
            return self.made[-1].random()

    loader = ResumableDataLoader(Makes(), 2, collate_fn=list)
    assert [value for batch in loader for value in batch] == [random.Random(i).random() for i in range(SIZE)]
