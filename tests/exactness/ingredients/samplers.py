"""Orders of the data, by name: stock ones and users' own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)


class EveryThird(Sampler[int]):
    """A user's own order, the same in each epoch."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __iter__(self) -> Iterator[int]:
        for first in range(3):
            yield from range(first, self.samples, 3)


class OwnRandomOrder(EveryThird):
    """A user's own order with random numbers of its own, which go on from epoch to epoch."""

    def __init__(self, samples: int) -> None:
        super().__init__(samples)
        self.random = random.Random(11)

    def __iter__(self) -> Iterator[int]:
        yield from self.random.sample(range(self.samples), self.samples)


class GlobalRandomOrder(EveryThird):
    """A user's own order from Python's global generator."""

    def __iter__(self) -> Iterator[int]:
        yield from random.sample(range(self.samples), self.samples)


class CountsEpochs(EveryThird):
    """A user's own order that depends on how often it was asked."""

    def __init__(self, samples: int) -> None:
        super().__init__(samples)
        self.epochs = 0

    def __iter__(self) -> Iterator[int]:
        self.epochs += 1
        yield from sorted(range(self.samples), key=lambda index: index * (2 * self.epochs + 1) % 29)


class ByEpoch(EveryThird):
    """A user's own order that is told the epoch."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        yield from random.Random(self.epoch).sample(range(self.samples), self.samples)


class StatefulOrder(OwnRandomOrder):
    """A user's own order that knows its position, as torchdata's protocol wants it."""

    def __init__(self, samples: int) -> None:
        super().__init__(samples)
        self.order: list[int] = []
        self.given = 0

    def __iter__(self) -> Iterator[int]:
        if self.given >= len(self.order):
            self.order, self.given = self.random.sample(range(self.samples), self.samples), 0
        while self.given < len(self.order):
            self.given += 1
            yield self.order[self.given - 1]

    def state_dict(self) -> dict[str, Any]:
        version, internal, gauss = self.random.getstate()
        return {"order": list(self.order), "given": self.given, "random": [version, list(internal), gauss]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        version, internal, gauss = state["random"]
        self.order, self.given = list(state["order"]), state["given"]
        self.random.setstate((version, tuple(internal), gauss))


class Buckets(Sampler[list[int]]):
    """A user's own batches of different sizes, in a random order from torch's global generator."""

    def __init__(self, samples: int, shuffle: bool = True) -> None:
        self.batches = [list(range(first, min(first + 2 + first % 5, samples))) for first in range(0, samples, 4)]
        self.shuffle = shuffle

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(len(self.batches)).tolist() if self.shuffle else range(len(self.batches))
        for index in order:
            yield self.batches[index]


# What DataLoader is given for the order; all but the first two as a sampler or batch sampler.
SAMPLERS: dict[str, Callable[[Any, int | None], dict[str, Any]]] = {
    "sequential": lambda data, size: {"shuffle": False},
    "shuffle": lambda data, size: {"shuffle": True},
    "shuffle, own generator": lambda data, size: {"shuffle": True, "generator": torch.Generator().manual_seed(3)},
    "sequential object": lambda data, size: {"sampler": SequentialSampler(data)},
    "with replacement": lambda data, size: {"sampler": RandomSampler(data, replacement=True, num_samples=len(data))},
    "random, own generator": lambda data, size: {
        "sampler": RandomSampler(data, generator=torch.Generator().manual_seed(3))
    },
    "weighted": lambda data, size: {
        "sampler": WeightedRandomSampler([1.0 + i % 3 for i in range(len(data))], len(data))
    },
    "weighted, own generator": lambda data, size: {
        "sampler": WeightedRandomSampler(
            [1.0 + i % 3 for i in range(len(data))], len(data), generator=torch.Generator().manual_seed(3)
        )
    },
    "subset": lambda data, size: {"sampler": SubsetRandomSampler(range(0, len(data), 2))},
    "distributed": lambda data, size: {"sampler": DistributedSampler(data, num_replicas=1, rank=0, seed=2)},
    "own": lambda data, size: {"sampler": EveryThird(len(data))},
    "own, random state": lambda data, size: {"sampler": OwnRandomOrder(len(data))},
    "own, global random": lambda data, size: {"sampler": GlobalRandomOrder(len(data))},
    "own, counts epochs": lambda data, size: {"sampler": CountsEpochs(len(data))},
    "own, set_epoch": lambda data, size: {"sampler": ByEpoch(len(data))},
    "own, stateful": lambda data, size: {"sampler": StatefulOrder(len(data))},
    "list": lambda data, size: {"sampler": [i * 7 % len(data) for i in range(len(data))]},
    "batch sampler": lambda data, size: {"batch_sampler": BatchSampler(RandomSampler(data), size or 1, False)},
    "own batches": lambda data, size: {"batch_sampler": Buckets(len(data), shuffle=False)},
    "own random batches": lambda data, size: {"batch_sampler": Buckets(len(data))},
    "list of batches": lambda data, size: {"batch_sampler": [[i, i + 1, i + 2] for i in range(0, len(data) - 2, 3)]},
    "stream": lambda data, size: {},
}
