"""A loader over a map-style dataset, in an order that can be begun anywhere."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from neuromanifold_gpt.data.changes import ChangesBesidePosition
from neuromanifold_gpt.data.errors import DataOrderWarning
from neuromanifold_gpt.data.position import EpochOrder, Position, Progress
from neuromanifold_gpt.data.positioned_loader import PositionedLoader
from neuromanifold_gpt.data.sample_seeds import CollateSingle, SampleKey, SeededCollate, SeededSamples
from neuromanifold_gpt.data.watched_collate import WatchedCollate, warn_of_changes
from neuromanifold_gpt.data.worker_info import AsBefore
from neuromanifold_gpt.state.inspection.flat_values import equal
from neuromanifold_gpt.state.owned_state import OwnedState


class BatchOrder(EpochOrder, Protocol):
    """The batches of sample ids of each epoch."""

    @property
    def source(self) -> Any:
        """The user's own sampler or batch sampler; ``None`` if there is none."""
        ...

    @property
    def differs_by_epoch(self) -> bool:
        """Whether one epoch may have another order than another."""
        ...

    def shown_samplers(self, position: Position) -> dict[str, Any]:
        """What a loader shows as ``sampler`` and ``batch_sampler``."""
        ...

    def owned(self) -> list[OwnedState]:
        """Of whose objects the changes are part of :meth:`beginning`."""
        ...

    def batches(self, epoch: int, progress: Progress) -> Iterator[tuple[list[SampleKey], Progress]]:
        """This rank's batches from ``progress`` on, each with the position behind it."""
        ...


