"""Give each sample random numbers of its own: a pure function of (seed, epoch, sample id).

Whatever a dataset draws from ``random``, ``numpy.random`` or torch while it makes a sample is then the same in every
process, in any order of fetching, and before and after a resume. The generators of the fetching process are put back
afterwards, so that fetching early or late does not change what the model draws.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from neuromanifold_gpt.data.order import mixed

SampleKey = tuple[int, int]  # epoch, sample id
_COLLATION = 1  # so that a batch of one does not draw its sample's numbers again


class SampleBatch(list[Any]):
    """The samples of one batch, with the seed that its collation may draw from."""

    def __init__(self, samples: Sequence[Any], seed: int) -> None:
        super().__init__(samples)
        self.seed = seed


class SeededSamples(Dataset[Any]):
    """``source`` addressed by (epoch, sample id), each sample made under its own seed.

    Args:
        source: a map-style dataset.
        seed: of the data order.
        seed_samples: ``False`` for datasets that draw no random numbers; it saves some 50 µs a sample.
    """

    def __init__(self, source: Any, seed: int, seed_samples: bool) -> None:
        self.source = source
        self._seed = seed
        self._seed_samples = seed_samples

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, keys: list[SampleKey]) -> SampleBatch:
        """What ``DataLoader`` calls for a batch."""
        epoch, ids = keys[0][0], [sample_id for _, sample_id in keys]
        batch_seed = mixed(self._seed, _COLLATION, epoch, *ids) if self._seed_samples else 0
        if not self._seed_samples:
            fetch_many = getattr(self.source, "__getitems__", None)
            samples = fetch_many(ids) if fetch_many else [self.source[sample_id] for sample_id in ids]
            return SampleBatch(samples, batch_seed)
        with isolated_generators():
            return SampleBatch([self._seeded_sample(key) for key in keys], batch_seed)

    def _seeded_sample(self, key: SampleKey) -> Any:
        seed_generators(mixed(self._seed, *key))
        return self.source[key[1]]


class SeededCollate:
    """``collate`` under a seed of the batch's own: masking collators draw random numbers too."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self._collate = collate

    def __call__(self, samples: SampleBatch) -> Any:
        """Collate the samples of one batch."""
        with isolated_generators():
            seed_generators(samples.seed)
            return self._collate(list(samples))


def seed_generators(seed: int) -> None:
    """Seed the CPU generators of this process; accelerators keep theirs."""
    random.seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
    torch.default_generator.manual_seed(seed)


@contextmanager
def isolated_generators() -> Iterator[None]:
    """Put the CPU generators back, whatever is drawn inside."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch_state = torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.default_generator.set_state(torch_state)
