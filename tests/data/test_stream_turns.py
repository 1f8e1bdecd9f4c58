"""What a stream that is read in this process carries from one pass to the next, and which samples it comes to again."""

import itertools
import random
import warnings
from collections import defaultdict, deque

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from neuromanifold_gpt import resumable
from neuromanifold_gpt.data.errors import DataOrderWarning, ReadAgainWarning

SIZE = 23
CUT = 3


class EndlessWithoutState(IterableDataset):
    def __init__(self):
        self.next = 0

    def __iter__(self):
        while True:
            self.next += 1
            yield self.next


class Endless(EndlessWithoutState):
    """Goes on where it was left."""

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


class Packing(IterableDataset):
    """Packs documents into sequences, and keeps what is left over."""

    def __init__(self):
        self.leftover, self.document = [], 0

    def __iter__(self):
        while self.document < SIZE:
            self.leftover.extend([self.document] * (self.document % 5 + 1))
            self.document += 1
            while len(self.leftover) >= 3:
                sequence, self.leftover = self.leftover[:3], self.leftover[3:]
                yield torch.tensor(sequence)
        self.document = 0


class PackingWithState(IterableDataset):
    def __init__(self):
        self.leftover, self.document = [], 0

    def __iter__(self):
        while self.document < SIZE or len(self.leftover) >= 3:
            if len(self.leftover) < 3:
                self.leftover.extend([self.document] * (self.document % 5 + 1))
                self.document += 1
                continue
            sequence, self.leftover = self.leftover[:3], self.leftover[3:]
            yield torch.tensor(sequence)
        self.document = 0

    def state_dict(self):
        return {"leftover": list(self.leftover), "document": self.document}

    def load_state_dict(self, state):
        self.leftover, self.document = list(state["leftover"]), state["document"]


class Grouping(IterableDataset):
    """Groups samples in buckets that it fills, of several kinds."""

    def __init__(self, make_buckets):
        self.buckets = make_buckets()

    def __iter__(self):
        for number in torch.randperm(SIZE).tolist():
            bucket = self.buckets[number % 2]
            bucket.append({"id": number, "image": torch.full((2,), number)})
            if len(bucket) == 4:
                ids = torch.stack([sample["image"] for sample in bucket])
                bucket.clear()
                yield ids


class RandomOrder(IterableDataset):
    """Has a generator and the order of the pass that is under way in its state."""

    def __init__(self):
        self.rng, self.order, self.position = np.random.default_rng(3), None, 0

    def __iter__(self):
        if self.order is None:
            self.order, self.position = self.rng.permutation(SIZE).tolist(), 0
        while self.position < SIZE:
            self.position += 1
            yield self.order[self.position - 1]
        self.order = None

    def state_dict(self):
        return {"rng": self.rng.bit_generator.state, "order": self.order, "position": self.position}

    def load_state_dict(self, state):
        self.rng.bit_generator.state = state["rng"]
        self.order, self.position = state["order"], state["position"]


class Lines(IterableDataset):
    """Goes on where its file is: no attribute shows how far that is."""

    def __init__(self, path):
        path.write_text("".join(f"{number}\n" for number in range(200)))
        self.file = path.open()

    def __iter__(self):
        while line := self.file.readline():
            yield int(line)

    def state_dict(self):
        return {"at": self.file.tell()}

    def load_state_dict(self, state):
        self.file.seek(state["at"])


class BeginsAgain(IterableDataset):
    """Begins each pass at its beginning, but for the one behind a loaded state."""

    def __init__(self):
        self.start = self.position = 0

    def __iter__(self):
        start, self.start = self.start, 0
        for number in range(start, SIZE):
            self.position = number + 1
            yield number

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.start = self.position = state["position"]


class Cursor:
    def __init__(self, position):
        self.position = position


class BeginsAgainByCursor(IterableDataset):
    """The same, and how far it is shows in an object of each pass."""

    def __init__(self):
        self.start = self.cursor = None

    def __iter__(self):
        self.cursor, self.start = self.start or Cursor(0), None
        while self.cursor.position < SIZE:
            self.cursor.position += 1
            yield self.cursor.position

    def state_dict(self):
        return {"position": self.cursor.position}

    def load_state_dict(self, state):
        self.start = Cursor(state["position"])


