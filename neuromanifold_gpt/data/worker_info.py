"""What ``torch.utils.data.get_worker_info()`` says."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data._utils import worker as torch_worker


@contextmanager
def as_data_worker(number: int, workers: int, seed: int, dataset: Any) -> Iterator[None]:
    """Let it say what it says in the data worker of this number; if there are no ``workers``, what it says anyway."""
    actual = torch_worker._worker_info
    if workers:
        torch_worker._worker_info = _info(number, workers, seed, dataset)
    try:
        yield
    finally:
        torch_worker._worker_info = actual


class AsBefore:
    """A ``worker_init_fn`` that makes each worker the one that its batches had where the epoch began.

    ``DataLoader`` gives batches to its workers in turn, beginning with the first one, wherever in the epoch it begins.
    Workers that persist keep their numbers in later epochs.

    Args:
        worker_init_fn: the user's own.
        batches: of the epoch that are over.
    """

    def __init__(self, worker_init_fn: Callable[[int], None] | None, batches: int) -> None:
        self._worker_init_fn, self._batches = worker_init_fn, batches

    def __call__(self, worker_id: int) -> None:
        """In a worker, whose dataset is a :class:`SeededSamples`: users know that which it stands for."""
        info = torch_worker._worker_info
        assert info is not None
        number = (worker_id + self._batches) % info.num_workers
        base_seed = info.seed - worker_id
        seed, dataset = base_seed + number, info.dataset.source  # type: ignore[attr-defined]
        torch_worker._worker_info = _info(number, info.num_workers, seed, dataset)
        if number != worker_id:
            random.seed(seed)
            torch.manual_seed(seed)
            np.random.seed(torch_worker._generate_state(base_seed, number))
        if self._worker_init_fn is not None:
            self._worker_init_fn(number)


def _info(number: int, workers: int, seed: int, dataset: Any) -> torch_worker.WorkerInfo:
    return torch_worker.WorkerInfo(id=number, num_workers=workers, seed=seed, dataset=dataset)
