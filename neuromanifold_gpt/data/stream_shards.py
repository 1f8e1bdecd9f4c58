"""The part of a stream that one data worker reads: batches, and the position behind each.

With workers, each reads a stream of its own (its *shard*), and batches are taken from the shards in turn. A shard keeps
its number and ``get_worker_info()`` wherever it is read, so that a run may continue with another number of workers.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch.utils.data import IterableDataset, get_worker_info
from tqdm import tqdm

from neuromanifold_gpt.data.changes import shown_containers
from neuromanifold_gpt.data.errors import DatasetError
from neuromanifold_gpt.data.ids_digest import IdsDigest
from neuromanifold_gpt.data.order import mixed
from neuromanifold_gpt.data.sample_seeds import Seeded, again
from neuromanifold_gpt.data.stream_generators import StreamGenerators
from neuromanifold_gpt.data.watched_collate import WATCHED_BATCHES
from neuromanifold_gpt.data.worker_info import as_data_worker
from neuromanifold_gpt.state.inspection.users_objects import is_stateful
from neuromanifold_gpt.state.owned_state import OwnedState

_COLLATION = -1  # in place of the number of a sample
_NOTHING = object()


class Item(NamedTuple):
    """What a turn of a shard gives; ``DataLoader`` pins the memory of all of it.

    Attributes:
        shard: its number.
        state: to begin from, behind the batch.
        batch: a list of one, or of none at the end.
        not_kept: names of what has changed that is not in the state.
        is_other: read again, the stream has come to other samples than before.
    """

    shard: int
    state: dict[str, Any]
    batch: list[Any]
    not_kept: list[str]
    is_other: bool = False


@dataclass(frozen=True)
class StreamOptions:
    """How batches are made of samples; as the arguments of ``DataLoader``."""

    batch_size: int | None
    drop_last: bool
    collate_fn: Callable[[Any], Any]
    worker_init_fn: Callable[[int], None] | None
    seed_samples: bool


class ShardsInTurn(IterableDataset[Item]):
    """What ``DataLoader`` iterates over: in each of ``hosts`` processes, the shards that are read there, in turn.

    Args:
        dataset: the stream.
        options: see there.
        seed, epoch: of the samples' randomness.
        starts: for each shard, the state to begin from.
        next_shard: whose turn it is.
        as_workers: whether shards are data workers' or, a single one, that of the main process.
        hosts: number of worker processes, a divisor of the number of shards; 0 reads them all here.
        when_read_again: to be called when the one that is that of the main process is where it stopped.
    """

    def __init__(
        self,
        dataset: Any,
        options: StreamOptions,
        seed: int,
        epoch: int,
        *,
        starts: list[dict[str, Any]],
        next_shard: int,
        as_workers: bool,
        hosts: int,
        when_read_again: Callable[[], None],
    ) -> None:
        self._when_read_again = None if as_workers else when_read_again
        self._dataset, self._options, self._seed, self._epoch = dataset, options, seed, epoch
        self._starts, self._next_shard, self._as_workers, self._hosts = starts, next_shard, as_workers, hosts

    def __iter__(self) -> Iterator[Item]:
        info = get_worker_info()
        host, count = info.id if info else 0, len(self._starts)
        turns = [(self._next_shard + turn) % count for turn in range(host, count, max(self._hosts, 1))]
        alive = [self._shard(number, own_copy=len(turns) > 1 or (self._as_workers and not info)) for number in turns]
        for shard in alive:
            shard.shows_progress = shard is alive[0] and host == 0
        here = OwnedState({"collate_fn": self._options.collate_fn}) if self._as_workers and not info else None
        try:
            # One that has ended keeps its turn until all have: elsewhere, others go on in theirs.
            while not all(shard.is_done for shard in alive):
                for shard in alive:
                    yield shard.next_item()
        finally:
            if here is not None:  # what workers change is gone with them
                here.restore_values({})

    def _shard(self, number: int, *, own_copy: bool) -> Shard:
        dataset, options = self._dataset, self._options
        if own_copy:
            collate_fn_owned = OwnedState({"collate_fn": options.collate_fn})
            if OwnedState({"dataset": dataset}).shares_objects_with(collate_fn_owned):  # as to a worker, both at once
                dataset, collate_fn = copy.deepcopy((dataset, options.collate_fn))
                options = replace(options, collate_fn=collate_fn)
            else:
                dataset = copy.deepcopy(dataset)
        workers = len(self._starts) if self._as_workers else 0
        seed = mixed(self._seed, self._epoch, number)
        shard = Shard(dataset, options, seed, number, workers, self._starts[number])
        shard.shares_collate_fn = own_copy
        shard.when_read_again = self._when_read_again
        return shard


class Shard:
    """One stream, from a position on."""

    shows_progress = False
    when_read_again: Callable[[], None] | None = None
    shares_collate_fn = False  # with other shards, each of which would have one of its own in its worker

    def __init__(
        self, dataset: Any, options: StreamOptions, seed: int, number: int, workers: int, start: dict[str, Any]
    ) -> None:
        self._dataset, self._options, self._seed = dataset, options, seed
        self._number, self._workers = number, workers
        self._samples = 0  # that were read, those ahead included
        self._batches = 0  # in this process
        self._ahead: list[Any] = []
        self._start = self._last_state = start
        self._iterator: Any = None
        self._ids: IdsDigest | None = None  # of streams that are read again
        self._is_other = False
        drawing = {"dataset": dataset, "collate_fn": options.collate_fn} if options.seed_samples else {}
        self._generators = StreamGenerators(mixed(seed, 0), drawing)
        self._collation = Seeded("collate_fn", options.collate_fn)
        # What belongs to the dataset as well is read again, or in its state.
        self._of_dataset = OwnedState({"dataset": dataset})
        # What a collate function does not refer to, it does not change; a thread of the dataset may.
        self._collates_by_dataset = self._of_dataset.shares_objects_with(OwnedState({"collate_fn": options.collate_fn}))
        self._collate_fn = OwnedState({"collate_fn": options.collate_fn}, ignored=self._of_dataset.objects())
        self._collate_values: dict[str, Any] = start["collate_fn"]
        self.is_done = bool(start["is_done"])

    def next_item(self) -> Item:
        """The next batch, or the end."""
        if self.is_done:
            return Item(self._number, self._last_state, [], [])
        with self._in_its_place():
            if self._iterator is None:
                self._begin()
            samples, self._ahead = self._ahead, []
            self._fill(samples, self._batch_size)
            if not samples or (self._options.drop_last and len(samples) < self._batch_size):
                self.is_done = True
                self._last_state = self._state()
                return Item(self._number, self._last_state, [], [], self._is_other)
            batch, not_kept = self._collated(samples)
            state = self._state()
            if state["state"] is not None and self._batches <= WATCHED_BATCHES:
                not_kept += self._generators.not_in(state["state"])
            self._look_ahead()
            # The state of one that has ended is that before its end: it may stand at its beginning again.
            self._last_state = {**state, "is_done": self.is_done}
            return Item(self._number, self._last_state, [batch], not_kept, self._is_other)

    def pass_over_end(self) -> None:
        """Do with the stream what is done behind the batch to begin from, in a pass that is left there or ends."""
        with self._in_its_place():
            self._begin()
            self._look_ahead()

    def _look_ahead(self) -> None:
        """Whether there is another batch is known before this one is handed out, so that its state can tell."""
        count = self._batch_size if self._options.drop_last else 1
        self._fill(self._ahead, count)
        self.is_done = len(self._ahead) < count

    def _begin(self) -> None:
        self._collate_fn.restore_values(self._collate_values)
        if self._options.worker_init_fn is not None and self._workers:
            self._options.worker_init_fn(self._number)
        self._generators.begin()
        saved, samples = self._start["state"], self._start["samples"]
        if saved is not None and saved["of"] == "dataset":
            self._dataset.load_state_dict(copy.deepcopy(saved["state"]))
        self._iterator = iter(self._dataset)
        if saved is not None and saved["of"] == "iterator":
            self._iterator.load_state_dict(copy.deepcopy(saved["state"]))
        self._generators.iterator_is_made(self._iterator, self._start["generators"])
        if saved is not None:
            self._samples = samples
            return
        if not is_stateful(self._dataset) and not is_stateful(self._iterator):
            self._ids = IdsDigest()
        hidden = not (samples and self.shows_progress)
        with tqdm(total=samples, desc="Reading the stream again", disable=hidden, file=sys.stderr) as bar:
            while self._samples < samples and self._next_sample() is not _NOTHING:
                bar.update()
        ids = self._start["ids"]
        self._is_other = self._samples < samples or (bool(samples and ids) and ids != self._digest_of_ids())
        if samples and self._ids is not None and self.when_read_again is not None:
            self._look_ahead()  # as when the position was saved
            self.when_read_again()

    def _collated(self, samples: list[Any]) -> tuple[Any, list[str]]:
        if self.shares_collate_fn:
            self._collate_fn.restore_values(self._collate_values)
        self._batches += 1
        # Behind the first batch, at which files are opened and the like.
        before = self._not_kept() if 1 < self._batches <= WATCHED_BATCHES else {}
        attempts = again(samples)
        if self._options.seed_samples:
            seed = mixed(self._seed, _COLLATION, self._samples)
            [batch] = self._collation.made([seed], lambda _: self._collate(next(attempts)))
        else:
            batch = self._collate(samples)
        after = self._not_kept() if before else {}
        self._collate_values = self._collate_fn.changed_values()
        return batch, sorted(path for path, shown in before.items() if after.get(path, shown) != shown)

    def _collate(self, samples: list[Any]) -> Any:
        return self._options.collate_fn(samples if self._options.batch_size is not None else samples[0])

    def _not_kept(self) -> dict[str, str]:
        """What shows changes that neither a position has nor reading the stream again repeats."""
        if not self._collates_by_dataset or is_stateful(self._dataset) or is_stateful(self._iterator):
            return shown_containers(self._collate_fn)
        of_dataset = shown_containers(self._of_dataset, also=(bool, int, float, str))
        return {**shown_containers(self._collate_fn), **of_dataset}

    @property
    def _batch_size(self) -> int:
        return self._options.batch_size or 1

    def _fill(self, samples: list[Any], count: int) -> None:
        while len(samples) < count and (sample := self._next_sample()) is not _NOTHING:
            samples.append(sample)

    def _next_sample(self) -> Any:
        sample = next(self._iterator, _NOTHING)
        if sample is not _NOTHING:
            self._samples += 1
            if self._ids is not None:
                self._ids.add(sample)
            self._generators.sample_is_made(goes_on=self._start["state"] is not None)
        return sample

    def _digest_of_ids(self) -> str | None:
        return self._ids.digest() if self._ids is not None else None

    @contextmanager
    def _in_its_place(self) -> Iterator[None]:
        """As in the worker whose shard it is, with the generators of this one."""
        as_worker = as_data_worker(self._number, self._workers, self._seed >> 1, self._dataset)
        with self._generators.in_place(), as_worker:
            yield

    def _state(self) -> dict[str, Any]:
        """The state to begin from."""
        owners = {"iterator": self._iterator, "dataset": self._dataset}
        of = next((of for of, owner in owners.items() if is_stateful(owner) and not self.is_done), None)
        return {
            "samples": self._samples,
            "state": None if of is None else {"of": of, "state": _state_of(owners[of])},
            "generators": {} if of is None else self._generators.states(),
            "is_done": self.is_done,
            "collate_fn": self._collate_values,
            "ids": self._digest_of_ids(),
        }


def _state_of(owner: Any) -> Any:
    try:
        return copy.deepcopy(owner.state_dict())
    except TypeError as error:
        try:
            inspect.signature(owner.state_dict).bind()
        except TypeError as missing:
            raise DatasetError(
                f"resumable: {type(owner).__name__} is asked for its position by state_dict(), which is {missing}. Use "
                "the loader of its library, which has a state_dict itself, in place of resumable(DataLoader(...)); or "
                "give the stream a state_dict that needs no arguments."
            ) from error
        raise
