"""What a loader shows as its sampler and batch sampler: the user's own, in all but the epoch."""

import copy
import pickle
import warnings

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    Sampler,
    SequentialSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from neuromanifold_gpt.data.errors import DataOrderWarning
from neuromanifold_gpt.data.loader import ResumableDataLoader
from neuromanifold_gpt.data.resumable import resumable

SIZE, BATCH, STEPS = 22, 4, 15


class Bunches(Sampler):
    """A batch sampler that training can shuffle, and whose batches it can let grow."""

    def __init__(self):
        self.batch_size, self.ids = BATCH, list(range(SIZE))
        self.told = 0

    def __iter__(self):
        yield from (self.ids[i : i + self.batch_size] for i in range(0, SIZE, self.batch_size))

    def __len__(self):
        return -(-SIZE // self.batch_size)

    def turn(self, count):
        self.ids[:] = self.ids[count:] + self.ids[:count]


class Told(SequentialSampler):
    epochs = ()

    def set_epoch(self, epoch):
        self.epochs = (*self.epochs, epoch)


def weigh(loader, step):
    loader.sampler.weights = torch.arange(1.0, SIZE + 1) ** step


def grow(loader, step):
    loader.batch_sampler.batch_size += 1


def turn(loader, step):
    loader.batch_sampler.turn(step)


def drop(loader, step):
    loader.batch_sampler.drop_last = not loader.batch_sampler.drop_last


def grow_and_drop(loader, step):
    grow(loader, step)
    drop(loader, step)


def shrink_and_drop(loader, step):
    loader.batch_sampler.batch_size = 9 - loader.batch_sampler.batch_size
    drop(loader, step)


LOADERS = {
    "weighted": lambda: {"sampler": WeightedRandomSampler(torch.ones(SIZE), SIZE), "batch_size": BATCH},
    "shuffled": lambda: {"shuffle": True, "batch_size": BATCH},
    "own batches": lambda: {"batch_sampler": Bunches()},
    "stock batches": lambda: {"batch_sampler": BatchSampler(SequentialSampler(range(SIZE)), BATCH, True)},
}
CASES = [
    ("weighted", weigh),
    ("shuffled", grow),
    ("shuffled", drop),
    ("shuffled", shrink_and_drop),
    ("stock batches", grow_and_drop),
    ("own batches", grow),
    ("own batches", turn),
]


def stock(kind):
    return DataLoader(range(SIZE), **LOADERS[kind]())


def make(kind, workers=0):
    return resumable(DataLoader(range(SIZE), num_workers=workers, **LOADERS[kind]()), seed=3)


def train(loader, change, batches, states=None, *, within=False):
    while len(batches) < STEPS:
        for batch in loader:
            batches.append(batch.tolist())
            if within and len(batches) % 4 == 0:
                change(loader, len(batches))
            if states is not None:
                states.append((loader.state_dict(), len(loader), loader.batches_consumed))
            if len(batches) == STEPS:
                return
        if not within:
            change(loader, len(batches))


@pytest.mark.parametrize(("kind", "change"), CASES)
def test_what_is_set_between_epochs_counts_as_in_a_stock_loader(kind, change):
    shown, of_stock = make(kind), stock(kind)
    for _ in range(3):
        taken, expected = ([batch.tolist() for batch in loader] for loader in (shown, of_stock))
        assert list(map(len, taken)) == list(map(len, expected))
        if kind.endswith("batches"):  # whose order is not drawn
            assert taken == expected
        for loader in (shown, of_stock):
            change(loader, 8)
        assert len(shown) == len(of_stock) == len(shown.batch_sampler)
    if change is weigh:
        assert sum(sample >= SIZE - 6 for batch in shown for sample in batch) > SIZE / 2


@pytest.mark.filterwarnings("ignore:nothing is left of epoch")
@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize(("kind", "change"), CASES)
def test_what_is_set_counts_after_a_resume(kind, change, within):
    if kind == "own batches" and within:
        pytest.skip("its length, and its list, are others at once, which is said")
    whole, states = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataOrderWarning)
        train(make(kind), change, whole, states, within=within)
        for number in range(1, STEPS):
            state, length, consumed = states[number - 1]
            loader = make(kind)
            loader.load_state_dict(pickle.loads(pickle.dumps(state)))
            assert str((loader.state_dict(), len(loader), loader.batches_consumed)) == str((state, length, consumed))
            resumed, later = whole[:number], []
            train(loader, change, resumed, later, within=within)
            assert resumed == whole, f"after {number} batches"
            assert str(later) == str(states[number:])


