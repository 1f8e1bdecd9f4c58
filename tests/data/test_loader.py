"""The loader: an interrupted run gets exactly the samples, in exactly the order, of one that was not."""

import gc
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, Sampler

import neuromanifold_gpt
from neuromanifold_gpt.data.errors import DataOrderWarning, DatasetError
from neuromanifold_gpt.data.loader import ResumableDataLoader
from neuromanifold_gpt.data.resumable import resumable

SIZE, BATCH, EPOCHS = 22, 4, 3
BATCHES = 6  # of an epoch, the last one with 2 samples
GOLDEN = [[7, 5, 8, 0], [2, 6, 3, 1], [4, 9], [5, 4, 8, 6], [3, 7, 0, 9], [1, 2]]
PACKAGE_PARENT = Path(neuromanifold_gpt.__file__).parents[1]

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def make_loader(size=SIZE, batch_size=BATCH, *, shuffle=True, seed=3, **options):
    return ResumableDataLoader(range(size), batch_size, shuffle=shuffle, seed=seed, **options)


def take(loader, count):
    """The ids of the next ``count`` batches, however many passes that takes; the last pass is left in the middle."""
    taken = []
    while len(taken) < count:
        for batch in loader:
            taken.append(batch.tolist())
            if len(taken) == count:
                break
    return taken


def resumed(state, **options):
    loader = make_loader(**options)
    loader.load_state_dict(state)
    return loader


def flat(batches):
    return [sample for batch in batches for sample in batch]


class TestAnUninterruptedRun:
    def test_gives_each_sample_once_in_each_epoch_and_another_order_in_each(self):
        loader = make_loader()
        orders = [flat(batch.tolist() for batch in loader) for _ in range(EPOCHS)]
        assert [sorted(order) for order in orders] == [list(range(SIZE))] * EPOCHS
        assert len(set(map(tuple, orders))) == EPOCHS

    def test_without_shuffling_goes_through_the_samples_as_they_are(self):
        assert flat(take(make_loader(shuffle=False), 2 * BATCHES)) == 2 * list(range(SIZE))

    @pytest.mark.parametrize(("drop_last", "sizes"), [(False, [4, 4, 4, 4, 4, 2]), (True, [4, 4, 4, 4, 4])])
    def test_has_a_short_last_batch_or_drops_it(self, drop_last, sizes):
        loader = make_loader(drop_last=drop_last)
        for _ in range(2):
            assert [len(batch) for batch in loader] == sizes
            assert len(loader) == len(sizes)

    @pytest.mark.parametrize("options", [{"num_workers": 2}, {"num_workers": 3, "persistent_workers": True}])
    def test_is_the_same_with_any_number_of_workers(self, options):
        assert take(make_loader(**options), 2 * BATCHES) == take(make_loader(), 2 * BATCHES)

    def test_is_the_same_with_workers_that_are_spawned_and_get_the_dataset_only(self):
        class Unpicklable(ResumableDataLoader):
            def __getstate__(self):
                raise TypeError("the loader itself was pickled")

        loader = Unpicklable(range(8), BATCH, shuffle=True, seed=3, num_workers=1, multiprocessing_context="spawn")
        assert take(loader, 2) == take(make_loader(8), 2)

    def test_has_the_order_that_it_has_always_had(self):
        assert take(make_loader(10, 4, seed=3), 6) == GOLDEN

    def test_has_a_constant_length(self):
        loader = make_loader()
        lengths = {len(loader)}
        for _ in range(2):
            for _ in loader:
                lengths.add(len(loader))
            lengths.add(len(loader))
        lengths.add(len(resumed(loader.state_dict())))
        assert lengths == {BATCHES}