class OrderedLoader(PositionedLoader):
    """Gives the samples of a dataset in the order of a :class:`BatchOrder`.

    Args:
        dataset: map-style.
        order: of its samples.
        batch_size: what the attribute of this name shows.
        seed_samples, num_workers, collate_fn, options: as for :class:`ResumableDataLoader`.
    """

    def __init__(
        self,
        dataset: Any,
        order: BatchOrder,
        *,
        batch_size: int | None,
        seed_samples: bool,
        num_workers: int,
        collate_fn: Callable[[list[Any]], Any],
        **options: Any,
    ) -> None:
        self._order = order
        self._position = Position(order)
        self._keys = _KeysFromPosition(order, self._position)
        self._samples, self._seed_samples = SeededSamples(dataset, seed_samples), seed_samples
        samplers = order.shown_samplers(self._position)
        self._is_single = samplers["batch_sampler"] is None
        self._collate = _Collate(collate_fn, dataset, seed_samples, self._is_single)
        self._owned = OwnedState({"dataset": dataset, "collate_fn": self._collate.root})
        self._beside = ChangesBesidePosition([self._owned, *order.owned()], shared=[self._owned])
        self._values_in_workers: dict[str, Any] | None = None
        self._values_here: dict[str, Any] | None = None  # to be restored when workers have been given theirs
        self._has_said = self._draws = False
        super().__init__(
            self._samples,
            batch_sampler=self._keys,
            num_workers=num_workers,
            collate_fn=collate_fn,
            **options,
        )
        self.show(dataset=dataset, batch_size=batch_size, drop_last=order.steps().drop_last, **samplers)

    def position(self, *, within_pass: bool = False) -> dict[str, Any]:
        """The position, and what dataset and ``collate_fn`` have changed in themselves since the loader was made.

        Workers have copies of them: what changes there is lost, and what changes here, in ``values_here``, reaches the
        next workers. Numbers of ``multiprocessing`` are the same everywhere.
        """
        same_workers = self.persistent_workers or not self.is_at_end
        values = now = self._owned.changed_values()
        if self._values_in_workers is not None and same_workers:
            shared = self._owned.shared_numbers()
            values = {path: value for path, value in now.items() if path in shared} | self._values_in_workers
        position = {**super().position(within_pass=within_pass), **({"values": values} if values else {})}
        here = now if self._values_here is None else self._values_here
        return position if equal(values, here) else {**position, "values_here": here}

    @property
    def passes_differ(self) -> bool:
        """If samples draw, as far as they have, if the order is not fixed, or if dataset or ``collate_fn`` change."""
        return self._draws or self._order.differs_by_epoch or bool(self._owned.changed_values())

    def objects_of_position(self) -> tuple[Any, ...]:
        """See :meth:`PositionedLoader.objects_of_position`."""
        return tuple(thing for owned in (self._owned, *self._order.owned()) for thing in owned.objects())

    def data_parts(self) -> dict[str, Any]:
        """See :meth:`PositionedLoader.data_parts`."""
        return {**super().data_parts(), "sampler": self._order.source}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`PositionedLoader.load_state_dict`."""
        self._take_collate_fn()
        self._look_again()
        super().load_state_dict(state_dict)
        self._owned.restore_values(state_dict.get("values", {}))
        self._values_here = state_dict.get("values_here")
        self._values_in_workers = None

    def _take_collate_fn(self) -> None:
        """That of the attribute, which training may have set."""
        if self._collate.collate_fn is not self.collate_fn:
            self._collate = _Collate(self.collate_fn, self.dataset, self._seed_samples, self._is_single)
            self._owned.replace("collate_fn", self._collate.root)

    def _look_again(self) -> None:
        """For what dataset, sampler and ``collate_fn`` have been given since."""
        for owned in (self._owned, *self._order.owned()):
            owned.look_again()

    def _batches(self) -> Iterator[tuple[Any, Progress]]:
        workers_stay = self.persistent_workers and self._values_in_workers is not None
        if not workers_stay:
            self._take_collate_fn()
        self._look_again()
        if self.num_workers and not workers_stay:  # those that the iterator starts
            shared = self._owned.shared_numbers()
            values = self._owned.changed_values().items()
            self._values_in_workers = {path: value for path, value in values if path not in shared}
        self._beside.begin_pass(with_workers=self.num_workers > 0)
        self._samples.begin_pass()
        self._collate.begin_pass()
        ahead = self._keys.begin()
        iterator = self._iterator_over(
            dataset=self._samples,
            batch_sampler=self._keys,
            collate_fn=self._collate.watched,
            worker_init_fn=AsBefore(self.worker_init_fn, self.batches_consumed),
        )
        if self._values_here is not None:
            self._restore_values_here(self._values_here)
        for batch in iterator:
            self._draws |= batch.draws
            if batch.changed and not self._has_said:
                warn_of_changes(batch.changed, self.num_workers)
                self._has_said = True
            yield batch.batch, ahead.popleft()

    def _restore_values_here(self, values: dict[str, Any]) -> None:
        self._values_here = None
        self._owned.restore_values(values)
        if not self.num_workers:
            warnings.warn(
                "dataset or collate_fn were changed within the epoch, after workers had been given copies of them: "
                "without workers, the rest of the epoch is made with what was changed. Resume with workers.",
                DataOrderWarning,
                stacklevel=4,  # who iterates
            )

    def batches_of_sample_ids(self) -> Iterator[list[Any]]:
        """Sample ids of this rank's batches, from the current position to the end of the epoch."""
        for keys, _ in self._order.batches(self._position.epoch, self._position.progress):
            yield [sample_id for *_, sample_id in keys]


class _Collate:
    """How batches are made by ``collate_fn``, which training may replace: from the next pass on.

    Attributes:
        root: what is given the samples of a batch, and may have state.
        watched: for workers, and for here.
    """

    def __init__(self, collate_fn: Callable[[Any], Any], dataset: Any, seed_samples: bool, is_single: bool) -> None:
        self.collate_fn = collate_fn
        self.root = CollateSingle(collate_fn) if is_single else collate_fn
        self._seeded = SeededCollate(self.root) if seed_samples else None
        self.watched = WatchedCollate(self._seeded or self.root, dataset, self.root)

    def begin_pass(self) -> None:
        """As :meth:`SeededSamples.begin_pass`."""
        if self._seeded is not None:
            self._seeded.begin_pass()


class _KeysFromPosition:
    """The batch sampler: its keys carry seed and epoch to workers that outlive them."""

    def __init__(self, order: BatchOrder, position: Position) -> None:
        self._order = order
        self._position = position
        self._ahead: deque[Progress] = deque()

    def begin(self) -> deque[Progress]:
        """A queue for the positions behind the batches that the next iteration fetches."""
        self._ahead = deque()
        return self._ahead

    def __iter__(self) -> Iterator[list[SampleKey]]:
        ahead = self._ahead
        for keys, progress in self._order.batches(self._position.epoch, self._position.progress):
            ahead.append(progress)
            yield keys