class HasStateWithinPasses(BeginsAgainByCursor):
    def __iter__(self):
        yield from super().__iter__()
        self.cursor = None


class KeepsItsStart(IterableDataset):
    """Begins each pass where a state was loaded, if one was; as Hugging Face's streams do."""

    def __init__(self):
        self.start = self.now = None

    def __iter__(self):
        for number in range(self.start["position"] if self.start else 0, SIZE):
            self.now = {"position": number + 1}
            yield number

    def state_dict(self):
        return dict(self.now)

    def load_state_dict(self, state):
        self.start = dict(state)


STREAMS = {
    "goes on": lambda path: Endless(),
    "goes on, without state": lambda path: EndlessWithoutState(),
    "packs": lambda path: Packing(),
    "packs, with state": lambda path: PackingWithState(),
    "lists": lambda path: Grouping(lambda: [[], []]),
    "dict of lists": lambda path: Grouping(lambda: defaultdict(list)),
    "deques": lambda path: Grouping(lambda: (deque(maxlen=9), deque())),
    "random order": lambda path: RandomOrder(),
    "file": Lines,
    "begins again": lambda path: BeginsAgain(),
    "begins again, by a cursor": lambda path: BeginsAgainByCursor(),
    "has a state within passes": lambda path: HasStateWithinPasses(),
    "keeps its start": lambda path: KeepsItsStart(),
}
ENDS = STREAMS.keys() - {"goes on", "goes on, without state", "file"}


def made(stream, workers=0):
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    return resumable(DataLoader(stream, 2, drop_last=True, num_workers=workers), seed=1)


def passes(loader, epochs, batches):
    """As Lightning goes through them: each tells its epoch, and the iterator of the one before is still there."""
    seen, states = [], []
    for epoch in epochs:
        loader.set_epoch(epoch)
        iterator = iter(loader)
        seen.append([batch.tolist() for batch in itertools.islice(iterator, batches)])
        states.append(loader.state_between_passes())
    return seen, states


def resumed_between_passes(loader, state):
    next(iter(loader), None)  # Lightning asks for a batch before it loads a position
    loader.load_state_dict(state)
    loader.leave_pass()
    return loader


@pytest.mark.parametrize(
    ("name", "batches"), [*((name, CUT) for name in STREAMS), *((name, None) for name in sorted(ENDS))]
)
def test_a_pass_begins_as_the_one_before_was_left(name, batches, tmp_path):
    def loader(number):
        return made(STREAMS[name](tmp_path / f"{number}.txt"))

    whole, states = passes(loader("whole"), range(4), batches)
    assert all(whole)
    for done in (1, 2, 3):
        resumed = resumed_between_passes(loader(done), states[done - 1])
        again, _ = passes(resumed_between_passes(loader(f"{done}b"), resumed.state_between_passes()), [done], batches)
        rest, later_states = passes(resumed, range(done, 4), batches)
        assert rest == whole[done:], f"after {done} passes"
        assert again == whole[done : done + 1], f"after {done} passes, resumed twice"
        assert str(later_states) == str(states[done:]), f"after {done} passes"


@pytest.mark.parametrize("name", ["packs", "lists", "dict of lists", "deques"])
def test_a_stream_that_is_read_again_begins_with_what_was_left_in_it(name):
    whole, states = [], []
    loader = made(STREAMS[name](None))
    for epoch in range(2):
        loader.set_epoch(epoch)
        for batch in loader:
            whole.append(batch.tolist())
            states.append((epoch, loader.state_dict()))
    for taken, (epoch, state) in enumerate(states[:-1], 1):
        resumed = made(STREAMS[name](None))
        next(iter(resumed))
        resumed.load_state_dict(state)
        with warnings.catch_warnings():
            warnings.simplefilter("error", DataOrderWarning)
            warnings.simplefilter("ignore")
            rest = []
            for later in range(epoch, 2):
                resumed.set_epoch(later)
                rest += [batch.tolist() for batch in resumed]
        assert rest == whole[taken:], f"after {taken} batches"


