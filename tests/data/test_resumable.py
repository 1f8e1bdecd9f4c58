"""A stock ``DataLoader``, wrapped: the same batches after any interruption, whatever decides their order."""

import functools
import pickle
import random
import threading
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    WeightedRandomSampler,
    default_collate,
    get_worker_info,
)

from neuromanifold_gpt import ResumableDataLoader, resumable
from neuromanifold_gpt.data.errors import DataOrderWarning, DatasetError, ReadAgainWarning
from neuromanifold_gpt.state.owned_state import OwnedState

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:the stream was begun with"),
    pytest.mark.filterwarnings("ignore::neuromanifold_gpt.data.errors.ReadAgainWarning"),
]
SIZE = 22
BATCHES = 18  # three epochs


class Augmented(Dataset):
    """Draws from the three global generators, and from one of its own."""

    def __init__(self):
        self.generator = np.random.default_rng(3)

    def __len__(self):
        return SIZE

    def __getitem__(self, i):
        drawn = random.random() + np.random.rand() + float(torch.rand(())) + self.generator.random()
        return int(i), drawn


class Shuffling(Sampler):
    """Shuffles its own list in place with its own generator, and counts: each epoch depends on all before."""

    def __init__(self):
        self.ids = list(range(SIZE))
        self.random = random.Random(4)
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        for _ in range(self.passes):
            self.random.shuffle(self.ids)
        return iter(self.ids)

    def __len__(self):
        return SIZE


class Bunches(Sampler):
    """A batch sampler without a length that draws while it goes on."""

    def __iter__(self):
        left = list(range(SIZE))
        random.shuffle(left)
        while left:
            count = random.randint(1, 4)
            yield left[:count]
            left = left[count:]


class Stateful(Sampler):
    """Has a state that no attribute of a plain type shows."""

    def __init__(self):
        self._history = [{"epoch": 0}]

    def __iter__(self):
        epoch = self._history[-1]["epoch"]
        self._history.append({"epoch": epoch + 1})
        return iter([(i * (2 * epoch + 1)) % SIZE for i in range(SIZE)])

    def __len__(self):
        return SIZE

    def state_dict(self):
        return {"epoch": self._history[-1]["epoch"]}

    def load_state_dict(self, state):
        self._history = [dict(state)]


class Stream(IterableDataset):
    def ids(self):
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        return list(range(first, SIZE + 3 * first, step))  # workers have streams of different lengths

    def __iter__(self):
        for i in self.ids():
            yield i, random.random() + float(torch.rand(()))


class StatefulStream(Stream):
    def __init__(self):
        self.position = 0

    def __iter__(self):
        ids = self.ids()
        while self.position < len(ids):
            self.position += 1
            yield ids[self.position - 1], random.random()
        self.position = 0

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class StatefulIteratorStream(Stream):
    def __iter__(self):
        return Numbers(self.ids())


class Numbers:
    def __init__(self, ids):
        self.ids, self.position = ids, 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.position == len(self.ids):
            raise StopIteration
        self.position += 1
        return self.ids[self.position - 1], random.random()

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class Counting:
    """Collates, and gives each batch its number."""

    def __init__(self):
        self.batches = 0

    def __call__(self, samples):
        self.batches += 1
        return [self.batches, *default_collate(samples)]


class CollatingStream(StatefulStream):
    """Collates by itself, and has the number of batches in its state."""

    def __init__(self):
        super().__init__()
        self.batches = 0

    def collate(self, samples):
        self.batches += 1
        return [self.batches, *default_collate(samples)]

    def state_dict(self):
        return {**super().state_dict(), "batches": self.batches}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.batches = state["batches"]


def collated_by_stream(workers):
    stream = CollatingStream()
    return DataLoader(stream, 4, num_workers=workers, collate_fn=stream.collate)


