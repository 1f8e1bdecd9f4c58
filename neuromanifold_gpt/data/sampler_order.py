"""The order that a user's own sampler or batch sampler gives, repeatable from any position."""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, Sampler
from torch.utils.data.distributed import DistributedSampler

from neuromanifold_gpt.data.errors import DataOrderWarning
from neuromanifold_gpt.data.order import mixed
from neuromanifold_gpt.data.position import Progress, nothing_left
from neuromanifold_gpt.data.sample_seeds import OwnGenerators, SampleKey
from neuromanifold_gpt.state.own_generators import what_is_drawn_from
from neuromanifold_gpt.state.owned_state import OwnedState
from neuromanifold_gpt.state.rng import rank_and_world_size

_DIGEST_BYTES = 8
_PASSED_OVER_AT_ONCE = 1024


class SamplerOrder:
    """Runs a loader's sampler so that it gives the same ids in the same order whenever the epoch is begun again.

    At the beginning of an epoch, the sampler is told its number (``set_epoch``), and all that it can draw from is
    seeded by (seed, epoch): generators of its own, and generators that stand in for the global ones while it runs. What
    it changes in itself between epochs is part of the position. To continue, it is run again up to the position: ids
    are drawn, no sample is loaded. Whether these are the ids of the first time is checked by a digest.

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
        self._source: Iterable[Any] = batches if not self._in_samples else loader.sampler
        self._samples_per_rank = int(batches.batch_size) if batches is not None and self._in_samples else 1
        self.drop_last = bool(batches.drop_last) if batches is not None and self._in_samples else False
        self._samplers = list(_samplers_in(self._source))
        self._shares_itself = any(
            isinstance(sampler, DistributedSampler) or hasattr(sampler, "num_replicas") for sampler in self._samplers
        )
        self._dataset = loader.dataset
        self._owned = OwnedState({"sampler": self._source}, ignored=(self._dataset,), thorough=True)
        self._unit = "samples_consumed" if self._in_samples else "batches_consumed"

    @property
    def size(self) -> int | None:
        """Samples or batches of an epoch, if the sampler tells."""
        try:
            return len(self._source)  # type: ignore[arg-type]
        except (TypeError, NotImplementedError):
            return None

    @property
    def units_per_step(self) -> int:
        """Samples or batches that all ranks together take at once."""
        return self._samples_per_rank * self._sharing()[1]

    def consumed(self, progress: Progress) -> int:
        """Samples or batches behind a position."""
        return int(progress[self._unit])

    def is_over(self, progress: Progress) -> bool:
        """Whether no batch is left, if the sampler tells its size."""
        return nothing_left(self, progress)

    def objects(self) -> tuple[Any, ...]:
        """The sampler and what it refers to."""
        return self._owned.objects()

    def beginning(self) -> Progress:
        """The sampler as it is now, before its next epoch."""
        return {self._unit: 0, "ids_digest": "", "sampler": self._owned.changed_values()}

    def begin_again(self, progress: Progress) -> Progress:
        """Put the sampler back to where it was when the epoch began."""
        self._owned.restore_values(progress["sampler"])
        return {**progress, self._unit: 0, "ids_digest": ""}

    def saved(self, progress: Progress) -> Progress:
        return progress

    def leave(self, epoch: int, progress: Progress) -> None:
        """Let the sampler do what it did before it was left in the middle of an epoch."""
        for _ in self._begin(epoch).passed_over(self.consumed(progress)):
            pass

    def description(self) -> dict[str, Any]:
        """What a resume compares."""
        return {
            "seed": self.seed,
            "sampler_class": type(self._source).__name__,
            "size": self.size,
            "batch_size": self._samples_per_rank,
            "drop_last": self.drop_last,
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
        units = self._begin(epoch)
        first = units.take(self._sharing()[1] - 1)  # what a last block that is short is filled with
        units.put_back(first)
        ids = _Ids()
        for unit in units.passed_over(self.consumed(progress)):
            ids.add(self._ids_of(unit))
        if progress["ids_digest"] not in ("", ids.digest()):
            warnings.warn(
                f"{type(self._source).__name__} gives other ids than before the checkpoint: the order of the rest of "
                "this epoch is not the saved one. Something that decides its order is not restored; give it "
                "state_dict and load_state_dict.",
                DataOrderWarning,
                stacklevel=2,
            )
        consumed = self.consumed(progress)
        rank, world_size = self._sharing()
        while block := units.take(self.units_per_step):
            if len(block) < self.units_per_step and self.drop_last:
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

    def _ids_of(self, unit: Any) -> list[Any]:
        return [unit] if self._in_samples else list(unit)

    def _sharing(self) -> tuple[int, int]:
        return (0, 1) if self._shares_itself else rank_and_world_size()

    def _begin(self, epoch: int) -> _Units:
        """Begin an epoch of the sampler."""
        for sampler in self._samplers:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
        drawn_from = what_is_drawn_from({"sampler": self._source}, ignored=(self._dataset,))
        return _Units(self._source, OwnGenerators(mixed(self.seed, epoch), drawn_from))


class _Units:
    """The samples or batches of a sampler that runs with generators of its own.

    They are taken as many at a time as are needed: the sampler may depend on what training does meanwhile.
    """

    def __init__(self, source: Iterable[Any], generators: OwnGenerators) -> None:
        self._generators = generators
        self._put_back: list[Any] = []
        with generators.in_place():
            self._iterator = iter(source)

    def take(self, count: int) -> list[Any]:
        """The next ones; fewer at the end."""
        taken, self._put_back = self._put_back[:count], self._put_back[count:]
        if len(taken) < count:
            with self._generators.in_place():
                taken += itertools.islice(self._iterator, count - len(taken))
        return taken

    def put_back(self, units: list[Any]) -> None:
        """Let them be the next ones."""
        self._put_back = [*units, *self._put_back]

    def passed_over(self, count: int) -> Iterator[Any]:
        """The next ones, which nobody trains on."""
        while count > 0 and (taken := self.take(min(count, _PASSED_OVER_AT_ONCE))):
            count -= len(taken)
            yield from taken


class _Ids:
    """How many sample ids there were, and a digest of them in their order."""

    def __init__(self) -> None:
        self.count = 0
        self._hash = hashlib.blake2b(digest_size=_DIGEST_BYTES)

    def add(self, sample_ids: Iterable[Any]) -> None:
        for sample_id in sample_ids:
            self._hash.update(f"{sample_id!r},".encode())
            self.count += 1

    def digest(self) -> str:
        return self._hash.hexdigest()


def _samplers_in(source: Any) -> Iterator[Any]:
    """``source`` and the samplers that it stands on."""
    yield source
    for part in vars(source).values() if hasattr(source, "__dict__") else ():
        if isinstance(part, Sampler) and part is not source:
            yield from _samplers_in(part)
