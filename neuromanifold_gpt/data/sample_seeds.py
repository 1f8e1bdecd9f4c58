"""Give each sample random numbers of its own: a pure function of (seed, epoch, number of the sample in the epoch).

Whatever a dataset draws from ``random``, ``numpy.random`` or torch while it makes a sample is then the same in every
process, in any order of fetching, and before and after a resume. The generators of the fetching process are put back
afterwards, so that fetching early or late does not change what the model draws.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from neuromanifold_gpt.data.order import mixed
from neuromanifold_gpt.state.inspection.flat_values import equal
from neuromanifold_gpt.state.own_generators import what_is_drawn_from
from neuromanifold_gpt.state.owned_state import OwnedState
from neuromanifold_gpt.state.rng import cpu_generator_states

SampleKey = tuple[int, int, int, Any]  # seed, epoch, number of the sample in the epoch, sample id
_MADE_AT_MOST = 5  # times; one that makes a further generator each time, has it seeded in the next batch
_COLLATION = 1  # so that a batch of one does not draw its sample's numbers again


class SampleBatch(list[Any]):
    """The samples of one batch, with the seed that its collation may draw from, and whether they have drawn."""

    def __init__(self, samples: Sequence[Any], seed: int, draws: bool = False) -> None:
        super().__init__(samples)
        self.seed, self.draws = seed, draws


class SeededSamples(Dataset[Any]):
    """``source`` addressed by :data:`SampleKey`, each sample made under its own seed.

    Generators that ``source`` owns, its transforms included, are seeded like the global ones.

    Args:
        source: a map-style dataset.
        seed_samples: ``False`` for datasets that draw no random numbers; it saves some 50 µs a sample.
    """

    def __init__(self, source: Any, seed_samples: bool) -> None:
        self.source = source
        self._seed_samples = seed_samples
        self._seeded = Seeded("dataset", source)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def draws(self) -> bool:
        """As far as it was seen, in this process; taken for granted without seeds."""
        return self._seeded.draws or not self._seed_samples

    def begin_pass(self) -> None:
        """Look again for generators, in this process: some are made anew for each epoch."""
        self._seeded.begin_pass()

    def __getitems__(self, keys: list[SampleKey]) -> SampleBatch:
        """What ``DataLoader`` calls for a batch."""
        if not self._seed_samples:
            ids = [sample_id for *_, sample_id in keys]
            fetch_many = getattr(self.source, "__getitems__", None)
            samples = fetch_many(ids) if fetch_many else [self.source[sample_id] for sample_id in ids]
            return SampleBatch(samples, 0)
        samples = self._seeded.made([mixed(*key[:3]) for key in keys], lambda number: self.source[keys[number][3]])
        seed, epoch, *_ = keys[0]
        seed_of_collation = mixed(seed, _COLLATION, epoch, *(number for _, _, number, _ in keys))
        return SampleBatch(samples, seed_of_collation, self._seeded.draws)


class SeededCollate:
    """``collate`` under a seed of the batch's own: masking collators draw random numbers too."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self._collate = collate
        self._seeded = Seeded("collate_fn", collate)

    @property
    def draws(self) -> bool:
        """As far as it was seen."""
        return self._seeded.draws

    def begin_pass(self) -> None:
        """As :meth:`SeededSamples.begin_pass`."""
        self._seeded.begin_pass()

    def __call__(self, samples: SampleBatch) -> Any:
        """Collate the samples of one batch."""
        attempts = again(samples)
        [batch] = self._seeded.made([samples.seed], lambda _: self._collate(next(attempts)))
        return batch


def again(samples: Sequence[Any]) -> Iterator[list[Any]]:
    """The samples, and copies for each further attempt to collate them: the first may take something out of them."""
    spare = [copy.copy(sample) if type(sample) in (dict, list) else sample for sample in samples]
    yield list(samples)
    while True:
        yield [copy.copy(sample) if type(sample) in (dict, list) else sample for sample in spare]


class CollateSingle:
    """``collate_fn`` of a loader with ``batch_size=None``, which is handed single samples."""

    def __init__(self, collate: Any) -> None:
        self._collate = collate

    def __call__(self, samples: list[Any]) -> Any:
        """Collate a batch of one sample."""
        return self._collate(samples[0])


