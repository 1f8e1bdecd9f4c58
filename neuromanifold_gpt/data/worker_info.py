"""What ``torch.utils.data.get_worker_info()`` says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data._utils import worker as torch_worker


@contextmanager
def as_data_worker(number: int, workers: int, seed: int, dataset: Any) -> Iterator[None]:
    """Let it say what it says in the data worker of this number; if there are no ``workers``, what it says anyway."""
    actual = torch_worker._worker_info
    if workers:
        info = torch_worker.WorkerInfo(id=number, num_workers=workers, seed=seed, dataset=dataset)
        torch_worker._worker_info = info
    try:
        yield
    finally:
        torch_worker._worker_info = actual
