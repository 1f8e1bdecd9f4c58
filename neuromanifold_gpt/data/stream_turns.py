"""Where a loader is in its streams, and what a stream carries from one pass to the next."""

from __future__ import annotations

import copy
from typing import Any

from torch.utils.data import DataLoader

from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.data.errors import DataOrderWarning
from neuromanifold_gpt.data.order import mixed
from neuromanifold_gpt.data.position import Progress, Steps
from neuromanifold_gpt.data.stream_contents import MAXIMUM_ITEMS, StreamContents
from neuromanifold_gpt.data.stream_shards import Shard, StreamOptions
from neuromanifold_gpt.state.inspection.flat_values import equal
from neuromanifold_gpt.state.inspection.users_objects import is_stateful
from neuromanifold_gpt.state.modules import listed
from neuromanifold_gpt.state.owned_state import OwnedState
from neuromanifold_gpt.state.rng import rank_and_world_size

_BEGINNING: dict[str, Any] = {
    "samples": 0,
    "state": None,
    "generators": {},
    "is_done": False,
    "collate_fn": {},
    "ids": None,
}


class StreamTurns:
    """The position in the streams, as an order of batches of each epoch.

    Where the stream is read in this process, one pass begins with what the one before has left: values and containers
    are put back. Of a stream with ``state_dict`` that then is in another state than it was (a file, an iterator in an
    attribute), the end of that pass is repeated: to load its state would do for some, for others it would let the next
    pass begin there.
    """

    def __init__(self, loader: DataLoader[Any], seed: int | None, default_seed: int, options: StreamOptions) -> None:
        self.seed = default_seed if seed is None else seed
        self._seed_is_given = seed is not None
        self._options = options
        self._workers = loader.num_workers
        self._loader = loader  # which knows the number of batches
        self._dataset = OwnedState({"dataset": loader.dataset})
        self._contents = StreamContents(self._dataset)
        self._collate_fn = OwnedState({"collate_fn": loader.collate_fn}, ignored=self._dataset.objects())
        self._last_batch: tuple[int, dict[str, Any]] | None = None  # its epoch, and the state of the shard behind it
        self._if_left: dict[str, Any] | None = None  # of a position that was loaded, up to the next batch
        self._said: set[str] = set()

    @property
    def size(self) -> int | None:
        """See :class:`EpochOrder`."""
        try:
            return len(self._loader)
        except (TypeError, NotImplementedError):
            return None

    def steps(self, progress: Progress | None = None) -> Steps:
        """See :class:`EpochOrder`."""
        return Steps(1)

    def consumed(self, progress: Progress) -> int:
        """See :class:`EpochOrder`."""
        return int(progress["batches_consumed"])

    def is_over(self, progress: Progress) -> bool:
        """See :class:`EpochOrder`."""
        return all(shard["is_done"] for shard in progress["shards"])

    def beginning(self) -> Progress:
        """See :class:`EpochOrder`."""
        return {
            "batches_consumed": 0,
            "workers": self._workers,
            "shards": [_BEGINNING] * max(self._workers, 1),
            "next_shard": 0,
            "values_at_beginning": {
                **self._values(),
                "not_kept": self._contents.not_kept(),
                "stream": self._state_of_stream(),
            },
        }

    def _values(self) -> dict[str, Any]:
        of_collate_fn = self._collate_fn.changed_values() if self._workers == 0 else {}  # workers have copies
        return {**self._dataset.changed_values(), **of_collate_fn, "containers": self._contents.changed()}

    def _state_of_stream(self) -> dict[str, Any] | None:
        """How a stream says that it stands between passes, and from where it came there."""
        stream: Any = self._loader.dataset
        if self._workers or self._last_batch is None or (state := _state_of(stream)) is None:
            return None
        epoch, shard = self._last_batch
        return {"state": state, "epoch": epoch, "shard": shard}

    def owned(self) -> list[OwnedState]:
        """The stream, the ``collate_fn``, and what they refer to."""
        return [self._dataset, self._collate_fn]

    def collate_with(self, options: StreamOptions) -> None:
        """From the next pass on."""
        self._options = options
        self._collate_fn.replace("collate_fn", options.collate_fn)
        for owned in self.owned():
            owned.leave_trainers()

    def objects(self) -> tuple[Any, ...]:
        """Those whose changes go with the position."""
        return (*self._dataset.objects(), *self._collate_fn.objects())

    def begin_again(self, progress: Progress) -> Progress:
        """See :class:`EpochOrder`."""
        self._restore(progress["values_at_beginning"])
        return {**self.beginning(), "values_at_beginning": progress["values_at_beginning"]}

    def saved(self, progress: Progress) -> Progress:
        """See :class:`EpochOrder`."""
        # Before it begins, and when all is read, the values are those of now.
        if not self._is_under_way(progress):
            return {**progress, "values_at_beginning": self.beginning()["values_at_beginning"]}
        at_beginning = {**progress["values_at_beginning"], "stream": None}  # begun again, it is not asked for it
        if_left = self._if_left or {**self._values(), "stream": self._state_of_stream()}
        return {**progress, "values_at_beginning": at_beginning, "values_if_left": if_left}

    def _is_under_way(self, progress: Progress) -> bool:
        return self.consumed(progress) > 0 and not self.is_over(progress)

    def _restore(self, values: dict[str, Any]) -> None:
        for owned in (self._dataset, self._collate_fn):
            owned.restore_values(values)
        self._contents.restore(values["containers"])

    def _restore_between_passes(self, values: dict[str, Any]) -> None:
        self._restore(values)
        saved, stream = values["stream"], self._loader.dataset
        if saved is None or self._workers or not is_stateful(stream):
            return
        self._last_batch = saved["epoch"], saved["shard"]
        if saved["shard"]["state"] is not None and not equal(_state_of(stream), saved["state"]):
            seed = mixed(self.seed, saved["epoch"], 0)
            Shard(stream, self._options, seed, number=0, workers=0, start=saved["shard"]).pass_over_end()
            self._restore(values)

    def batch_is_made(self, epoch: int, shard: dict[str, Any]) -> None:
        """It is about to be handed out; ``shard`` is the state of its shard behind it."""
        if self._workers:  # which have begun their pass without
            self.put_back_changes()
        self._last_batch, self._if_left = (epoch, shard), None
        self._contents.begin()

    def put_back_changes(self) -> None:
        """What hooks and the loop had changed in the stream since its pass began, no reading repeats."""
        if self._if_left is not None:
            self._restore(self._if_left)

    def leave(self, epoch: int, progress: Progress) -> None:
        """The next pass begins with the stream as this one, which was loaded, had left it."""
        if self._if_left is not None:
            self._restore_between_passes(self._if_left)

    def warn_of_what_is_not_kept(self, progress: Progress) -> None:
        """A position is saved.

        Warns:
            DataOrderWarning: names the containers that a pass begins with, as they are, and that no position has.
        """
        if is_stateful(self._loader.dataset) and not self._workers:
            return
        at_beginning = progress["values_at_beginning"]["not_kept"]
        not_kept = at_beginning if self._is_under_way(progress) else self._contents.not_kept()
        names = [name for name in not_kept if name not in self._said]
        if names:
            self._said.update(names)
            warn_user(
                f"{listed(names)}: a pass begins with what others have left in it, which no position has, since it is "
                f"more than {MAXIMUM_ITEMS} items or has other things in it than numbers, texts and tensors. Where "
                "batches depend on it, a resume cannot be exact: give the stream state_dict and load_state_dict, or "
                "empty it where a pass ends.",
                DataOrderWarning,
            )

    def description(self) -> dict[str, Any]:
        """See :class:`EpochOrder`."""
        return {
            "seed": self.seed,
            "batch_size": self._loader.batch_size,
            "drop_last": self._loader.drop_last,
            "ranks": rank_and_world_size()[1],
        }

    def adopt(self, state: dict[str, Any]) -> list[str]:
        """See :class:`EpochOrder`."""
        if not self._seed_is_given:
            self.seed = state["seed"]
        self._workers = state["workers"]
        self._last_batch, self._if_left = None, state.get("values_if_left")
        if self._is_under_way(state):
            self._restore(state["values_at_beginning"])
        else:
            self._restore_between_passes(state["values_at_beginning"])
        return [
            f"{key} was {state[key]} and is {value}" for key, value in self.description().items() if state[key] != value
        ]


def _state_of(stream: Any) -> Any:
    try:
        return copy.deepcopy(stream.state_dict()) if is_stateful(stream) else None
    except Exception:  # noqa: BLE001 - between passes, it may have none
        return None