def test_another_batch_size_holds_from_the_next_epoch_on_whatever_workers_have_fetched():
    whole = []
    train(make("shuffled"), grow, whole, within=True)
    assert [len(batch) for batch in whole[:6]] == [4, 4, 4, 4, 4, 2]
    loader, taken, state = make("shuffled", workers=2), [], None
    for batch in loader:
        taken.append(batch.tolist())
        if len(taken) == 4:
            grow(loader, 4)
            state = loader.state_dict()
            break
    resumed = make("shuffled", workers=1)
    resumed.load_state_dict(state)
    train(resumed, grow, taken, within=True)
    assert taken == whole


def test_a_batch_size_that_was_made_another_one_is_said_and_one_that_training_changed_is_not():
    loader = make("shuffled")
    list(loader)
    grow(loader, 1)
    next(iter(loader))
    other = resumable(DataLoader(range(SIZE), BATCH + 3, shuffle=True), seed=3)
    with pytest.warns(DataOrderWarning, match="batch_size was 4 and is 7"):
        other.load_state_dict(loader.state_dict())


def test_reading_and_calling_reach_the_users_objects():
    bunches = Bunches()
    loader = resumable(DataLoader(range(SIZE), batch_sampler=bunches))
    loader.batch_sampler.turn(3)
    assert bunches.ids[0] == 3
    assert list(loader.batch_sampler) == list(bunches)
    assert len(loader.batch_sampler) == len(bunches)
    with pytest.raises(AttributeError, match="'Bunches' object has no attribute 'unknown'"):
        loader.batch_sampler.unknown  # noqa: B018
    batches = [[0, 1], [2]]
    assert resumable(DataLoader(range(3), batch_sampler=batches)).batch_sampler[1] == [2]
    assert resumable(DataLoader(range(3), batch_size=None)).batch_sampler is None
    assert copy.deepcopy(loader).batch_sampler.ids == bunches.ids
    assert pickle.loads(pickle.dumps(make("shuffled"))).batch_sampler.batch_size == BATCH


def test_the_epoch_is_told_to_the_position_and_not_to_the_users_objects():
    sampler = Told(range(SIZE))
    loader = resumable(DataLoader(range(SIZE), BATCH, sampler=sampler))
    for shown in (loader.sampler, loader.batch_sampler.sampler):  # of which Lightning asks for both
        assert isinstance(shown, DistributedSampler)
        shown.set_epoch(3)
    assert (loader.epoch, sampler.epochs) == (3, ())
    list(loader)
    assert sampler.epochs == (3,)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(SIZE))


OWN_ORDERS = {
    "resumable loader": lambda: ResumableDataLoader(range(SIZE), BATCH, shuffle=True),
    "stream": lambda: resumable(DataLoader(Stream(), BATCH)),
}


@pytest.mark.parametrize("kind", OWN_ORDERS)
def test_what_has_no_effect_cannot_be_set(kind):
    loader = OWN_ORDERS[kind]()
    with pytest.raises(AttributeError, match=r"weights cannot be set: .* and would not change\. (Make|Set)"):
        loader.sampler.weights = 1
    with pytest.raises(AttributeError, match="batch_size"):
        loader.batch_sampler.batch_size = 6
    with pytest.raises(AttributeError, match="num_replicas"):
        loader.sampler.num_replicas  # noqa: B018
    with pytest.raises(TypeError, match="iterate over the loader"):
        iter(loader.sampler)
    loader.sampler.set_epoch(2)
    assert (loader.epoch, pickle.loads(pickle.dumps(loader)).epoch) == (2, 2)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world_size", [1, 3])
def test_its_length_is_the_number_of_samples_of_this_rank(monkeypatch, world_size, drop_last):
    monkeypatch.setattr("neuromanifold_gpt.data.loader.rank_and_world_size", lambda: (1 % world_size, world_size))
    loader = ResumableDataLoader(range(SIZE), BATCH, drop_last=drop_last)
    assert len(loader.sampler) == sum(len(batch) for batch in loader)
    assert (len(loader.batch_sampler), loader.batch_sampler.batch_size) == (len(loader), BATCH)
    assert (loader.batch_sampler.drop_last, loader.batch_sampler.sampler) == (drop_last, loader.sampler)
    with pytest.raises(TypeError, match="has no length"):
        len(OWN_ORDERS["stream"]().sampler)
