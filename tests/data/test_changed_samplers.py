"""Samplers that training changes while they run: hard examples weigh more, a curriculum goes on."""

import random
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, WeightedRandomSampler

from neuromanifold_gpt.data.errors import DataOrderWarning
from neuromanifold_gpt.data.resumable import resumable
from neuromanifold_gpt.state.owned_state import OwnedState

SIZE, BATCH, STEPS = 20, 4, 17  # epochs of five batches


class Curriculum(Sampler):
    """A number, a flag, a list and an array decide about each epoch; it counts its passes and its samples."""

    def __init__(self):
        self.first, self.is_hard = 0, False
        self.order = list(range(SIZE))
        self.scores = np.arange(SIZE, dtype=np.float64)
        self.passes = self.given = 0

    def __len__(self):
        return SIZE

    def __iter__(self):
        self.passes += 1
        random.shuffle(self.order)
        ids = sorted(self.order, key=lambda i: self.scores[i]) if self.is_hard else list(self.order)
        for i in ids[self.first :] + ids[: self.first]:
            self.given += 1
            yield i


class Weighted:
    """Training holds the weights; the sampler has the same memory."""

    def __init__(self):
        self.weights = torch.ones(SIZE, dtype=torch.float64)
        self.sampler = WeightedRandomSampler(self.weights, SIZE)

    def change(self, step, ids):
        self.weights[ids] = self.weights[ids] * 0.5 + step

    def shown(self):
        return self.weights.tolist()


class OfCurriculum:
    def __init__(self):
        self.sampler = Curriculum()

    def change(self, step, ids):
        sampler = self.sampler
        sampler.first = (sampler.first + ids[0]) % SIZE
        sampler.is_hard = step % 3 == 0
        sampler.scores[ids] += step
        sampler.order[0], sampler.order[step] = sampler.order[step], sampler.order[0]

    def shown(self):
        sampler = self.sampler
        return [sampler.first, sampler.is_hard, sampler.scores.tolist(), sampler.passes]


def make(kind, workers):
    part = kind()
    return part, resumable(DataLoader(range(SIZE), BATCH, sampler=part.sampler, num_workers=workers), seed=3)


def train(part, loader, events, states=None, *, changes=lambda step: True):
    while len(events) < STEPS:
        for batch in loader:
            step = len(events) + 1
            if changes(step):
                part.change(step, batch.tolist())
            events.append((batch.tolist(), part.shown()))
            if states is not None:
                states.append(loader.state_dict())
            if len(events) == STEPS:
                break


@pytest.mark.filterwarnings("ignore:nothing is left of epoch")
@pytest.mark.parametrize(("workers", "how_often"), [(0, 1), (0, 4), (0, 7), (2, 1)])
@pytest.mark.parametrize("kind", [Weighted, OfCurriculum])
def test_what_training_changes_in_the_middle_of_an_epoch_counts_after_a_resume(kind, workers, how_often):
    part, loader = make(kind, workers)
    events, states = [], []
    train(part, loader, events, states, changes=lambda step: step % how_often == 0)
    unchanged = []
    train(*make(kind, 0), unchanged, changes=lambda step: False)
    assert [ids for ids, _ in events] != [ids for ids, _ in unchanged], "the changes decide about the order"
    for number in range(1, STEPS) if workers == 0 else (2, 5, 9, 13):
        part, loader = make(kind, workers)
        loader.load_state_dict(states[number - 1])
        assert loader.state_dict() == states[number - 1]
        resumed, later = events[:number], []
        train(part, loader, resumed, later, changes=lambda step: step % how_often == 0)
        assert resumed == events, f"after {number} batches"
        assert [str(state) for state in later] == [str(state) for state in states[number:]]


def test_nothing_is_stored_of_what_the_sampler_does_itself():
    _, loader = make(OfCurriculum, 2)
    for _ in loader:
        assert loader.state_dict()["sampler_now"] == {}


class Looks(Sampler):
    """A curriculum that grows by step, and is looked at while it runs."""

    def __init__(self):
        self.shift, self.order = 1, list(range(SIZE))

    def __len__(self):
        return SIZE

    def __iter__(self):
        return ((self.order[i] + random.randrange(self.shift)) % SIZE for i in range(SIZE))


def looking(workers, states=None, batches=None, state=None):
    """Batches of a program whose loop sets a number of the sampler in each step."""
    sampler, batches = Looks(), [] if batches is None else batches
    loader = resumable(DataLoader(range(SIZE), BATCH, sampler=sampler, num_workers=workers), seed=3)
    if state is not None:
        loader.load_state_dict(state)
    while len(batches) < STEPS:
        for batch in loader:
            batches.append(batch.tolist())
            sampler.shift = 1 + len(batches) // 2
            if states is not None:
                states.append(str(loader.state_dict()))
                states.append(loader.state_dict())
            if len(batches) == STEPS:
                break
    return batches