class Seeded:
    """Lets an object make things, each under a seed, and sees whether it draws.

    What it draws from may be made only when it is first needed. It cannot be seeded before that, so what was made with
    it is made once more.

    Args:
        name, root: the object, as for :func:`what_is_drawn_from`.
    """

    def __init__(self, name: str, root: Any) -> None:
        self._roots = {name: root}
        self._owned = OwnedState({})
        self._drawn_from: OwnedState | None = None
        self._looks_around = True
        self.draws = False  # as far as it was seen

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_drawn_from": None, "_owned": OwnedState({})}  # each worker looks at its own copy

    def begin_pass(self) -> None:
        """Look again."""
        self._drawn_from = None

    def made(self, seeds: list[int], make: Callable[[int], Any]) -> list[Any]:
        """What ``make`` gives for 0, 1 and so on, each under its seed."""
        for _ in range(_MADE_AT_MOST):
            is_first = self._drawn_from is None
            if self._drawn_from is None:
                self._drawn_from, self._owned = what_is_drawn_from(self._roots), self._look()
            owned = self._owned
            before, held = owned.values(), owned.held()
            things = self._made(seeds, make, self._drawn_from)
            # Also in variables of Python modules, which are looked at behind the first things only.
            if is_first and self._looks_around and self._has_more(self._drawn_from):
                self._drawn_from = None
            elif owned.held() == held:
                break
            else:
                self._owned = self._look()  # what is let go of, must not be kept alive
                if self._owned.generators_that_are_new_since(owned):
                    self._drawn_from = None
                if self._owned.has_as_many_generators_as(owned):  # made anew for each sample, say
                    break
            owned.set_values_still_there(before)
        else:  # each of them makes some
            self._looks_around = False
        return things

    def _look(self) -> OwnedState:
        return OwnedState(self._roots, with_trainers=True)

    def _has_more(self, before: OwnedState) -> bool:
        now = what_is_drawn_from(self._roots)
        return bool(now.generators_that_are_new_since(before)) and not now.has_as_many_generators_as(before)

    def _made(self, seeds: list[int], make: Callable[[int], Any], drawn_from: OwnedState) -> list[Any]:
        things = []
        with isolated_generators(drawn_from):
            for number, seed in enumerate(seeds):
                seed_generators(seed, drawn_from)
                things.append(make(number))
            if seeds and not self.draws:  # of the last one; whether it is seeded still shows
                drawn = _all_states(drawn_from)
                seed_generators(seeds[-1], drawn_from)
                self.draws = not equal(drawn, _all_states(drawn_from))
        return things


class OwnGenerators:
    """Generators beside the global ones, for what draws now and then and must not depend on who else draws.

    Args:
        seed: of them.
        owned: generators to which the same is done, each beside itself.
    """

    def __init__(self, seed: int, owned: OwnedState) -> None:
        self._owned = owned
        self._others: dict[str, Any] = {}  # what those of ``owned`` are for everybody else, while these are in place
        with isolated_generators(owned):
            seed_generators(seed, owned)
            self._keep()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """What is drawn inside from the global generators, and those of ``owned``, is drawn from these."""
        owned, others = self._owned, self._owned.raw_generator_states()
        self._others = dict(others)
        with isolated_generators():
            _set_generator_states(self._states)
            owned.set_raw_generator_states(self._states_of_owned)
            try:
                yield
            finally:
                self._keep()
                owned.set_raw_generator_states(others)
                self._owned.set_raw_generator_states(self._others)

    def follow(self, owned: OwnedState) -> None:
        """In place: these are there now. Those that have taken the place of others are for everybody else what those
        were; new ones what they are in each process.
        """
        now = owned.raw_generator_states()
        new = [path for path, state in now.items() if not _is_of_its_kind(state, self._others.get(path))]
        owned.reseed(0, new)
        self._others = {**self._others, **{path: owned.raw_generator_states()[path] for path in new}}
        self._others = {path: self._others[path] for path in now}
        owned.set_raw_generator_states(now)
        self._owned = owned

    def _keep(self) -> None:
        self._states, self._states_of_owned = cpu_generator_states(), self._owned.raw_generator_states()


def _is_of_its_kind(state: Any, other: Any) -> bool:
    """Whether a generator that describes itself by the one could be in the other."""
    if isinstance(state, dict) and isinstance(other, dict):
        return state.keys() == other.keys() and state["bit_generator"] == other["bit_generator"]
    return type(state) is type(other) and not isinstance(state, dict)


def seed_generators(seed: int, owned: OwnedState | None = None) -> None:
    """Seed the CPU generators of this process, and those of ``owned``; accelerators keep theirs."""
    random.seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
    torch.default_generator.manual_seed(seed)
    if owned is not None:
        owned.reseed(seed)


@contextmanager
def isolated_generators(owned: OwnedState | None = None) -> Iterator[None]:
    """Put the CPU generators back, and those of ``owned``, whatever is drawn inside."""
    states, states_of_owned = cpu_generator_states(), owned.raw_generator_states() if owned is not None else {}
    try:
        yield
    finally:
        _set_generator_states(states)
        if owned is not None:
            owned.set_raw_generator_states(states_of_owned)


def _all_states(owned: OwnedState) -> list[Any]:
    return [*cpu_generator_states(), *owned.generator_states().values()]


def _set_generator_states(states: tuple[Any, Any, torch.Tensor]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.default_generator.set_state(states[2])