class TestAResumedRun:
    @pytest.mark.parametrize("drop_last", [False, True])
    @pytest.mark.parametrize("shuffle", [False, True])
    def test_continues_with_the_rest_wherever_it_was_interrupted(self, drop_last, shuffle):
        options = {"drop_last": drop_last, "shuffle": shuffle}
        total = EPOCHS * (BATCHES - drop_last)
        whole = take(make_loader(**options), total)
        for stop in range(total):
            loader = make_loader(**options)
            assert take(loader, stop) == whole[:stop]
            assert take(resumed(loader.state_dict(), **options), total - stop) == whole[stop:]

    @pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (2, 3)])
    @pytest.mark.parametrize("stop", [0, 1, 3, BATCHES - 1, BATCHES, BATCHES + 1])
    def test_continues_with_the_rest_with_another_number_of_workers(self, before, after, stop):
        total = 2 * BATCHES + 1
        loader = make_loader(num_workers=before)
        taken = take(loader, stop)
        rest = take(resumed(loader.state_dict(), num_workers=after), total - stop)
        assert taken + rest == take(make_loader(), total)

    def test_continues_with_the_rest_in_another_process(self):
        loader = make_loader(num_workers=2, persistent_workers=True)
        take(loader, BATCHES + 2)
        script = """
import json, sys
from neuromanifold_gpt import ResumableDataLoader
loader = ResumableDataLoader(range(22), 4, shuffle=True, seed=3, num_workers=1)
loader.load_state_dict(json.loads(sys.argv[1]))
print(json.dumps([batch.tolist() for _ in range(2) for batch in loader]))
"""
        run = subprocess.run(
            [sys.executable, "-c", script, json.dumps(loader.state_dict())],
            env={**os.environ, "PYTHONPATH": str(PACKAGE_PARENT)},
            capture_output=True,
            check=True,
        )
        assert json.loads(run.stdout) == take(make_loader(), 3 * BATCHES)[BATCHES + 2 :]

    def test_may_be_interrupted_after_every_single_batch(self):
        state, taken = make_loader().state_dict(), []
        for _ in range(EPOCHS * BATCHES):
            loader = resumed(state)
            taken += take(loader, 1)
            state = loader.state_dict()
        assert taken == take(make_loader(), EPOCHS * BATCHES)

    def test_may_be_resumed_in_the_same_loader(self):
        loader = make_loader(num_workers=2, persistent_workers=True)
        first = take(loader, 2)
        state = loader.state_dict()
        second = take(loader, BATCHES)  # from the beginning: the pass was left
        for _ in range(2):
            loader.load_state_dict(state)
            assert take(loader, BATCHES - 2) == take(make_loader(), BATCHES)[2:]
        assert second[:2] == first

    def test_saves_the_state_that_it_was_given(self):
        loader = make_loader()
        take(loader, 2)
        state = loader.state_dict()
        assert resumed(state).state_dict() == state
        loader = resumed(state)
        iter(loader)
        assert loader.state_dict() == state

    @settings(max_examples=25, deadline=None)
    @given(
        size=st.integers(1, 40),
        batch_size=st.integers(1, 12),
        other_batch_size=st.integers(1, 12),
        seed=st.integers(-5, 5),
        data=st.data(),
    )
    def test_with_another_batch_size_continues_with_the_next_sample(
        self, size, batch_size, other_batch_size, seed, data
    ):
        loader = make_loader(size, batch_size, seed=seed)
        taken = flat(take(loader, data.draw(st.integers(0, 2 * len(loader)))))
        other = resumed(loader.state_dict(), size=size, batch_size=other_batch_size, seed=seed)
        rest = [sample for _ in range(2) for batch in other for sample in batch.tolist()]
        whole = flat(take(make_loader(size, size, seed=seed), len(taken) // size + 2))
        assert taken + rest == whole

    @pytest.mark.parametrize(("stop", "left"), [(0, 21), (1, 14), (3, 7), (4, 0)])
    def test_with_another_batch_size_drops_another_last_batch(self, stop, left):
        loader = make_loader(drop_last=True)
        taken = flat(take(loader, stop))
        other = resumed(loader.state_dict(), batch_size=7, drop_last=True)
        first, second = ([sample for batch in other for sample in batch.tolist()] for _ in range(2))
        orders = flat(take(make_loader(), 2 * BATCHES))
        expected = [orders[len(taken) : len(taken) + left], orders[SIZE : SIZE + 21]]
        assert [first, second] == expected[:2]


class TestThePosition:
    def test_counts_batches_as_they_are_handed_out_not_as_they_are_fetched(self):
        fetched = multiprocessing.Value("i", 0)
        loader = ResumableDataLoader(Counting(fetched), BATCH, num_workers=2, prefetch_factor=2, shuffle=True, seed=3)
        for number, _ in enumerate(loader, 1):
            if number == 1:
                deadline = time.monotonic() + 60
                while fetched.value <= BATCH and time.monotonic() < deadline:
                    time.sleep(0.001)
                assert fetched.value > BATCH  # workers are ahead
            assert loader.samples_consumed == min(number * BATCH, SIZE)

    def test_is_behind_the_batch_that_is_being_trained_on(self):
        loader = make_loader()
        positions = []
        for _ in range(2):
            for _ in loader:
                state = loader.state_dict()
                positions.append((state["epoch"], state["samples_consumed"]))
        first = [(0, 4), (0, 8), (0, 12), (0, 16), (0, 20), (0, 22)]
        assert positions == first + [(1, samples) for _, samples in first]

    def test_with_drop_last_is_at_the_next_epoch_behind_the_last_whole_batch(self):
        loader = make_loader(drop_last=True)
        take(loader, BATCHES - 1)
        assert (loader.state_dict()["epoch"], loader.state_dict()["samples_consumed"]) == (1, 0)

    def test_is_plain_data(self, tmp_path):
        loader = make_loader(seed=np.int64(3))
        take(loader, 2)
        state = loader.state_dict()
        assert json.loads(json.dumps(state)) == state
        torch.save(state, tmp_path / "state.pt")
        assert torch.load(tmp_path / "state.pt", weights_only=True) == state
        position = {"epoch": 0, "samples_consumed": 8}
        order = {"seed": 3, "shuffle": True, "dataset_size": SIZE, "batch_size": BATCH, "drop_last": False}
        assert state == {**position, **order}

    def test_is_not_lost_by_iterators_from_which_nothing_is_taken(self):
        loader = make_loader()
        take(loader, 2)
        loader = resumed(loader.state_dict())
        unused = [iter(loader) for _ in range(3)]
        assert take(loader, BATCHES - 2) == take(make_loader(), BATCHES)[2:]
        del unused

    def test_is_the_beginning_of_the_same_epoch_after_a_pass_was_left_early(self):
        loader = make_loader()
        assert take(loader, 2) == take(loader, BATCHES)[:2]
        assert take(loader, BATCHES) == take(make_loader(), 2 * BATCHES)[BATCHES:]

    def test_is_the_next_epoch_after_a_pass_was_left_at_its_last_batch(self):
        loader = make_loader()
        assert take(loader, BATCHES) + take(loader, BATCHES) == take(make_loader(), 2 * BATCHES)

    def test_after_a_resume_that_was_left_early_is_the_beginning_of_the_epoch(self):
        loader = make_loader()
        take(loader, 2)
        loader = resumed(loader.state_dict())
        take(loader, 1)
        assert take(loader, BATCHES) == take(make_loader(), BATCHES)

    def test_of_a_pass_that_was_left_is_said_to_be_continued_where_the_epoch_begins_again(self):
        loader = make_loader()
        next(iter(loader))
        with warnings.catch_warnings():  # a look at a batch, and no position that anybody has
            warnings.simplefilter("error", DataOrderWarning)
            take(loader, 2)
        loader.state_dict()
        with pytest.warns(DataOrderWarning, match="was left after 8 samples or batches, and its epoch begins again"):
            take(loader, 1)
        loader = resumed(loader.state_dict())
        take(loader, 1)
        with pytest.warns(DataOrderWarning, match="was left after 8"):
            take(loader, BATCHES)

    def test_of_a_pass_whose_iterator_was_held_is_said_when_it_is_let_go(self):
        loader = make_loader()
        iterator = iter(loader)
        next(iterator)
        next(iterator)
        loader.state_dict()
        another = iter(loader)
        next(another)
        with pytest.warns(DataOrderWarning, match="was left after 8 samples or batches, and its epoch begins again"):
            del iterator
        loader.state_dict()
        with warnings.catch_warnings():
            warnings.simplefilter("error", DataOrderWarning)
            next(another)
            loader.load_state_dict(loader.state_dict())
            yet_another = iter(loader)
            next(yet_another)
            del another

    @pytest.mark.parametrize(
        "make", [make_loader, lambda: resumable(DataLoader(range(SIZE), BATCH, shuffle=True), seed=3)]
    )
    def test_of_a_pass_that_is_declared_left_is_the_beginning_of_the_epoch(self, make):
        def ids(loader, count):
            return [batch.tolist() for _, batch in zip(range(count), loader, strict=False)]

        loader, other = make(), make()
        ids(loader, 3)
        loader.leave_pass()
        other.load_state_dict(loader.state_dict())
        with warnings.catch_warnings():
            warnings.simplefilter("error", DataOrderWarning)
            assert ids(loader, 4) == ids(other, 4) == ids(make(), 4)

    @pytest.mark.parametrize("how", ["is over", "was told", "next epoch", "goes on", "at the beginning"])
    def test_needs_no_word_where_the_next_pass(self, how):
        loader = make_loader()
        if how == "at the beginning":
            loader.load_state_dict(loader.state_dict())
        take(loader, BATCHES if how == "is over" else 2)
        if how != "at the beginning":
            state = loader.state_dict()
        if how == "was told":
            loader.leave_pass()
        elif how == "next epoch":
            loader.set_epoch(1)
        elif how == "goes on":
            loader.load_state_dict(state)
        with warnings.catch_warnings():
            warnings.simplefilter("error", DataOrderWarning)
            take(loader, 2)

    @pytest.mark.parametrize("saves", ["nowhere", "around", "inside", "after"])
    def test_is_only_one_where_a_second_pass_is_made_within_the_first(self, saves):
        loader = make_loader()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for number, _ in enumerate(loader):
                if saves == "around":
                    loader.state_dict()
                if number == 3:
                    for _ in loader:
                        if saves == "inside":
                            loader.state_dict()
                    if saves == "after":
                        loader.state_dict()
            assert loader.is_at_end
        found = [str(warning.message) for warning in caught if warning.category is DataOrderWarning]
        assert len(found) == (saves in ("inside", "after"))
        assert all("another pass that was begun within it" in message for message in found)

    def test_follows_the_batch_handed_out_last_where_two_passes_are_under_way(self):
        loader = make_loader()
        one, other = iter(loader), iter(loader)
        for _ in range(3):
            next(one)
        next(other)
        assert loader.samples_consumed == BATCH
        next(one)
        assert loader.samples_consumed == 4 * BATCH

    def test_is_where_load_state_dict_put_it_whatever_an_older_pass_goes_on_with(self):
        loader = make_loader()
        beginning = loader.state_dict()
        older = iter(loader)
        next(older)
        loader.load_state_dict(beginning)
        next(older)
        assert loader.state_dict() == beginning
        assert take(loader, BATCHES) == take(make_loader(), BATCHES)

    def test_stays_before_a_batch_that_could_not_be_read(self):
        loader = ResumableDataLoader(Failing(), BATCH, seed=3)
        with pytest.raises(ValueError, match="sample 9"):
            list(loader)
        assert loader.samples_consumed == 8
        resumed_loader = ResumableDataLoader(Failing(), BATCH, seed=3)
        resumed_loader.load_state_dict(loader.state_dict())
        with pytest.raises(ValueError, match="sample 9"):
            next(iter(resumed_loader))


class Stream(IterableDataset):
    def __init__(self):
        self.next = 0

    def __iter__(self):
        while self.next < SIZE:
            self.next += 1
            yield self.next - 1
        self.next = 0

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


LOADERS = {
    "ResumableDataLoader": make_loader,
    "workers": lambda: make_loader(num_workers=2),
    "persistent workers": lambda: make_loader(num_workers=1, persistent_workers=True),
    "a last batch left out": lambda: make_loader(drop_last=True),
    "a sampler": lambda: resumable(DataLoader(range(SIZE), BATCH, sampler=RandomSampler(range(SIZE))), seed=3),
    "a stream": lambda: resumable(DataLoader(Stream(), BATCH)),
    "a stream in workers": lambda: resumable(DataLoader(Stream(), BATCH, num_workers=2)),
}


def state_of_last_batch():
    """Of the first epoch, saved inside the loop over it."""
    loader = make_loader()
    return [loader.state_dict() for _ in loader][-1]


class TestAPositionBehindTheLastBatchOfAnEpoch:
    """Saved inside the loop over it: what the program does behind that loop is still to come."""

    def train(self, loader, events, states=None):
        """Until the end of the third epoch; what belongs to an epoch's end comes behind the loop over its batches."""
        for epoch in range(loader.epoch, 3):
            for batch in loader:
                events.append(batch.tolist())
                if states is not None:
                    states[len(events)] = loader.state_dict()
            events.append(f"end of epoch {epoch}")

    @pytest.mark.parametrize("name", LOADERS)
    def test_lets_the_resumed_loop_do_it(self, name):
        states, events = {}, []
        self.train(LOADERS[name](), events, states)
        assert [event for event in events if "end" in event] == [f"end of epoch {number}" for number in range(3)]
        at_ends = [number for number in states if isinstance(events[number], str)]
        for number in [*at_ends, at_ends[1] - 1] if "worker" in name else states:
            state = states[number]
            loader, rest = LOADERS[name](), []
            loader.load_state_dict(state)
            self.train(loader, rest)
            assert rest == events[number:], f"saved behind event {number} of {events}"

    def test_is_the_same_when_it_is_saved_again_before_anything_happens(self):
        state = state_of_last_batch()
        assert resumed(state).state_dict() == state

    def test_does_not_begin_the_epoch_again_where_it_is_told_its_number(self):
        loader = resumed(state_of_last_batch())
        loader.set_epoch(0)
        assert list(loader) == []
        loader.set_epoch(1)
        assert take(loader, BATCHES) == take(make_loader(), 2 * BATCHES)[BATCHES:]

    def test_gives_way_to_another_epoch(self):
        loader = resumed(state_of_last_batch())
        loader.set_epoch(1)
        assert take(loader, BATCHES) == take(make_loader(), 2 * BATCHES)[BATCHES:]

    def test_ends_together_with_what_is_iterated_beside_it(self):
        loader, shorter, states, pairs = make_loader(), make_loader(size=BATCH * 3), {}, []

        def train(loader, shorter, pairs, states):
            while len(pairs) < 8:
                for one, other in zip(loader, shorter, strict=False):
                    pairs.append((one.tolist(), other.tolist()))
                    states[len(pairs)] = loader.state_dict(), shorter.state_dict()

        train(loader, shorter, pairs, states)
        for number in range(1, 8):
            loader, shorter, rest = make_loader(), make_loader(size=BATCH * 3), []
            for part, state in zip((loader, shorter), states[number], strict=True):
                part.load_state_dict(state)
            rest = pairs[:number]
            train(loader, shorter, rest, {})
            assert rest == pairs

    def test_says_that_the_first_pass_gives_nothing_where_the_loop_may_count_it_wrongly(self):
        state = state_of_last_batch()
        loader, epoch = resumed(state), 0
        with pytest.warns(UserWarning, match="nothing is left of epoch 0, in which the position was saved"):
            assert list(loader) == [], epoch
        for tell in (lambda loader: loader.epoch, lambda loader: loader.set_epoch(0)):
            loader = resumed(state)
            tell(loader)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert list(loader) == []

    def test_says_nothing_where_a_sampler_goes_on_behind_its_length(self):
        class Endless(Sampler):
            def __iter__(self):
                yield from itertools.cycle(range(SIZE))

            def __len__(self):
                return SIZE

        loader = resumable(DataLoader(list(range(SIZE)), BATCH, sampler=Endless()))
        batches = zip(loader, range(-(-SIZE // BATCH)), strict=False)
        state = [loader.state_dict() for _ in batches][-1]
        again = resumable(DataLoader(list(range(SIZE)), BATCH, sampler=Endless()))
        again.load_state_dict(state)
        epoch = 0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert next(iter(again)).shape == (BATCH,), epoch

    def test_says_nothing_to_a_loop_that_counts_no_epochs(self):
        loader, steps = resumed(state_of_last_batch()), 0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            while steps < 3:
                for _ in loader:
                    steps += 1

    def test_is_the_next_epoch_for_whoever_knows_by_itself_when_an_epoch_is_over(self):
        loader = make_loader()
        for _ in loader:
            state = loader.state_between_passes()
        assert take(resumed(state), BATCHES) == take(make_loader(), 2 * BATCHES)[BATCHES:]


class TestSetEpoch:
    def epoch(self, number):
        return take(make_loader(), (number + 1) * BATCHES)[number * BATCHES :]

    def test_is_asked_for_with_the_same_answer_in_every_process(self):
        def train(loader, seen, states):
            for _ in range(loader.epoch, 3):
                seen.append(("top", loader.epoch))
                for _ in loader:
                    seen.append(("in", loader.epoch))
                    states.append((len(seen), loader.state_dict()))
                seen.append(("behind", loader.epoch))
                states.append((len(seen), loader.state_dict()))

        whole, states = [], []
        train(make_loader(), whole, states)
        for number, state in states:
            again = []
            train(resumed(state), again, [])
            if whole[number - 1][0] == "in":
                assert again.pop(0) == ("top", whole[number - 1][1])
            assert again == whole[number:]

    def test_goes_to_the_beginning_of_an_epoch(self):
        loader = make_loader()
        for number in (2, 0, 1):
            loader.set_epoch(number)
            assert take(loader, BATCHES) == self.epoch(number)

    def test_lets_the_epoch_that_was_resumed_go_on(self):
        loader = make_loader()
        take(loader, BATCHES + 2)
        loader = resumed(loader.state_dict())
        loader.set_epoch(1)
        assert take(loader, BATCHES - 2) == self.epoch(1)[2:]

    def test_begins_an_epoch_again_that_is_over(self):
        loader = make_loader()
        take(loader, BATCHES)
        loader.set_epoch(0)
        assert take(loader, BATCHES) == self.epoch(0)

    def test_leaves_a_resumed_position_for_another_epoch(self):
        loader = make_loader()
        take(loader, 2)
        state = loader.state_dict()
        loader = resumed(state)
        left = r"^set_epoch\(1\) leaves the position that was restored, which is in epoch 0"
        with pytest.warns(DataOrderWarning, match=left) as said:
            loader.set_epoch(1)
        assert said[0].filename == __file__
        assert take(loader, BATCHES) == self.epoch(1)
        with pytest.warns(DataOrderWarning, match=left):
            resumed(state).sampler.set_epoch(1)
        loader.set_epoch(0)
        assert take(loader, BATCHES) == self.epoch(0)

    @pytest.mark.parametrize(
        ("epochs", "number", "is_said"), [(2, 0, True), (2, 1, False), (2, 2, False), (1, 0, False)]
    )
    def test_behind_an_epoch_may_be_the_same_again_but_not_one_before(self, epochs, number, is_said):
        """A validation that asks for one order each time may; a loop that begins to count at 0 may not."""
        loader = make_loader()
        take(loader, epochs * BATCHES)
        loader = resumed(loader.state_dict())
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            loader.set_epoch(number)
        assert bool(said) == is_said

    @pytest.mark.parametrize("workers", [0, 2])
    def test_does_not_touch_a_pass_that_is_under_way_and_no_longer_counts_it(self, workers):
        loader = make_loader(num_workers=workers)
        under_way = iter(loader)
        taken = [next(under_way).tolist()]
        loader.set_epoch(2)
        taken += [batch.tolist() for batch in under_way]
        assert taken == self.epoch(0)
        assert (loader.state_dict()["epoch"], loader.state_dict()["samples_consumed"]) == (2, 0)
        assert take(loader, BATCHES) == self.epoch(2)

    def test_is_what_lightning_calls_on_the_sampler(self):
        loader = make_loader()
        loader.sampler.set_epoch(1)
        assert take(loader, BATCHES) == self.epoch(1)

    def test_at_each_epoch_of_a_usual_loop_changes_nothing(self):
        loader, taken = make_loader(), []
        for number in range(EPOCHS):
            loader.set_epoch(number)
            taken += [batch.tolist() for batch in loader]
        assert taken == take(make_loader(), EPOCHS * BATCHES)


class TestBatchesOfSampleIds:
    def test_are_the_rest_of_the_epoch_and_move_nothing(self):
        loader = make_loader()
        iterator = iter(loader)
        next(iterator)
        rest = list(loader.batches_of_sample_ids())
        assert [batch.tolist() for batch in iterator] == rest
        assert all(type(sample) is int for sample in flat(rest))


class TestWorkers:
    def test_that_persist_get_the_order_of_each_epoch(self):
        loader = make_loader(num_workers=2, persistent_workers=True)
        take(loader, 2)
        assert take(loader, 2 * BATCHES) == take(make_loader(), 2 * BATCHES)

    def test_are_ended_with_the_loader_and_not_some_time_later(self):
        gc.collect()
        before = set(multiprocessing.active_children())
        gc.disable()
        try:
            loader = make_loader(num_workers=2, persistent_workers=True)
            take(loader, 1)
            started = set(multiprocessing.active_children()) - before
            del loader
            assert len(started) == 2
            assert not any(worker.is_alive() for worker in started)
        finally:
            gc.enable()


class TestArguments:
    @pytest.mark.parametrize("dataset", [iter([1, 2]), 5, None, {1, 2}])
    def test_a_dataset_without_positions_is_refused(self, dataset):
        with pytest.raises(DatasetError, match=rf"map-style dataset.*found {type(dataset).__name__}"):
            ResumableDataLoader(dataset, 2)

    def test_a_stream_that_has_a_length_is_refused(self):
        class Stream(IterableDataset):
            def __iter__(self):
                return iter(range(3))

            def __len__(self):
                return 3

        with pytest.raises(DatasetError, match="found Stream"):
            ResumableDataLoader(Stream())

    @pytest.mark.parametrize("dataset", [[], range(0), np.zeros((0, 3))])
    def test_an_empty_dataset_is_refused(self, dataset):
        with pytest.raises(DatasetError, match="has no samples"):
            ResumableDataLoader(dataset)

    @pytest.mark.parametrize("batch_size", [0, -1, 2.0, True, None, "4"])
    def test_a_batch_size_that_is_no_positive_integer_is_refused(self, batch_size):
        with pytest.raises(DatasetError, match=f"batch_size: expected a positive integer, found {batch_size!r}"):
            ResumableDataLoader([1], batch_size)

    @pytest.mark.parametrize("name", ["sampler", "batch_sampler", "generator"])
    def test_what_would_decide_the_order_is_refused(self, name):
        with pytest.raises(DatasetError, match=f"{name}: the order belongs to ResumableDataLoader"):
            ResumableDataLoader([1], **{name: None})

    def test_batches_in_the_order_in_which_workers_finish_are_refused(self):
        with pytest.raises(DatasetError, match="in_order: expected True"):
            ResumableDataLoader([1], num_workers=2, in_order=False)
        assert ResumableDataLoader([1], in_order=True)

    def test_a_seed_that_is_no_integer_is_refused(self):
        with pytest.raises(TypeError):
            ResumableDataLoader([1], seed=0.5)

    def test_any_map_style_dataset_will_do(self):
        assert flat(take(ResumableDataLoader(np.arange(5), 2), 3)) == list(range(5))
        assert flat(take(ResumableDataLoader(torch.arange(5), 2), 3)) == list(range(5))

    def test_a_dataset_smaller_than_the_batch_is_one_short_batch_or_none(self):
        assert sorted(take(make_loader(3, 8), 1)[0]) == [0, 1, 2]
        nothing = make_loader(3, 8, drop_last=True)
        assert (len(nothing), list(nothing)) == (0, [])

    def test_it_is_a_dataloader_with_all_its_options(self):
        loader = ResumableDataLoader(range(6), 2, collate_fn=tuple, pin_memory=False, timeout=0)
        assert isinstance(loader, DataLoader)
        assert list(loader) == [(0, 1), (2, 3), (4, 5)]


class TestWarnings:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"seed": 4}, "seed was 3 and is 4"),
            ({"shuffle": False}, "shuffle was True and is False"),
            ({"size": SIZE + 1}, "dataset_size was 22 and is 23"),
            ({"drop_last": True}, "drop_last was False and is True"),
        ],
    )
    def test_another_order_is_said_and_the_position_kept(self, options, said):
        loader = make_loader()
        take(loader, 2)
        message = f"in epoch 0 behind 8 samples or batches, but not as before: {said}"
        with pytest.warns(DataOrderWarning, match=message) as caught:
            other = resumed(loader.state_dict(), **options)
        assert len(caught) == 1
        assert take(other, 3) == take(make_loader(**options), 5)[2:]

    def test_all_that_differs_is_said_in_one_warning(self):
        state = make_loader().state_dict()
        with pytest.warns(DataOrderWarning, match=r"seed was .*, shuffle was .*, dataset_size was ") as caught:
            resumed(state, seed=4, shuffle=False, size=7)
        assert len(caught) == 1

    def test_a_position_behind_the_end_of_a_dataset_that_has_shrunk_is_the_next_epoch(self):
        loader = make_loader()
        take(loader, 3)
        with pytest.warns(DataOrderWarning):
            other = resumed(loader.state_dict(), size=10)
        assert take(other, 3) == take(make_loader(10), 6)[3:]

    def test_another_batch_size_is_said_and_the_order_of_samples_stays(self):
        loader = make_loader()
        take(loader, 2)
        with pytest.warns(DataOrderWarning, match="batch_size was 4 and is 5"):
            other = resumed(loader.state_dict(), batch_size=5)
        assert flat(take(other, 2)) == flat(take(make_loader(), BATCHES))[8:18]

    def test_another_number_of_workers_is_nothing_to_say(self):
        state = make_loader().state_dict()
        with warnings.catch_warnings():
            warnings.simplefilter("error", DataOrderWarning)
            resumed(state, num_workers=2)

    def test_the_position_of_another_kind_of_loader_is_refused(self):
        state = resumable(DataLoader(range(SIZE), BATCH)).state_dict()
        with pytest.raises(DatasetError, match="another kind of loader: expected dataset_size, shuffle, found"):
            make_loader().load_state_dict(state)


class Counting(Dataset):
    def __init__(self, fetched):
        self.fetched = fetched

    def __len__(self):
        return SIZE

    def __getitem__(self, sample_id):
        with self.fetched.get_lock():
            self.fetched.value += 1
        return sample_id


class Failing(Dataset):
    def __len__(self):
        return SIZE

    def __getitem__(self, sample_id):
        if sample_id == 9:
            raise ValueError("sample 9 cannot be read")
        return sample_id


# Every process goes through all tasks, and takes part in those that have a rank for it.
RANKS_SCRIPT = """
import json, os, sys, time
from datetime import timedelta
import torch.distributed as dist
from neuromanifold_gpt import ResumableDataLoader

folder, process = sys.argv[1], int(sys.argv[2])
tasks, results = json.load(open(f"{folder}/tasks.json")), []
for number, task in enumerate(tasks):
    if process >= task["ranks"]:
        results.append(None)
        continue
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet{number}", rank=process,
                            world_size=task["ranks"], timeout=timedelta(seconds=100))
    loader = ResumableDataLoader(range(task["size"]), task["batch"], shuffle=True, seed=3,
                                 drop_last=task["drop_last"], num_workers=task["workers"])
    if task["state"]:
        loader.load_state_dict(task["state"])
    batches, states = [], []
    for _ in range(task["epochs"]):
        for batch in loader:
            batches.append(batch.tolist())
            states.append(loader.state_dict())
    results.append({"batches": batches, "states": states, "length": len(loader)})
    open(f"{folder}/done{number}.{process}", "w").close()
    while not all(os.path.exists(f"{folder}/done{number}.{rank}") for rank in range(task["ranks"])):
        time.sleep(0.002)  # gloo fails where one rank leaves while another still connects
    dist.destroy_process_group()
json.dump(results, open(f"{folder}/result{process}.json", "w"))
"""


@pytest.fixture(scope="class")
def on_ranks(tmp_path_factory):
    """Results of tasks by name: of each, a list by rank."""
    one_rank = make_loader(23, 6)
    take(one_rank, 2)
    tasks = {
        "two": {"ranks": 2, "batch": 3},
        "three": {"ranks": 3, "batch": 2, "workers": 1},
        "drop": {"ranks": 2, "batch": 3, "drop_last": True},
        "few": {"ranks": 3, "size": 1, "batch": 4},
        "two after one": {"ranks": 2, "batch": 3, "state": one_rank.state_dict()},
        "three after one": {"ranks": 3, "batch": 2, "state": one_rank.state_dict()},
    }
    defaults = {"size": 23, "epochs": 2, "drop_last": False, "state": None, "workers": 0}
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "tasks.json").write_text(json.dumps([{**defaults, **task} for task in tasks.values()]))
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE_PARENT), "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen([sys.executable, "-c", RANKS_SCRIPT, str(folder), str(process)], env=environment)
        for process in range(3)
    ]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
    results = [json.loads((folder / f"result{process}.json").read_text()) for process in range(3)]
    return {
        name: [result[number] for result in results if result[number] is not None] for number, name in enumerate(tasks)
    }