@pytest.mark.filterwarnings("ignore:nothing is left of epoch")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_sampler_that_looks_while_it_runs_at_numbers_that_change_gives_the_same_ids(workers):
    states = []
    whole = looking(workers, states)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataOrderWarning)
        for number in range(1, STEPS) if workers == 0 else (2, 4, 5, 9):
            later = []
            assert looking(workers, later, whole[:number], states[2 * number - 1]) == whole, f"after {number} batches"
            assert later[::2] == states[2 * number :: 2]


def test_with_fewer_workers_than_before_it_goes_on_with_what_was_fetched_ahead():
    states, later = [], []
    whole = looking(1, states)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataOrderWarning)
        resumed = looking(0, later, whole[:2], states[3])
        assert resumed[:4] == whole[:4]
        for number in (1, 2):
            assert looking(0, None, resumed[: 2 + number], later[2 * number - 1]) == resumed


def test_a_sampler_that_looks_while_it_runs_at_a_list_that_changes_is_said():
    for workers in (0, 1):  # with workers, those are others that were fetched ahead
        sampler = Looks()
        loader = resumable(DataLoader(range(SIZE), BATCH, sampler=sampler, num_workers=workers), seed=3)
        for number, _ in enumerate(loader):
            sampler.order.reverse()
            if number == 1:
                state = loader.state_dict()
                break
        resumed = resumable(DataLoader(range(SIZE), BATCH, sampler=Looks(), num_workers=workers), seed=3)
        resumed.load_state_dict(state)
        with pytest.warns(DataOrderWarning, match="gives other ids than before the checkpoint"):
            next(iter(resumed))


@pytest.mark.parametrize("when", ["before the first pass", "between passes", "behind set_epoch"])
def test_what_is_changed_before_a_pass_counts_in_it(when):
    sampler = Curriculum()
    loader = resumable(DataLoader(range(SIZE), BATCH, sampler=sampler), seed=3)
    if when != "before the first pass":
        list(loader)
    if when == "behind set_epoch":
        loader.set_epoch(1)
    before = loader.state_dict()
    sampler.scores[:] = -sampler.scores
    sampler.is_hard = True
    state = loader.state_dict()
    assert state != before
    ids = [i for batch in loader for i in batch.tolist()]
    assert ids == list(range(SIZE))[::-1]
    resumed = resumable(DataLoader(range(SIZE), BATCH, sampler=Curriculum()), seed=3)
    resumed.load_state_dict(state)
    assert [i for batch in resumed for i in batch.tolist()] == ids


def test_a_resumed_epoch_that_is_left_for_the_next_one_leaves_its_changes():
    def make_loader():
        sampler = Curriculum()
        return sampler, resumable(DataLoader(range(SIZE), BATCH, sampler=sampler), seed=3)

    sampler, loader = make_loader()
    for number, _ in enumerate(loader):
        sampler.first = 7
        if number == 2:
            state = loader.state_dict()
            break
    loader.set_epoch(1)
    whole = [batch.tolist() for batch in loader]
    sampler, resumed = make_loader()
    resumed.load_state_dict(state)
    resumed.set_epoch(1)
    assert [batch.tolist() for batch in resumed] == whole
    assert sampler.first == 7


class TestPuttingBack:
    def test_fills_what_others_hold(self):
        sampler = Curriculum()
        order, scores = sampler.order, sampler.scores
        owned = OwnedState({"sampler": sampler}, thorough=True)
        order.reverse()
        scores += 1
        saved = owned.changed_values()
        order.sort()
        scores *= 2
        owned.restore_values(saved)
        assert sampler.order is order
        assert order == list(range(SIZE))[::-1]
        assert sampler.scores is scores
        assert scores.tolist() == [float(i + 1) for i in range(SIZE)]

    @pytest.mark.parametrize("kind", ["read-only", "a view", "longer", "of another type"])
    def test_replaces_what_cannot_be_filled(self, kind):
        def array():
            return np.arange(6.0)

        sampler = Curriculum()
        sampler.scores = array()
        owned = OwnedState({"sampler": sampler}, thorough=True)
        sampler.scores = array() + 1
        saved = owned.changed_values()
        sampler.scores = {
            "read-only": lambda: np.frombuffer(array().tobytes()),
            "a view": lambda: np.arange(12.0)[::2],
            "longer": lambda: np.arange(9.0),
            "of another type": lambda: np.arange(6),
        }[kind]()
        held, as_it_was = sampler.scores, sampler.scores.copy()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            owned.restore_values(saved)
        assert sampler.scores.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
        assert (held == as_it_was).all()

    def test_of_long_lists_a_glance_sees_that_they_were_shuffled(self):
        sampler = Curriculum()
        sampler.order = list(range(100_000))
        owned = OwnedState({"sampler": sampler}, thorough=True)
        first = owned.values(at_a_glance=True)["sampler.order"]
        assert owned.values(at_a_glance=True)["sampler.order"] is first
        sampler.order[5], sampler.order[6] = 6, 5
        assert owned.values(at_a_glance=True)["sampler.order"] is first
        assert owned.values()["sampler.order"] == sampler.order
        random.shuffle(sampler.order)
        assert owned.values(at_a_glance=True)["sampler.order"] == sampler.order


