"""Datasets, samplers and loaders, by name."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    default_collate,
    get_worker_info,
)

import neuromanifold_gpt
from neuromanifold_gpt import ResumableDataLoader

from ..cell import Cell
from .samplers import SAMPLERS

FEATURES = 8


def sample(number: int, samples: int, noise: Any = 0.0) -> dict[str, Any]:
    """A regression sample that knows its id."""
    x = torch.linspace(-1, 1, FEATURES) * (number % samples + 1) / samples
    return {"x": x + 0.1 * noise, "y": x.sum()[None], "id": number}


class Still(Dataset[Any]):
    """Draws no random numbers."""

    def __init__(self, samples: int, first_id: int = 0) -> None:
        self.samples = samples
        self.first_id = first_id

    def __len__(self) -> int:
        return self.samples

    def noise(self, index: int) -> Any:
        return 0.0

    def __getitem__(self, index: int) -> dict[str, Any]:
        return sample(self.first_id + index, self.samples, self.noise(index))


class Augmented(Still):
    """Draws from all three global generators."""

    def noise(self, index: int) -> Any:
        return random.random() + np.random.rand() + torch.rand(FEATURES)


class OwnGenerator(Still):
    """Draws from a NumPy generator of its own."""

    def __init__(self, samples: int) -> None:
        super().__init__(samples)
        self.generator = np.random.default_rng(3)

    def noise(self, index: int) -> Any:
        return self.generator.normal()


class OwnPythonGenerator(Still):
    """Draws from a ``random.Random`` in an object that it holds."""

    def __init__(self, samples: int) -> None:
        super().__init__(samples)
        self.transforms = [random.Random(3)]

    def noise(self, index: int) -> Any:
        return self.transforms[0].random()


class CountsSamples(Still):
    """Its samples depend on how many there have been."""

    def __init__(self, samples: int, first_id: int = 0) -> None:
        super().__init__(samples, first_id)
        self.count = 0

    def noise(self, index: int) -> Any:
        self.count += 1
        return 0.01 * self.count


class OfDifficulty(Still):
    """Someone else says how noisy it is."""

    def __init__(self, samples: int, first_id: int = 0) -> None:
        super().__init__(samples, first_id)
        self.difficulty = 0
        self.opened: object | None = None

    def noise(self, index: int) -> Any:
        self.opened = self.opened or object()  # as a file is, when it is first read
        return 0.1 * self.difficulty


class FetchesBatches(Still):
    """Fetches a batch at once."""

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        return [self[index] for index in indices]


class Stream(IterableDataset[Any]):
    """A pass over all samples, shared out to the workers; the second pass has other ids."""

    def __init__(self, samples: int, augmented: bool = True) -> None:
        self.samples = samples
        self.augmented = augmented

    def numbers(self) -> Iterator[int]:
        info = get_worker_info()
        yield from range(info.id if info else 0, self.samples, info.num_workers if info else 1)

    def __iter__(self) -> Iterator[Any]:
        for number in self.numbers():
            noise = random.random() + np.random.rand() + torch.rand(FEATURES) if self.augmented else 0.0
            yield sample(number, self.samples, noise)


class Endless(Stream):
    """Never ends."""

    def __iter__(self) -> Iterator[Any]:
        number = 0
        while True:
            yield sample(number, self.samples, torch.rand(FEATURES) if self.augmented else 0.0)
            number += 1


class ShuffledStream(Stream):
    """A shuffle buffer of five samples, drawn by the global generator of Python."""

    def __iter__(self) -> Iterator[Any]:
        buffer: list[Any] = []
        for item in super().__iter__():
            buffer.append(item)
            if len(buffer) == 5:
                yield buffer.pop(random.randrange(5))
        yield from buffer


class StatefulStream(Stream):
    """Knows its position, as torchdata's protocol wants it; its noise is a function of the position."""

    def __init__(self, samples: int) -> None:
        super().__init__(samples)
        self.next_number = 0
        self.passes = 0

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        while self.next_number < self.samples:
            number = self.next_number
            self.next_number += 1
            if number % workers == worker:
                generator = torch.Generator().manual_seed(1000 * self.passes + number)
                item = sample(number, self.samples, torch.rand(FEATURES, generator=generator))
                yield {**item, "id": 1000 * self.passes + number}
        self.next_number = 0
        self.passes += 1

    def state_dict(self) -> dict[str, Any]:
        return {"next_number": self.next_number, "passes": self.passes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.next_number, self.passes = state["next_number"], state["passes"]


class CollatingStream(Stream):
    """Makes batches by itself, and counts them."""

    def __init__(self, samples: int) -> None:
        super().__init__(samples)
        self.made = 0

    def collate(self, samples: list[Any]) -> Any:
        self.made += 1
        batch = default_collate(samples)
        return {**batch, "x": batch["x"] + 0.01 * self.made}


class StatefulCollatingStream(StatefulStream, CollatingStream):
    """With the count in its state."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "made": self.made}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.made = state["made"]


class SizedStatefulStream(StatefulStream):
    """With a length."""

    def __len__(self) -> int:
        return self.samples


DATASETS: dict[str, Callable[[int], Any]] = {
    "still": Still,
    "augmented": Augmented,
    "own NumPy generator": OwnGenerator,
    "own Python generator": OwnPythonGenerator,
    "counts samples": CountsSamples,
    "of a difficulty": OfDifficulty,
    "fetches batches": FetchesBatches,
    "stream": Stream,
    "still stream": lambda samples: Stream(samples, augmented=False),
    "endless stream": Endless,
    "shuffled stream": ShuffledStream,
    "stateful stream": StatefulStream,
    "sized stateful stream": SizedStatefulStream,
    "stream that collates": CollatingStream,
    "stateful stream that collates": StatefulCollatingStream,
}


def masked(samples: list[Any]) -> Any:
    """A collate function that draws from all three generators, once for the batch."""
    batch = default_collate(samples)
    keep = torch.rand_like(batch["x"]) < 0.8
    return {**batch, "x": batch["x"] * keep * (0.9 + 0.1 * random.random() + 0.1 * np.random.rand())}


class Growing:
    """A collate function whose batches depend on how many it has made."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, samples: list[Any]) -> Any:
        self.made += 1
        batch = default_collate(samples)
        return {**batch, "x": batch["x"] + 0.01 * self.made}


class Mixing:
    """A collate function that adds a sample of the batch before."""

    def __init__(self) -> None:
        self.before: list[Any] = []

    def __call__(self, samples: list[Any]) -> Any:
        batch = default_collate(samples)
        mixed = batch["x"] + 0.1 * self.before[-1] if self.before else batch["x"]
        self.before.append(batch["x"][0])
        return {**batch, "x": mixed}


def seed_worker(worker: int) -> None:
    """What PyTorch's notes on reproducibility tell users to do."""
    seed = torch.initial_seed() % 2**32
    np.random.seed(seed)
    random.seed(seed)


COLLATES: dict[str, Callable[[Any], Any]] = {
    "masked": lambda data: masked,
    "counts": lambda data: Growing(),
    "mixes": lambda data: Mixing(),
    "the data's": lambda data: data.collate,
}
WORKER_SET_UPS = {"seed_worker": seed_worker}


def make_loader(cell: Cell, *, dataset: Any = None, kind: type[DataLoader[Any]] = DataLoader) -> Any:
    """The training loader of a cell; stock ones are of the ``kind``."""
    if cell.combined is not None and dataset is None:
        return _combined(cell, kind)
    data = DATASETS[cell.dataset](cell.samples) if dataset is None else dataset
    options: dict[str, Any] = {"num_workers": cell.workers, **cell.loader_options}
    if cell.persistent_workers:
        options["persistent_workers"] = True
    if cell.collate is not None:
        options["collate_fn"] = COLLATES[cell.collate](data)
    if isinstance(options.get("worker_init_fn"), str):
        options["worker_init_fn"] = WORKER_SET_UPS[options["worker_init_fn"]]
    if cell.loader == "bare":
        return data
    if cell.loader == "own":
        shuffle = SAMPLERS[cell.sampler](data, cell.batch_size)["shuffle"]
        return ResumableDataLoader(
            data, cell.batch_size or 1, shuffle=shuffle, seed=cell.loader_seed, drop_last=cell.drop_last, **options
        )
    options.update(SAMPLERS[cell.sampler](data, cell.batch_size))
    if "batch_sampler" not in options:
        options["batch_size"] = cell.batch_size
        if cell.drop_last:
            options["drop_last"] = True
    loader: Any = kind(data, **options)
    if cell.loader == "resumable":
        return neuromanifold_gpt.resumable(loader, seed=cell.loader_seed)
    return loader


def make_validation_loader(cell: Cell) -> Any:
    """Eight samples in two batches, in a loader of the same kind."""
    data = Augmented(8)
    if cell.driver == "lightning" and cell.loader in ("own", "bare"):
        return ResumableDataLoader(data, batch_size=4)
    return DataLoader(data, batch_size=4)


def _combined(cell: Cell, kind: type[DataLoader[Any]]) -> Any:
    longer = make_loader(cell, dataset=Augmented(cell.samples), kind=kind)
    shorter = make_loader(cell, dataset=Augmented(10, first_id=100), kind=kind)
    if cell.combined == "dict":
        return {"a": longer, "b": shorter}
    if cell.combined == "list":
        return [longer, shorter]
    return CombinedLoader({"a": longer, "b": shorter}, cell.combined)