def together(ranks):
    """The batches of all ranks put together, one global batch each."""
    return [flat(shares) for shares in zip(*(rank["batches"] for rank in ranks), strict=True)]


class TestSeveralRanks:
    @pytest.mark.parametrize("name", ["two", "three"])
    def test_share_the_batches_of_one_rank_in_order(self, on_ranks, name):
        expected = take(make_loader(23, 6), 8)
        # 23 = 3 * 6 + 5: the last batch of each epoch is filled up with its first sample.
        expected[3].append(expected[0][0])
        expected[7].append(expected[4][0])
        assert together(on_ranks[name]) == expected
        share = {"two": 3, "three": 2}[name]
        assert all(len(batch) == share for rank in on_ranks[name] for batch in rank["batches"])

    def test_repeat_the_beginning_of_the_epoch_where_samples_are_too_few(self, on_ranks):
        assert [rank["batches"] for rank in on_ranks["few"]] == [[[0], [0]]] * 3

    def test_drop_a_short_last_batch_together(self, on_ranks):
        assert together(on_ranks["drop"]) == take(make_loader(23, 6, drop_last=True), 6)

    @pytest.mark.parametrize("name", ["two", "three", "drop", "few"])
    def test_have_the_same_position_and_length(self, on_ranks, name):
        states = [rank["states"] for rank in on_ranks[name]]
        assert all(state == states[0] for state in states)
        lengths = {rank["length"] for rank in on_ranks[name]}
        assert lengths == {{"two": 4, "three": 4, "drop": 3, "few": 1}[name]}

    @pytest.mark.parametrize("name", ["two", "three", "drop"])
    def test_leave_positions_from_which_one_rank_continues(self, on_ranks, name):
        options = {"size": 23, "batch_size": 6, "drop_last": name == "drop"}
        states = on_ranks[name][0]["states"]
        whole = take(make_loader(**options), len(states) + 2)
        for done, state in enumerate(states, 1):
            assert take(resumed(state, **options), len(whole) - done) == whole[done:]

    @pytest.mark.parametrize("name", ["two after one", "three after one"])
    def test_continue_from_a_position_of_one_rank(self, on_ranks, name):
        expected = take(make_loader(23, 6), 8)
        expected[3].append(expected[0][0])
        expected[7].append(expected[4][0])
        assert together(on_ranks[name]) == expected[2:]


