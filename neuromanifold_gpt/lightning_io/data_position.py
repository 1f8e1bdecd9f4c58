"""Where the training data is, and how to get there again.

Loaders with ``state_dict`` and ``load_state_dict`` are put at their position. All others (stock ``DataLoader``, lists,
users' own iterables) are read again: the iterator is made as it was made at the beginning of the epoch, with the same
state of the random number generators, of samplers and of datasets, and the batches that were trained on are passed
over.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from lightning.fabric.utilities.data import sized_len
from lightning.fabric.utilities.types import _Stateful
from lightning.pytorch.loops.fetchers import _DataFetcher, _DataLoaderIterDataFetcher, _PrefetchDataFetcher
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.utilities.combined_loader import CombinedLoader, _shutdown_workers_and_reset_iterator
from tqdm import tqdm

from neuromanifold_gpt.data.changes import ChangesBesidePosition
from neuromanifold_gpt.data.positioned_loader import PositionedLoader
from neuromanifold_gpt.lightning_io.cycled_passes import CycledPasses, continued
from neuromanifold_gpt.lightning_io.loader_parts import (
    OwnedByLoaders,
    collate_fns_of,
    finish_passes,
    generators_in,
    is_order,
    load_states,
    positioned,
    settings_of,
    states_of,
)
from neuromanifold_gpt.lightning_io.loader_warnings import (
    SamplersOnTheWay,
    sizes_pass,
    warn_of_inexact_loaders,
    warn_of_other_settings,
    warn_of_other_workers,
    warn_of_reading_again,
)
from neuromanifold_gpt.lightning_io.streams_read_again import StreamsReadAgain
from neuromanifold_gpt.lightning_io.users_parts import that_save_state, what_trains
from neuromanifold_gpt.state.inspection.flat_values import equal
from neuromanifold_gpt.state.own_generators import warn_of_missing_generators, what_is_drawn_from
from neuromanifold_gpt.state.owned_state import OwnedState
from neuromanifold_gpt.state.rng import capture_rng_state, restore_rng_state


class DataPosition:
    """Follows the data fetcher of the fit loop, and takes it back to a saved position."""

    def __init__(self, fit_loop: _FitLoop) -> None:
        self._fit_loop = fit_loop
        self._owned = OwnedByLoaders([])
        self._settings: list[dict[str, Any]] = []
        self._variables = OwnedState({})  # generators in users' Python modules
        self._samplers_on_the_way = SamplersOnTheWay([])
        self._beside = ChangesBesidePosition([])
        # At the beginning of the epoch: when the iterator was made, when its first batch was asked for.
        self._at_iterator: dict[str, Any] = {}
        self._at_first_batch: dict[str, Any] = {}
        self._cycled = CycledPasses()
        self._streams = StreamsReadAgain([])
        self._ended_before_resume: set[int] = set()  # in this epoch
        # Before the last fetch, where one batch is fetched ahead because the length is not known.
        self._before_fetch: dict[str, Any] = {}

    def loaders_are_new(self) -> None:
        """Lightning has just got its loaders, and will make an iterator of them."""
        self._owned, self._settings = OwnedByLoaders(self._combined.flattened), settings_of(self._combined.flattened)
        self._variables = what_is_drawn_from({}, things=[*what_trains(self._fit_loop.trainer), *self.objects()])
        self._samplers_on_the_way = SamplersOnTheWay(self._combined.flattened)
        in_workers = [owned for name, owned in self._owned.parts.items() if not is_order(name)]
        self._beside = ChangesBesidePosition([*self._owned.parts.values()], shared=in_workers)
        following: list[ChangesBesidePosition | PositionedLoader] = [self._beside, *positioned(self._combined)]
        for part in following:
            part.saved_with(that_save_state(self._fit_loop.trainer))
        self._streams = StreamsReadAgain(self._combined.flattened)
        self.iterator_is_made()
        warn_of_inexact_loaders(self._combined.flattened)

    def iterator_is_made(self) -> None:
        """Lightning is about to make an iterator."""
        self._ended_before_resume.clear()
        self._cycled.epoch_begins()
        self._beside.batch_is_asked_for()
        self._beside.begin_pass(with_workers=any(self._workers))
        self._before_fetch = {}
        self._at_iterator = {"states": states_of(self._combined.flattened), "begun_again": [], "at_end": []}
        if not self._all_stateful:
            self._owned.look_for_generators()
            variables = self._variables.generator_states()
            self._at_iterator.update(rng=capture_rng_state(), owned=self._owned.state(), variables=variables)

    def batch_is_fetched(self) -> None:
        """Lightning is about to fetch a batch."""
        if self._batches_taken:
            self._samplers_on_the_way.batch_is_fetched()
            self._beside.batch_is_asked_for()
        replayed, ahead = not self._all_stateful, self._fetcher.length is None
        if replayed:
            self._cycled.follow(self._combined)
            self._streams.follow(self._combined)
            if self._batches_taken == 0:
                self._at_first_batch = capture_rng_state()
        if ahead:
            self._before_fetch = self._position_of_stateful()
        if ahead or (replayed and self._streams):
            if self._batches_taken == 0:
                self._owned.look_for_generators()
            generators = self._owned.generator_states()
            self._before_fetch.update(rng=capture_rng_state(), generators=generators, number=self._batches_taken)

    def batch_was_fetched(self) -> None:
        """Training goes on with it."""
        self._samplers_on_the_way.batch_was_fetched()
        if self._batches_taken:  # else ``training_step`` takes them from an iterator
            self._beside.batch_is_there(collate_fns_of(self._combined.flattened))

    def warn_of_what_is_left_out(self) -> None:
        """See :meth:`ChangesBesidePosition.warn_of_changes`."""
        combined, fetcher = self._fit_loop._combined_loader, self._fit_loop._data_fetcher
        collate_fns = collate_fns_of(combined.flattened if combined is not None else [])
        self._beside.warn_of_changes(collate_fns, is_at_end=fetcher is None or fetcher.done)
        for loader in positioned(combined):
            loader.warn_of_what_is_left_out()

    def current(self) -> dict[str, Any]:
        """The position behind the batch that was trained on last, as plain values and tensors."""
        if self._fit_loop._combined_loader is None:
            return {}
        if self._all_stateful:
            before = self._before_fetch if self._batches_taken else self._at_iterator
            return before if getattr(self._fetcher, "batches", ()) else self._position_of_stateful()
        if self._fit_loop.epoch_loop.batch_idx <= 0 or self._fetcher.done:  # hooks and first samples make some
            self._owned.look_for_generators()
        return {
            "at_iterator": self._at_iterator,
            "at_first_batch": self._at_first_batch,
            "before_fetch": self._before_fetch.get("rng"),
            "generators_before_fetch": self._before_fetch.get("generators", {}),
            "before_fetch_of": self._before_fetch.get("number"),
            "cycled": self._cycled.current(),
            "streams": self._streams.current(),
            "batches": self._batches_taken,
            "workers": self._workers,
            "settings": settings_of(self._combined.flattened, self._settings),
            "owned": self._owned.state(),
        }

    def go_on_in_epoch(self, saved: dict[str, Any]) -> None:
        """Go to a position in the middle of an epoch, and give Lightning a new iterator there.

        Random number generators are used; the caller restores them afterwards.
        """
        if not saved:  # saved before there was any data
            return
        if "states" not in saved:
            self._read_again(saved)
            return
        load_states(self._combined.flattened, saved["states"])
        self._new_iterator(saved)
        # By it, the fetcher knows which batch is the last. Lightning counts steps, which may take several.
        self._fetcher.fetched += saved.get("fetched", self._fit_loop.epoch_loop.batch_progress.current.ready)

    def go_on_between_epochs(self, saved: dict[str, Any]) -> None:
        """Put loaders, samplers and datasets where they were when an epoch was over.

        Lightning then makes a new iterator.
        """
        if not saved or self._fit_loop._combined_loader is None:  # of no batches, if limit_train_batches is 0
            return
        others_come = bool(self._fit_loop._should_reload_train_dl)
        if not others_come:
            warn_of_other_settings(self._settings, saved.get("settings", []))
        owned = saved.get("owned", {})
        self._owned.make_generators(generators_in(owned))
        missing = self._owned.restore(owned)
        warn_of_missing_generators([] if others_come else missing)
        states = saved["states"] if "states" in saved else saved["at_iterator"]["states"]
        with sizes_pass(others_come):
            load_states(self._combined.flattened, states)
        if "states" in saved and not others_come:  # else they are put to a pass's beginning
            finish_passes(self._combined.flattened, states)
        for loader in positioned(self._combined):
            loader.leave_pass()

    def _read_again(self, saved: dict[str, Any]) -> None:
        batches, self._at_iterator = saved["batches"], saved["at_iterator"]
        self._at_first_batch = saved["at_first_batch"]
        warn_of_other_settings(self._settings, saved.get("settings", []))
        warn_of_reading_again(self._combined.flattened, batches)
        warn_of_other_workers(self._workers, saved["workers"])
        for loader in self._combined.flattened:
            _shutdown_workers_and_reset_iterator(loader)
        self._owned.make_generators(generators_in(self._at_iterator["owned"]))
        self._owned.restore(self._at_iterator["owned"])
        self._variables.restore_generators(self._at_iterator["variables"])
        load_states(self._combined.flattened, self._at_iterator["states"])
        restore_rng_state(self._at_iterator["rng"])
        fetcher = iter(self._fetcher)
        self._cycled.follow(self._combined)
        self._cycled.repeat(saved.get("cycled", []))
        if isinstance(fetcher, _DataLoaderIterDataFetcher):
            fetcher = fetcher.iterator_wrapper  # type: ignore[assignment]
        for number in tqdm(range(batches), desc="Reading the epoch's batches again", disable=not batches):
            if number == 0:
                restore_rng_state(self._at_first_batch)
            if number == saved.get("before_fetch_of", batches - 1) and saved["before_fetch"] is not None:
                restore_rng_state(saved["before_fetch"])
                self._owned.restore_generators(saved.get("generators_before_fetch", {}))
            self._streams.follow(self._combined)
            next(fetcher)
        self._cycled.are_repeated()
        owned_of = self._owned.of(saved["owned"])
        if batches and all(equal(owned.changed_values(), saved["owned"][name]["values"]) for name, owned in owned_of):
            self._streams.check(saved.get("streams", {}))
        # What hooks and validations did meanwhile to data and samplers, or drew from a generator, no reading repeats.
        # Samplers are under way, and with other workers not as far as they were.
        for name, owned in owned_of:
            if not is_order(name):
                owned.restore_values(saved["owned"][name]["values"])
            elif self._workers == saved["workers"]:
                owned.restore_attributes(saved["owned"][name]["values"])
        warn_of_missing_generators(self._owned.restore_generators(generators_in(saved["owned"])))
        self._beside.begin_pass(with_workers=any(self._workers))

    def _position_of_stateful(self) -> dict[str, Any]:
        return {
            "states": states_of(self._combined.flattened),
            "begun_again": list(getattr(self._combined._iterator, "_consumed", [])),
            "at_end": list(map(self._is_at_end, self._combined.flattened, range(len(self._combined.flattened)))),
            "fetched": self._fetcher.fetched,
        }

    def _is_at_end(self, loader: Any, number: int) -> bool:
        """Whether it would end the next time it is asked, rather than give a batch."""
        if isinstance(loader, PositionedLoader) and loader.is_at_end:
            return True
        has_ended = number in self._ended_before_resume or (sized_len(loader) or math.inf) <= self._fetcher.fetched
        return has_ended and self._combined._mode == "max_size"

    def _new_iterator(self, saved: dict[str, Any]) -> None:
        """As ``iter(fetcher)``; but loaders that had come to an end do so again, before anything is fetched."""
        fetcher = self._fetcher
        if not isinstance(fetcher, _PrefetchDataFetcher):
            iter(fetcher)
        else:
            _DataFetcher.__iter__(fetcher)
        iterator: Any = self._combined._iterator
        if saved["begun_again"]:
            iterator._consumed = list(saved["begun_again"])
        if self._fit_loop.epoch_loop.batch_progress.current.ready:
            iterator.iterators = [*map(continued, self._combined.flattened, iterator.iterators)]
        # A single one at its end is at the end of the epoch, which an iterator in the hands of ``training_step`` tells.
        if len(saved["at_end"]) > 1 or isinstance(fetcher, _DataLoaderIterDataFetcher):
            for number, is_at_end in enumerate(saved["at_end"]):
                if is_at_end:
                    iterator.iterators[number] = iter(())
                    self._ended_before_resume.add(number)
        if isinstance(fetcher, _PrefetchDataFetcher) and fetcher.length is None:
            if "rng" in saved:
                restore_rng_state(saved["rng"])
            with contextlib.suppress(StopIteration):
                fetcher.batches.append(_DataFetcher.__next__(fetcher))

    def objects(self) -> Iterator[Any]:
        """Whose changes go with the position."""
        for owned in self._owned.parts.values():
            yield from owned.objects()
        for loader in positioned(self._fit_loop._combined_loader):
            yield from loader.objects_of_position()

    @property
    def _combined(self) -> CombinedLoader:
        combined = self._fit_loop._combined_loader
        assert combined is not None, "the fit loop has set up its data"
        return combined

    @property
    def _fetcher(self) -> _DataFetcher:
        fetcher = self._fit_loop._data_fetcher
        assert fetcher is not None, "the fit loop has set up its data"
        return fetcher

    @property
    def _all_stateful(self) -> bool:
        return all(isinstance(loader, _Stateful) for loader in self._combined.flattened)

    @property
    def _batches_taken(self) -> int:
        return self._fetcher.fetched - len(getattr(self._fetcher, "batches", ()))

    @property
    def _workers(self) -> list[int]:
        return [getattr(loader, "num_workers", 0) for loader in self._combined.flattened]
