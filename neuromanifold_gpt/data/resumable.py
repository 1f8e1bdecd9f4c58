"""Make a loader that someone has already built resumable."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler

from neuromanifold_gpt.data.errors import DatasetError
from neuromanifold_gpt.data.ordered_loader import OrderedLoader
from neuromanifold_gpt.data.positioned_loader import PositionedLoader
from neuromanifold_gpt.data.sampler_order import SamplerOrder
from neuromanifold_gpt.data.stream_loader import ResumableStreamLoader

_KEPT_OPTIONS = (
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "prefetch_factor",
    "pin_memory_device",
)


def resumable(loader: DataLoader[Any], *, seed: int | None = None, seed_samples: bool = True) -> PositionedLoader:
    """A loader that gives what ``loader`` gives, and continues with the next batch after a resume.

    Dataset, sampler or batch sampler, batch size, collation and workers are those of ``loader``. Use the result in its
    place: in ``trainer.fit``, or in a plain loop with ``save_checkpoint(..., loaders=...)``.

    What is drawn while batches are made comes from (seed, epoch, position) instead of the global generators: the order
    of the sampler, and the randomness of each sample, also where samplers, datasets or transforms own a generator. So
    the batches do not depend on the number of workers, on prefetching, or on what the model draws. The order is
    repeated up to the position without loading samples; for what cannot be repeated, see :class:`SamplerOrder`.

    A stream (``IterableDataset``) with ``state_dict`` and ``load_state_dict``, on itself or on its iterator, is put at
    its position; one without is read again up to there, behind a progress bar and with one warning. See
    :class:`ResumableStreamLoader`.

    Args:
        loader: a stock ``DataLoader``.
        seed: of order and samples. By default that of the loader's or sampler's ``torch.Generator``, else that of
            ``torch.manual_seed``; a checkpoint then brings its own.
        seed_samples: ``False`` if neither the dataset nor ``collate_fn`` draws random numbers.

    Raises:
        DatasetError: ``loader`` has an iteration of its own, or gives batches in the order in which workers finish.

    Example:
        >>> loader = resumable(DataLoader(list(range(10)), batch_size=4, shuffle=True))
        >>> first = next(iter(loader))
        >>> state = loader.state_dict()
        >>> resumed = resumable(DataLoader(list(range(10)), batch_size=4, shuffle=True))
        >>> resumed.load_state_dict(state)
        >>> sorted(id for batch in [first, *resumed] for id in batch.tolist())
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    if isinstance(loader, PositionedLoader):
        return loader
    _check(loader)
    seed = None if seed is None else operator.index(seed)
    options: dict[str, Any] = {name: getattr(loader, name) for name in _KEPT_OPTIONS if hasattr(loader, name)}
    if isinstance(loader.dataset, IterableDataset):
        return ResumableStreamLoader(loader, seed, _default_seed(loader), seed_samples=seed_samples, options=options)
    return OrderedLoader(
        loader.dataset,
        SamplerOrder(loader, seed, _default_seed(loader)),
        batch_size=loader.batch_size,
        seed_samples=seed_samples,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        persistent_workers=loader.persistent_workers,
        **options,
    )


def _default_seed(loader: DataLoader[Any]) -> int:
    generators = [loader.generator, getattr(loader.sampler, "generator", None)]
    found = [generator for generator in generators if isinstance(generator, torch.Generator)]
    return int(found[0].initial_seed() if found else torch.initial_seed())


def _check(loader: DataLoader[Any]) -> None:
    if not isinstance(loader, DataLoader):
        raise DatasetError(f"resumable: expected a torch DataLoader, found {type(loader).__name__}.")
    if type(loader).__iter__ is not DataLoader.__iter__:
        raise DatasetError(
            f"resumable: {type(loader).__name__} iterates in its own way, which cannot be repeated from a position. "
            "Give a stock DataLoader, or use its own state_dict if it has one."
        )
    if not getattr(loader, "in_order", True):
        raise DatasetError(
            "resumable: the loader has in_order=False, so its order depends on how fast workers are. Use in_order=True."
        )
    sampler = loader.batch_sampler if loader.batch_sampler is not None else loader.sampler
    if isinstance(sampler, Sampler) and not hasattr(sampler, "__iter__"):
        raise DatasetError(f"resumable: {type(sampler).__name__} cannot be iterated.")