class TestLightning:
    @pytest.fixture
    def fit(self, tmp_path):
        lightning = pytest.importorskip("lightning.pytorch")

        class Recorder(lightning.LightningModule):
            def __init__(self, own_loader=None):
                super().__init__()
                self.weight = torch.nn.Parameter(torch.zeros(1))
                self.own_loader = own_loader
                self.seen = []

            def training_step(self, batch, batch_idx):
                self.seen.append((self.current_epoch, batch.tolist()))
                return (self.weight * batch.float().mean()).sum()

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.1)

        class WithLoader(Recorder):
            def train_dataloader(self):
                return self.own_loader()

        def run(loader, *, hook=False, **options):
            module = WithLoader(loader) if hook else Recorder()
            trainer = lightning.Trainer(
                **{"max_epochs": 2, **options},
                default_root_dir=tmp_path,
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*does not have many workers")
                trainer.fit(module, None if hook else loader)
            return module.seen

        return run

    @pytest.mark.parametrize("workers", [0, 2])
    def test_trains_on_each_sample_once_per_epoch(self, fit, workers):
        seen = fit(make_loader(num_workers=workers, persistent_workers=bool(workers)))
        assert [batch for _, batch in seen] == take(make_loader(), 2 * BATCHES)
        assert [epoch for epoch, _ in seen] == [0] * BATCHES + [1] * BATCHES

    def test_takes_a_loader_that_the_module_makes(self, fit):
        assert [batch for _, batch in fit(make_loader, hook=True)] == take(make_loader(), 2 * BATCHES)

    def test_goes_to_the_next_epoch_where_it_limits_the_batches_of_one(self, fit):
        whole = take(make_loader(), 2 * BATCHES)
        seen = [batch for _, batch in fit(make_loader(), limit_train_batches=2)]
        assert seen == whole[:2] + whole[BATCHES : BATCHES + 2]