class PackingStream(Stream):
    """Cuts documents in windows: what is left of one goes on, also behind a resume, before the next one is drawn."""

    def __init__(self, draw=random.Random):
        self.rng, self.left, self.documents = draw(5), [], 0

    def __iter__(self):
        while self.documents < SIZE:
            self.documents += 1
            self.left = [*self.left, *(round(self.rng.random(), 9) for _ in range(3 + self.documents % 3))]
            while len(self.left) > 1:
                window, self.left = self.left[:2], self.left[2:]
                yield window
        self.documents = 0

    def state_dict(self):
        return {"left": self.left, "documents": self.documents}

    def load_state_dict(self, state):
        self.left, self.documents = state["left"], state["documents"]


class PackingStreamWithAll(PackingStream):
    def state_dict(self):
        return {**super().state_dict(), "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.rng = np.random.default_rng()
        self.rng.bit_generator.state = state["rng"]


class OfTheProcess:
    def __init__(self, _seed):
        pass

    def random(self):
        return random.random()


def weighted():
    return WeightedRandomSampler(torch.arange(1.0, SIZE + 1), 30)


LOADERS = {
    "in order": lambda w: DataLoader(Augmented(), 4, num_workers=w),
    "shuffled": lambda w: DataLoader(Augmented(), 4, shuffle=True, num_workers=w, persistent_workers=w > 0),
    "short batches dropped": lambda w: DataLoader(Augmented(), 4, shuffle=True, drop_last=True, num_workers=w),
    "weighted": lambda w: DataLoader(Augmented(), 4, sampler=weighted(), num_workers=w),
    "a generator": lambda w: DataLoader(
        Augmented(), 4, shuffle=True, generator=torch.Generator().manual_seed(9), num_workers=w
    ),
    "own sampler": lambda w: DataLoader(Augmented(), 4, sampler=Shuffling(), num_workers=w),
    "own batch sampler": lambda w: DataLoader(Augmented(), batch_sampler=Bunches(), num_workers=w),
    "stateful sampler": lambda w: DataLoader(Augmented(), 4, sampler=Stateful(), num_workers=w),
    "no batches": lambda w: DataLoader(Augmented(), batch_size=None, shuffle=True, num_workers=w),
    "stream": lambda w: DataLoader(Stream(), 4, num_workers=w),
    "stateful stream": lambda w: DataLoader(StatefulStream(), 4, num_workers=w),
    "stateful iterator": lambda w: DataLoader(StatefulIteratorStream(), 4, num_workers=w, drop_last=True),
    "stream of single samples": lambda w: DataLoader(Stream(), batch_size=None, num_workers=w),
    "stream, counted": lambda w: DataLoader(Stream(), 4, num_workers=w, collate_fn=Counting()),
    "stream that collates": collated_by_stream,
    "packing stream": lambda w: DataLoader(PackingStream(), 4, num_workers=w),
    "packing stream, its generator in its state": lambda w: DataLoader(
        PackingStreamWithAll(np.random.default_rng), 4, num_workers=w
    ),
    "packing stream, global generator": lambda w: DataLoader(PackingStream(OfTheProcess), 4, num_workers=w),
    "stateful stream, counted": lambda w: DataLoader(StatefulStream(), 4, num_workers=w, collate_fn=Counting()),
}


def take(loader, count):
    """The next batches, however many passes that takes, and the state behind each."""
    batches, states = [], []
    while len(batches) < count:
        for batch in loader:
            batches.append([part.tolist() if isinstance(part, torch.Tensor) else part for part in batch])
            states.append(loader.state_dict())
            if len(batches) == count:
                break
    return batches, states


def of_seed(seed, name, workers):
    """A loader made in a process with another global seed."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    return resumable(LOADERS[name](workers))


IN_SUITE_WITH_WORKERS = (
    *("shuffled", "weighted", "own sampler", "own batch sampler", "stream", "stateful stream"),
    "packing stream, its generator in its state",
)


@pytest.mark.parametrize(
    ("name", "workers"),
    [
        *((name, 0) for name in LOADERS),
        *(pytest.param(name, 2) for name in IN_SUITE_WITH_WORKERS),
        *(pytest.param(name, 2, marks=pytest.mark.slow) for name in sorted(LOADERS.keys() - {*IN_SUITE_WITH_WORKERS})),
    ],
)
def test_continues_with_the_next_batch_and_any_number_of_workers(name, workers):
    whole, states = take(of_seed(1, name, workers), BATCHES)
    assert take(of_seed(1, name, workers), BATCHES)[0] == whole
    for taken, later_workers in ((1, 0), (3, 2), (7, 1), (11, workers), (13, 4)):
        loader = of_seed(100 + taken, name, later_workers)
        loader.load_state_dict(states[taken - 1])
        rest, later_states = take(loader, BATCHES - taken)
        assert rest == whole[taken:], f"after {taken} batches"
        assert str(later_states) == str(states[taken:]), f"after {taken} batches"


@pytest.mark.parametrize("name", ["shuffled", "own sampler", "own batch sampler", "stream", "stateful stream"])
def test_leaves_the_global_generators_alone(name):
    loader = of_seed(1, name, 0)
    expected = random.random(), np.random.rand(), float(torch.rand(()))
    loader = of_seed(1, name, 0)
    take(loader, BATCHES)
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == expected


def test_what_decides_the_order_unseen_is_noticed_at_the_resume():
    class Hidden(Sampler):
        orders = iter(([3, 1, 2, 0], [0, 1, 2, 3]))

        def __iter__(self):
            return iter(next(Hidden.orders))

        def __len__(self):
            return 4

    loader = resumable(DataLoader(range(4), 2, sampler=Hidden()))
    _, states = take(loader, 1)
    loader.load_state_dict(states[0])
    with pytest.warns(DataOrderWarning, match="Hidden gives other ids than before"):
        next(iter(loader))


def test_a_stream_without_state_is_read_again_with_one_warning_and_a_bar(capfd):
    loader = resumable(DataLoader(Stream(), 4))
    _, states = take(loader, 3)
    resumed = resumable(DataLoader(Stream(), 4))
    resumed.load_state_dict(states[-1])
    with pytest.warns(ReadAgainWarning, match="12 samples") as caught:
        take(resumed, 1)
    assert len(caught) == 1
    assert "Reading the stream again: 100%" in capfd.readouterr().err


def test_what_a_stream_shares_with_its_collate_fn_is_counted_once():
    class Counter:
        def __init__(self):
            self.samples = 0

    class Counted(Stream):
        def __init__(self, counter):
            self.counter = counter

        def __iter__(self):
            for i in self.ids():
                self.counter.samples += 1
                yield i

    class Tells:
        def __init__(self, counter):
            self.counter = counter

        def __call__(self, samples):
            return [self.counter.samples, *samples]

    def loader():
        counter = Counter()
        return resumable(DataLoader(Counted(counter), 4, collate_fn=Tells(counter)))

    whole, states = take(loader(), 6)
    resumed = loader()
    resumed.load_state_dict(states[2])
    with pytest.warns(ReadAgainWarning):
        rest, _ = take(resumed, 3)
    assert rest == whole[3:]


def test_fewer_workers_need_no_copy_of_what_collates():
    class Locked(Counting):
        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()

    def loader(workers):
        return resumable(DataLoader(StatefulStream(), 4, num_workers=workers, collate_fn=Locked()))

    whole, states = take(loader(2), 7)
    resumed = loader(0)
    resumed.load_state_dict(states[2])
    assert take(resumed, 4)[0] == whole[3:]


def decorated(method):
    def wrapper(self, samples):
        return method(self, samples)

    return wrapper


class DecoratedStream(CollatingStream):
    @decorated
    def counted(self, samples):
        return self.collate(samples)


class Holding:
    def __init__(self, stream):
        self.stream = stream

    def __call__(self, samples):
        return self.stream.collate(samples)


@pytest.mark.parametrize("workers", [(2, 0), (2, 1), (4, 2)])
@pytest.mark.parametrize(
    "collate",
    [lambda stream: stream.counted, lambda stream: functools.partial(stream.collate), Holding],
    ids=["decorated", "partial", "held"],
)
def test_fewer_workers_collate_by_the_stream_that_they_read(collate, workers):
    def loader(number):
        stream = DecoratedStream()
        return resumable(DataLoader(stream, 4, num_workers=number, collate_fn=collate(stream)))

    whole, states = take(loader(workers[0]), 12)
    for step in (1, 2, 5):
        resumed = loader(workers[1])
        resumed.load_state_dict(states[step - 1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            assert take(resumed, 12 - step)[0] == whole[step:], step


@pytest.mark.parametrize("workers", [0, 2])
def test_what_no_position_of_a_stream_has_is_said_once(workers):
    class Mixes:
        def __init__(self):
            self.before, self.batches = [], 0

        def __call__(self, samples):
            self.before.append(samples[0])
            self.batches += 1
            return default_collate(samples)

    class Counted(Stream):
        def __init__(self):
            self.batches = self.samples = 0

        def __iter__(self):
            for sample in super().__iter__():
                self.samples += 1
                yield sample

        def collate(self, samples):
            self.batches += 1
            return default_collate(samples)

    counted = Counted()
    for stream, collate, name in (
        (Stream(), Mixes(), r"collate_fn\.before"),
        (counted, counted.collate, r"dataset\.batches"),
    ):
        with pytest.warns(DataOrderWarning, match=rf"^{name} changes as batches are made") as said:
            take(resumable(DataLoader(stream, 4, num_workers=workers, collate_fn=collate)), 12)
        assert len(said) == 1


def test_what_hooks_set_in_a_collate_fn_stays():
    collate = Counting()
    loader = resumable(DataLoader(StatefulStream(), 4, collate_fn=collate))
    batches = iter(loader)
    assert next(batches)[0] == 1
    collate.batches = 100
    assert next(batches)[0] == 101


def test_a_stream_with_state_is_not_read_again(capfd):
    class Counting(StatefulStream):
        read = 0

        def __iter__(self):
            for sample in super().__iter__():
                Counting.read += 1
                yield sample

    _, states = take(resumable(DataLoader(Counting(), 4)), 3)
    resumed = resumable(DataLoader(Counting(), 4))
    resumed.load_state_dict(states[-1])
    Counting.read = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take(resumed, 1)
    assert Counting.read == 5  # one is read ahead, to know whether there is another batch
    assert "again" not in capfd.readouterr().err


def test_each_stream_keeps_the_worker_that_it_was_set_up_for():
    def set_up(worker):
        info = get_worker_info()
        assert info.id == worker
        info.dataset.first = 100 * worker

    class SetUp(IterableDataset):
        first = -1

        def __iter__(self):
            return iter(range(self.first, self.first + 6))

    def make(workers):
        return resumable(DataLoader(SetUp(), 2, num_workers=workers, worker_init_fn=set_up))

    whole, states = take(make(2), 6)
    assert whole == [[0, 1], [100, 101], [2, 3], [102, 103], [4, 5], [104, 105]]
    for taken in (1, 2, 3):
        for workers in (0, 1, 2):
            loader = make(workers)
            loader.load_state_dict(states[taken - 1])
            assert take(loader, 6 - taken)[0] == whole[taken:]


def test_another_batch_size_goes_on_behind_the_same_sample():
    whole, _ = take(resumable(DataLoader(range(SIZE), 1, shuffle=True), seed=5), SIZE)
    _, states = take(resumable(DataLoader(range(SIZE), 4, shuffle=True), seed=5), 2)
    other = resumable(DataLoader(range(SIZE), 7, shuffle=True), seed=5)
    other.load_state_dict(states[-1])
    assert [i for batch in take(other, 2)[0] for i in batch] == [i for batch in whole[8:] for i in batch]


def test_the_seed_is_the_loaders_generator_or_the_global_one_or_the_given_one():
    def order(loader):
        return [i for batch in loader for i in batch.tolist()]

    torch.manual_seed(5)
    first = order(resumable(DataLoader(range(SIZE), 4, shuffle=True)))
    torch.manual_seed(6)
    assert order(resumable(DataLoader(range(SIZE), 4, shuffle=True))) != first
    assert order(resumable(DataLoader(range(SIZE), 4, shuffle=True), seed=5)) == first
    seeded = DataLoader(range(SIZE), 4, shuffle=True, generator=torch.Generator().manual_seed(5))
    assert resumable(seeded).seed == 5


def test_a_given_seed_that_differs_is_said_and_one_that_is_not_given_is_taken_over():
    _, states = take(resumable(DataLoader(range(SIZE), 4, shuffle=True), seed=5), 1)
    with pytest.warns(DataOrderWarning, match="seed was 5 and is 6"):
        resumable(DataLoader(range(SIZE), 4, shuffle=True), seed=6).load_state_dict(states[0])
    loader = resumable(DataLoader(range(SIZE), 4, shuffle=True))
    loader.load_state_dict(states[0])
    assert loader.seed == 5


def test_keeps_what_users_look_at():
    dataset = Augmented()
    loader = resumable(DataLoader(dataset, 4, drop_last=True, num_workers=2))
    assert loader.dataset is dataset
    assert (loader.batch_size, loader.drop_last, loader.num_workers, len(loader)) == (4, True, 2, 5)
    with pytest.raises(TypeError, match="no length"):
        len(resumable(DataLoader(Stream(), 4)))


def test_can_be_sent_to_another_process():
    for loader in (resumable(DataLoader(range(9), 4, shuffle=True)), ResumableDataLoader(range(9), 4, shuffle=True)):
        take(loader, 1)
        assert take(pickle.loads(pickle.dumps(loader)), 3)[0] == take(loader, 3)[0]


def test_wrapping_twice_is_wrapping_once():
    loader = resumable(DataLoader(range(4)))
    assert resumable(loader) is loader


class AskedWithArguments(Stream):
    """As the streams of litdata and mosaicml-streaming, whose loaders know what they have given."""

    def state_dict(self, num_samples, from_beginning):
        return {}

    def load_state_dict(self, state):
        pass


class Broken(StatefulStream):
    def state_dict(self):
        return len(3)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_whose_state_dict_needs_arguments_is_refused(workers):
    with pytest.raises(DatasetError, match=r"AskedWithArguments is asked .* argument: 'num_samples'\. Use the"):
        next(iter(resumable(DataLoader(AskedWithArguments(), 4, num_workers=workers))))
    with pytest.raises(TypeError, match="has no len"):
        next(iter(resumable(DataLoader(Broken(), 4, num_workers=workers))))


class OwnIteration(DataLoader):
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    ("loader", "match"),
    [
        ([1, 2], "expected a torch DataLoader, found list"),
        (OwnIteration(range(3)), "OwnIteration iterates in its own way"),
        (DataLoader(range(3), num_workers=2, in_order=False), "in_order=False"),
    ],
)
def test_what_cannot_be_repeated_is_refused(loader, match):
    with pytest.raises(DatasetError, match=match):
        resumable(loader)


class TestOwnedState:
    def test_finds_generators_wherever_they_are_and_puts_them_back(self):
        drawn = random.Random(1)

        class Owner:
            def __init__(self):
                self.numpy = np.random.default_rng(1)
                self.parts = [{"old": np.random.RandomState(2)}, (torch.Generator().manual_seed(3),)]
                self.transform = lambda: drawn.random()
                self.bound = np.random.Generator(np.random.MT19937(4))

        def draw(owner):
            return (
                owner.numpy.random(),
                owner.parts[0]["old"].rand(),
                float(torch.rand((), generator=owner.parts[1][0])),
                owner.transform(),
                owner.bound.random(),
            )

        owner = Owner()
        state = OwnedState({"owner": owner})
        saved = state.generator_states()
        first = draw(owner)
        assert all(one != other for one, other in zip(draw(owner), first, strict=True))
        state.restore_generators(saved)
        assert draw(owner) == first
        state.reseed(7)
        seeded = draw(owner)
        assert len(set(seeded)) == 5
        state.reseed(7)
        assert draw(owner) == seeded

    def test_puts_back_values_that_changed_and_those_that_had_not(self):
        sampler = Shuffling()
        state = OwnedState({"sampler": sampler}, thorough=True)
        unchanged = state.changed_values()
        assert unchanged == {}
        list(sampler)
        changed = state.changed_values()
        assert set(changed) == {"sampler.passes", "sampler.ids"}
        later = list(sampler)
        state.restore_values(changed)
        assert sampler.passes == 1
        assert sampler.ids == changed["sampler.ids"] != later
        state.restore_values(unchanged)
        assert (sampler.passes, sampler.ids) == (0, list(range(SIZE)))
