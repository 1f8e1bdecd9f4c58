"""The order that a user's own sampler or batch sampler gives, repeatable from any position."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, Sampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.data.errors import DataOrderWarning
from neuromanifold_gpt.data.order import mixed
from neuromanifold_gpt.data.position import Position, Progress, Steps, nothing_left
from neuromanifold_gpt.data.sample_seeds import OwnGenerators, SampleKey
from neuromanifold_gpt.data.sampler_run import Changes, CountedIds, RunningSampler, SamplerUnits
from neuromanifold_gpt.data.shown_samplers import ShownSampler
from neuromanifold_gpt.state.inspection.plain_reading import attribute_dict
from neuromanifold_gpt.state.own_generators import what_is_drawn_from
from neuromanifold_gpt.state.owned_state import OwnedState
from neuromanifold_gpt.state.rng import rank_and_world_size

_BATCH_SAMPLER = "batch_sampler"


class SamplerOrder:
    """Runs a loader's sampler so that it gives the same ids in the same order whenever the epoch is begun again.

    At the beginning of an epoch, the sampler is told its number (``set_epoch``), and all that it can draw from is
    seeded by (seed, epoch): generators of its own, and generators that stand in for the global ones while it runs. What
    it changes in itself between epochs is part of the position. To continue, it is run again up to the position: ids
    are drawn, no sample is loaded. Whether these are the ids of the first time is checked by a digest. What training
    has changed in it since the epoch began, such as the weights of the samples, is changed then. Another batch size
    holds from the next epoch on.

    A stock ``BatchSampler`` is taken apart: the position counts samples, and ranks share ``batch_size * world_size``
    consecutive ones. Of any other batch sampler, batches are counted, and each rank takes every ``world_size``-th one.
    A sampler that shares out by itself (``DistributedSampler``, or whatever has ``num_replicas``) is left to do so.

    Args:
        loader: a stock ``DataLoader`` over a map-style dataset.
        seed: of order and samples; ``None`` where any will do and a checkpoint may bring another.
        default_seed: where ``seed`` is ``None``.
    """

    def __init__(self, loader: DataLoader[Any], seed: int | None, default_seed: int) -> None:
        self.seed = default_seed if seed is None else seed
        self._seed_is_given = seed is not None
        batches: Any = loader.batch_sampler
        self._in_samples = batches is None or type(batches) is BatchSampler
        self.source: Iterable[Any] = batches if not self._in_samples else loader.sampler
        self._shown = {"sampler": loader.sampler, "batch_sampler": batches}
        # That is taken apart; training may change its numbers too.
        self._batch_sampler: BatchSampler | None = batches if self._in_samples else None
        self._batching = self._batching_now()  # as made
        self._samplers = list(_samplers_in(self.source))
        self._shares_itself = any(
            isinstance(sampler, DistributedSampler) or hasattr(sampler, "num_replicas") for sampler in self._samplers
        )
        self._dataset = loader.dataset
        owners = {"sampler": self.source, **({_BATCH_SAMPLER: batches} if self._batch_sampler is not None else {})}
        self._owned = OwnedState(owners, ignored=(self._dataset,), thorough=True)
        self._unit = "samples_consumed" if self._in_samples else "batches_consumed"
        self._running: RunningSampler | None = None
        self._has_begun = False  # an epoch, in this process

    @property
    def size(self) -> int | None:
        """Samples or batches of an epoch, if the sampler tells."""
        try:
            return len(self.source)  # type: ignore[arg-type]
        except (TypeError, NotImplementedError):
            return None

    def steps(self, progress: Progress | None = None) -> Steps:
        """Samples or batches that all ranks together take at once; an epoch goes on as it has begun."""
        units, drop_last = self._batching_now()
        if progress is not None:
            at_beginning = progress["sampler"]
            units = at_beginning.get(f"{_BATCH_SAMPLER}.batch_size", self._batching.units)
            drop_last = at_beginning.get(f"{_BATCH_SAMPLER}.drop_last", self._batching.drop_last)
        return Steps(units * self._sharing()[1], drop_last)

    def _batching_now(self) -> Steps:
        """Of one rank."""
        batches = self._batch_sampler
        return Steps(1) if batches is None else Steps(batches.batch_size, batches.drop_last)

    def shown_samplers(self, position: Position) -> dict[str, Any]:
        """The user's own, but for ``set_epoch``."""
        return {name: None if shown is None else ShownSampler(position, shown) for name, shown in self._shown.items()}

    def consumed(self, progress: Progress) -> int:
        """Samples or batches behind a position."""
        return int(progress[self._unit])

    def is_over(self, progress: Progress) -> bool:
        """Whether no batch is left, if the sampler tells its size."""
        return nothing_left(self, progress)

    @property
    def differs_by_epoch(self) -> bool:
        """Only torch's sampler of the given order is known not to."""
        return any(type(sampler) not in (SequentialSampler, BatchSampler) for sampler in self._samplers)

    def owned(self) -> list[OwnedState]:
        """The sampler and what it refers to."""
        return [self._owned]

    def beginning(self) -> Progress:
        """The sampler as it is now, before its next epoch."""
        return {self._unit: 0, "ids_digest": "", "sampler": self._owned.changed_values(), "sampler_now": {}}

    def begin_again(self, progress: Progress) -> Progress:
        """Put the sampler back to where it was when the epoch began."""
        self._owned.restore_values(progress["sampler"])
        return {**progress, self._unit: 0, "ids_digest": "", "sampler_now": {}}

    def saved(self, progress: Progress) -> Progress:
        """With what others have changed in the sampler since its epoch began."""
        if self.consumed(progress) == 0:
            return self.beginning()
        running = self._running
        if running is None or running.began_with is not progress["sampler"]:
            return progress
        return {**progress, "sampler_now": running.changes()}

    def leave(self, epoch: int, progress: Progress) -> None:
        """Let the sampler become what it was when it was left in the middle of an epoch."""
        self._go_to(epoch, progress, goes_on=False)

    def description(self) -> dict[str, Any]:
        """What a resume compares."""
        return {
            "seed": self.seed,
            "sampler_class": type(self.source).__name__,
            "size": self.size,
            "batch_size": self._batching.units,
            "drop_last": self._batching.drop_last,
            "sharing_ranks": rank_and_world_size()[1] * self._shares_itself,
        }

    def adopt(self, state: dict[str, Any]) -> list[str]:
        """Put the sampler into the state that it had when the saved epoch began."""
        if not self._seed_is_given:
            self.seed = state["seed"]
        self._owned.restore_values(state["sampler"])
        return [
            f"{key} was {state[key]} and is {value}" for key, value in self.description().items() if state[key] != value
        ]

    def batches(self, epoch: int, progress: Progress) -> Iterator[tuple[list[SampleKey], Progress]]:
        """This rank's batches from a position on, each with the position behind it.

        Warns:
            DataOrderWarning: the sampler gives other ids than it gave before the position was saved.
        """
        units, ids, first = self._go_to(epoch, progress, goes_on=not self.is_over(progress))
        consumed, now = self.consumed(progress), progress["sampler_now"]
        running = self._running = RunningSampler(self._owned, progress["sampler"], units, ids, consumed, now)
        progress = {**progress, "sampler_now": {}}
        (step, drop_last), (rank, world_size) = self.steps(progress), self._sharing()
        while block := running.take(step):
            if len(block) < step and drop_last:
                return
            number = ids.count
            for unit in block:
                ids.add(self._ids_of(unit))
            consumed += len(block)
            block += list(itertools.islice(itertools.cycle(first), -len(block) % world_size))
            share = len(block) // world_size
            before, own = block[: rank * share], block[rank * share : (rank + 1) * share]
            numbers = itertools.count(number + sum(len(self._ids_of(unit)) for unit in before))
            sample_ids = [sample_id for unit in own for sample_id in self._ids_of(unit)]
            keys = [(self.seed, epoch, next(numbers), sample_id) for sample_id in sample_ids]
            yield keys, {**progress, self._unit: consumed, "ids_digest": ids.digest()}

    def _go_to(self, epoch: int, progress: Progress, *, goes_on: bool) -> tuple[SamplerUnits, CountedIds, list[Any]]:
        """Run the sampler to a position; also gives the first units, with which a short last block is filled.

        Where the epoch goes on, it is checked whether the ids are those of the first time.
        """
        now, ids, consumed = progress["sampler_now"], CountedIds(), self.consumed(progress)
        changes: Changes = now.get("changes", [])
        units = self._begin(epoch, changes)
        first = units.take(self._sharing()[1] - 1)
        units.put_back(first)
        for unit in units.passed_over(consumed):
            ids.add(self._ids_of(unit))
        if goes_on:
            self._check(ids, progress["ids_digest"])
        if now:  # what others had changed, when the sampler had gone as far as this
            last_change = changes[-1][0] if changes else 0
            ahead = units.take(now["units_taken"] - consumed)
            further = units.take(max(last_change - consumed - len(ahead), 0))
            if now["is_over"]:
                units.take(1)
            ids_ahead = ids.copy()
            for unit in ahead:
                ids_ahead.add(self._ids_of(unit))
            if goes_on:
                self._check(ids_ahead, now["ids_digest"])
            units.put_back([*ahead, *further])
            self._owned.set_values(now["values"])
            units.changes_left.clear()  # which these values have
        return units, ids, first

    def _check(self, ids: CountedIds, digest: str) -> None:
        if digest not in ("", ids.digest()):
            warn_user(
                f"{type(self.source).__name__} gives other ids than before the checkpoint: the order of the rest of "
                "this epoch is not the saved one. Something that decides its order is not restored; give it "
                "state_dict and load_state_dict.",
                DataOrderWarning,
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_running": None}  # it holds an iterator

    def _ids_of(self, unit: Any) -> list[Any]:
        return [unit] if self._in_samples else list(unit)

    def _sharing(self) -> tuple[int, int]:
        return (0, 1) if self._shares_itself else rank_and_world_size()

    def _begin(self, epoch: int, changes: Changes) -> SamplerUnits:
        """Begin an epoch of the sampler."""
        for sampler in self._samplers:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
        drawn_from, before = self._drawn_from(), {} if self._has_begun else self._owned.values()
        units = self._units(epoch, changes, drawn_from)
        if not self._has_begun:
            self._has_begun = True
            units.put_back(units.take(1))
            made = self._drawn_from()
            if not made.has_as_many_generators_as(drawn_from):  # when first asked: they are to be seeded as well
                self._owned.set_values_still_there(before)
                return self._units(epoch, changes, made)
        return units

    def _drawn_from(self) -> OwnedState:
        return what_is_drawn_from({"sampler": self.source}, ignored=(self._dataset,))

    def _units(self, epoch: int, changes: Changes, drawn_from: OwnedState) -> SamplerUnits:
        generators = OwnGenerators(mixed(self.seed, epoch), drawn_from)
        return SamplerUnits(self.source, generators, changes, self._owned.set_single_values)


def _samplers_in(source: Any) -> Iterator[Any]:
    """``source`` and the samplers that it stands on."""
    yield source
    for part in (attribute_dict(source) or {}).values():
        if issubclass(type(part), Sampler) and part is not source:
            yield from _samplers_in(part)
