"""A loader over a map-style dataset, in an order that can be begun anywhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.data.changes import ChangesBesidePosition
from neuromanifold_gpt.data.errors import DataOrderWarning
from neuromanifold_gpt.data.memos import Memos
from neuromanifold_gpt.data.position import EpochOrder, Position, Progress
from neuromanifold_gpt.data.positioned_loader import PositionedLoader
from neuromanifold_gpt.data.sample_seeds import CollateSingle, SampleKey, SeededCollate, SeededSamples
from neuromanifold_gpt.data.watched_collate import WatchedCollate, warn_of_changes
from neuromanifold_gpt.data.worker_info import AsBefore
from neuromanifold_gpt.state.inspection.flat_values import equal
from neuromanifold_gpt.state.inspection.users_objects import is_a_time
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
        memos = Memos(self._samples, self._owned)
        self._beside = ChangesBesidePosition([self._owned, *order.owned()], shared=[self._owned], memos=memos)
        self._values_in_workers: dict[str, Any] | None = None  # that are there, or that a position was loaded of
        self._has_workers = self._was_changed_here = False
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

        Workers have copies of them, ``values``: what changes there is lost, and what changes here, ``values_here``,
        reaches the next workers. Numbers of ``multiprocessing`` are the same everywhere.
        """
        here = self._owned.changed_values()
        position = super().position(within_pass=within_pass)
        if self._values_in_workers is None or (self.is_at_end and not self.persistent_workers):
            return {**position, **({"values": here} if here else {})}
        shared = self._owned.shared_numbers()
        values = {path: value for path, value in here.items() if path in shared} | self._values_in_workers
        position.update({"values": values} if values else {})
        return position if equal(values, here) else {**position, "values": values, "values_here": here}

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
        values = state_dict.get("values", {})
        here = state_dict.get("values_here", values)
        self._owned.restore_values(here)
        self._has_workers, self._values_in_workers = False, None
        if "values_here" in state_dict:
            followed = here.keys() | self._owned.values().keys()
            self._was_changed_here = not equal({path: values[path] for path in values.keys() & followed}, here)
        if self.num_workers and (self._position.epoch > 0 or self.batches_consumed > 0):
            of_workers = values.keys() - self._owned.shared_numbers().keys()
            self._values_in_workers = {path: values[path] for path in of_workers}

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
        workers_stay = self.persistent_workers and self._has_workers
        if not workers_stay:
            self._take_collate_fn()
        self._look_again()
        starts_workers = self.num_workers > 0 and not workers_stay
        put_back = self._begin_workers() if starts_workers else lambda: None
        self._warn_of_missing_workers()
        self._beside.begin_pass(with_workers=self.num_workers > 0)
        self._samples.begin_pass()
        self._collate.begin_pass()
        ahead = self._keys.begin(put_back)
        try:
            iterator = self._iterator_over(
                dataset=self._samples,
                batch_sampler=self._keys,
                collate_fn=self._collate.watched,
                worker_init_fn=AsBefore(self.worker_init_fn, self.batches_consumed),
            )
        finally:
            self._keys.workers_are_there()
        for batch in iterator:
            self._draws |= batch.draws
            if batch.changed and not self._has_said:
                warn_of_changes(batch.changed, self.num_workers)
                self._has_said = True
            yield batch.batch, ahead.popleft()

    def _begin_workers(self) -> Callable[[], None]:
        """Let what workers are given copies of be what those had that they go on for; gives what puts back all here.

        They also have copies of numbers of what trains, if ``collate_fn`` is a method of it.
        """
        self._has_workers = True
        copied = OwnedState({"dataset": self.dataset, "collate_fn": self._collate.root}, with_trainers=True)
        shared = copied.shared_numbers()
        here = {path: value for path, value in copied.values().items() if path not in shared}
        if self._values_in_workers is not None and (self.persistent_workers or self.batches_consumed > 0):
            before = {**self._values_in_workers, **shared}
            self._owned.restore_attributes(before)
            copied.set_values_still_there(before)
        else:
            own = self._owned.values()
            of_trainers = {path: value for path, value in here.items() if path not in own and _is_count(path, value)}
            changed = self._owned.changed_values()
            self._values_in_workers = of_trainers | {path: changed[path] for path in changed.keys() - shared.keys()}
        return lambda: copied.set_values(here)

    def _warn_of_missing_workers(self) -> None:
        was_changed, self._was_changed_here = self._was_changed_here, False
        if was_changed and not self.num_workers:
            warn_user(
                "dataset or collate_fn were changed within the epoch, after workers had been given copies of them: "
                "without workers, the rest of the epoch is made with what was changed. Resume with workers.",
                DataOrderWarning,
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
        self._put_back: Callable[[], None] | None = None

    def begin(self, put_back: Callable[[], None]) -> deque[Progress]:
        """A queue for the positions behind the batches that the next iteration fetches.

        Args:
            put_back: what is to be called when workers have their copies, before the order is asked for anything.
        """
        self._ahead, self._put_back = deque(), put_back
        return self._ahead

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_put_back": None}  # a trainer whose method collates goes to workers with its loader

    def workers_are_there(self) -> None:
        """They have their copies, or there are none."""
        put_back, self._put_back = self._put_back, None
        if put_back is not None:
            put_back()

    def __iter__(self) -> Iterator[list[SampleKey]]:
        ahead = self._ahead
        self.workers_are_there()
        for keys, progress in self._order.batches(self._position.epoch, self._position.progress):
            ahead.append(progress)
            yield keys


def _is_count(path: str, value: Any) -> bool:
    """Whether it is a number that decides something, unlike a time."""
    return type(value) in (bool, int, float) and not any(is_a_time(name, value) for name in path.split("."))