@pytest.mark.filterwarnings("ignore:nothing is left of epoch")
def test_behind_an_epochs_last_batch_its_order_is_nobodys_concern():
    class Hard(Sampler):
        """Draws one id after the other, by weights that training changes meanwhile."""

        def __init__(self):
            self.weights = torch.ones(SIZE)

        def __len__(self):
            return SIZE

        def __iter__(self):
            for _ in range(SIZE):
                yield int(torch.multinomial(self.weights, 1))

    def run(state, batches):
        sampler = Hard()
        loader = resumable(DataLoader(range(SIZE), BATCH, sampler=sampler), seed=3)
        if state is not None:
            loader.load_state_dict(state)
        seen = []
        while True:
            for ids in loader:
                sampler.weights[ids] *= 0.1
                seen.append(ids.tolist())
                if len(seen) == batches:
                    return seen, loader.state_dict()

    whole, _ = run(None, 10)
    seen, state = run(None, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataOrderWarning)
        assert seen + run(state, 5)[0] == whole


def values_of_all_kinds():
    return {
        "sparse": torch.eye(300).to_sparse(),
        "sparse rows": torch.eye(300).to_sparse_csr(),
        "without memory": torch.empty(3, device="meta"),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "not known yet": torch.nn.UninitializedParameter(),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "of other bytes": np.arange(3, dtype=">i4"),
        "of extended precision": np.ones(3, dtype=np.longdouble),
        "masked": np.ma.masked_array([1, 2], [False, True]),
        "of objects": np.array([None, {}], dtype=object),
        "not a number": torch.tensor([1.0, float("nan")]),
        "number that is none": float("nan"),
        "proxy": weakref.proxy(Gone()),
    }


class Gone:
    """Whatever refers to it weakly has nobody to ask."""


@pytest.mark.filterwarnings("ignore:.*(Sparse|nested tensors|quantized|torch.quantize).*")
@pytest.mark.parametrize("kind", values_of_all_kinds())
def test_whatever_samplers_and_datasets_hold_is_no_reason_to_fail_or_to_doubt(kind):
    class Holds(Dataset):
        def __init__(self, value):
            self.value = value

        def __len__(self):
            return SIZE

        def __getitem__(self, i):
            return i

        def __iter__(self):
            return iter(range(SIZE))

    value = values_of_all_kinds()[kind]
    sampler = Holds(value)
    loader = resumable(DataLoader(Holds(value), BATCH, sampler=sampler))
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataOrderWarning)
        for _ in loader:
            state = loader.state_dict()
    assert (state["sampler"], state["sampler_now"]) == ({}, {})


@pytest.mark.parametrize("large", [False, True])
def test_a_change_at_one_place_of_a_tensor_is_seen(large):
    sampler = Curriculum()
    sampler.weights = torch.zeros(SIZE if not large else (1 << 20) + 77)
    owned = OwnedState({"sampler": sampler}, thorough=True)
    owned.values(at_a_glance=True)
    sampler.weights[13] = 1
    assert owned.values(at_a_glance=True)["sampler.weights"][13] == 1


class Buckets(Sampler):
    """As in text-to-speech: the batches of an epoch stay in an attribute, and are made anew in each."""

    epoch = 0

    def __init__(self):
        self.batches = []

    def __len__(self):
        return SIZE // 4

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = torch.randperm(SIZE, generator=torch.Generator().manual_seed(self.epoch)).tolist()
        self.batches = [order[start : start + 4] for start in range(0, SIZE - 3, 4)]
        return iter(self.batches)


class Grows(Buckets):
    def __iter__(self):
        self.batches = [*self.batches[1:], self.batches[0]] if self.batches else [[i, i + 1] for i in range(0, SIZE, 2)]
        return iter(self.batches)


def said_of_batches(sampler):
    loader = resumable(DataLoader(torch.arange(SIZE), batch_sampler=sampler))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            for _ in loader:
                pass
            loader.state_dict()
            loader.warn_of_what_is_left_out()
    return [str(warning.message) for warning in caught if "sampler.batches" in str(warning.message)]


def test_what_a_pass_makes_anew_is_no_change():
    assert said_of_batches(Buckets()) == []
    assert len(said_of_batches(Grows())) == 1