class Leveled(IterableDataset):
    """Of a level that hooks raise; workers have that of the beginning of their pass."""

    def __init__(self):
        self.level, self.levels = 0, [0]

    def __iter__(self):
        yield from [[self.level, *self.levels[-2:]]] * 8


@pytest.mark.parametrize("workers", [(2, 2), (2, 0), (0, 0)])
def test_what_hooks_change_within_a_pass_is_there_in_the_next(workers):
    def run(loader, epochs, raises):
        seen = []
        for epoch in epochs:
            loader.set_epoch(epoch)
            for number, batch in enumerate(loader, loader.batches_consumed):
                seen.append(str(batch))
                if number == 1 and raises:
                    loader.dataset.level += 1
                    loader.dataset.levels.append(epoch + 1)
                if (epoch, number) == (1, 1):
                    states.append(loader.state_dict())
        return seen

    states = []
    whole = run(made(Leveled(), workers[0]), range(3), raises=True)
    resumed = made(Leveled(), workers[1])
    resumed.load_state_dict(states[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rest = run(resumed, range(1, 3), raises=False)
    assert rest == whole[-len(rest) :]
    assert len(rest) > len(whole) // 3


class Sample:
    def __init__(self, number):
        self.number = number


class OfObjects(IterableDataset):
    """Keeps objects, of which a position has none."""

    def __init__(self, keeps):
        self.kept, self.keeps = keeps["makes"](), keeps["puts"]

    def __iter__(self):
        for number in range(SIZE):
            self.keeps(self.kept, number)
            yield number


def put_in_bucket(kept, number):
    kept.append(Sample(number))
    del kept[:-2]


def put_in_table(kept, number):
    kept[number] = Sample(number)


def load_at_first(kept, number):
    if not kept:
        kept.extend(map(Sample, range(50)))


LEFT_OVER = {"makes": list, "puts": put_in_bucket}
HARMLESS = {
    "a table": {"makes": dict, "puts": put_in_table},
    "loaded when first needed": {"makes": list, "puts": load_at_first},
    "never changed": {"makes": lambda: list(range(1 << 17)), "puts": lambda kept, number: None},
}


def test_what_is_left_in_it_and_goes_with_no_position_is_said_once():
    loader = made(OfObjects(LEFT_OVER))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in itertools.islice(loader, CUT):
            loader.state_dict()  # it can be read again
        loader.set_epoch(1)
        for _ in loader:
            pass
    with pytest.warns(DataOrderWarning, match=r"^dataset\.kept: a pass begins with what others have left") as said:
        loader.state_dict()
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in loader:
            loader.state_dict()


@pytest.mark.parametrize("name", HARMLESS)
def test_tables_and_what_is_loaded_once_are_not_said(name):
    loader = made(OfObjects(HARMLESS[name]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epoch in range(3):
            loader.set_epoch(epoch)
            for _ in loader:
                loader.state_dict()
            loader.state_dict()


class OfBuffer(IterableDataset):
    """Draws once, when a pass begins, from what training fills."""

    def __init__(self, buffer):
        self.buffer = buffer

    def __iter__(self):
        noise = torch.rand(8)
        for number, index in enumerate(np.random.choice(len(self.buffer), 8, replace=False)):
            yield self.buffer[index], noise[number]


class Buffer:
    """Of a module, which saves it."""

    def __init__(self, size):
        self.numbers = np.arange(size)

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        return int(self.numbers[index])


@pytest.mark.parametrize("workers", [0, 2])
def test_other_samples_than_before_are_said(workers):
    def loader(size):
        return made(OfBuffer(Buffer(size)), workers)

    before = loader(20)
    next(iter(before))
    state = before.state_dict()
    for size, is_said in ((20, False), (22, True)):
        resumed = loader(size)
        resumed.load_state_dict(state)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in resumed:
                pass
        said = [warning for warning in caught if warning.category is DataOrderWarning]
        assert any(warning.category is ReadAgainWarning for warning in caught)
        assert len(said) == is_said
        assert all("OfBuffer, begun again, has come to other samples" in str(w) for w in said)
