"""Loaders, samplers, workers, augmentation, streams."""

from __future__ import annotations

from ..cell import EXACT_OR_SAID, Cell, both, loop

_AT = {"in the middle": (10,), "at an epoch's end and again": (7, 16)}
_UNSEEDED = {"loader": "resumable", "loader_seed": None}
# The orders that `resumable` can go back to; of the others it must say so.
_SAMPLERS = (
    "sequential",
    "shuffle",
    "shuffle, own generator",
    "sequential object",
    "with replacement",
    "random, own generator",
    "weighted",
    "weighted, own generator",
    "subset",
    "distributed",
    "own",
    "own, random state",
    "own, global random",
    "own, counts epochs",
    "own, set_epoch",
    "own, stateful",
    "list",
    "batch sampler",
    "own batches",
    "own random batches",
    "list of batches",
)
_PREFETCH = {"workers": 2, "persistent_workers": True, "loader_options": {"prefetch_factor": 4}}
_SPAWNED = {
    "workers": 1,
    "persistent_workers": True,
    "loader_options": {"multiprocessing_context": "spawn"},
    "validate": False,
    "steps": 10,
    "stops": (5,),
}


def _each(group: str, loader: str, varies: str, **fields: object) -> list[Cell]:
    """Both drivers, interrupted in the middle and at an epoch's end."""
    return [
        cell
        for where, stops in _AT.items()
        for cell in both(group, f"{varies}, {where}", loader=loader, stops=stops, **fields)
    ]


CELLS: list[Cell] = [
    # ResumableDataLoader
    *_each("data, ResumableDataLoader", "own", "fixed order", sampler="sequential"),
    *_each("data, ResumableDataLoader", "own", "shuffled, no workers", workers=0),
    *_each("data, ResumableDataLoader", "own", "2 workers", workers=2),
    *_each("data, ResumableDataLoader", "own", "persistent workers", workers=2, persistent_workers=True),
    *_each("data, ResumableDataLoader", "own", "prefetching persistent workers", **_PREFETCH),
    *_each("data, ResumableDataLoader", "own", "no augmentation", dataset="still"),
    *_each("data, ResumableDataLoader", "own", "collate that draws, 2 workers", workers=2, collate="masked"),
    *_each("data, ResumableDataLoader", "own", "collate that draws", collate="masked"),
    *both("data, ResumableDataLoader", "0 workers, then 2", workers=0, changes={"workers": 2}),
    *both("data, ResumableDataLoader", "2 workers, then 0", workers=2, changes={"workers": 0}),
    *both("data, ResumableDataLoader", "2 workers, then 3", workers=2, changes={"workers": 3}),
    *both("data, ResumableDataLoader", "batches of one", batch_size=1, network="dropout"),
    *both("data, ResumableDataLoader", "one batch an epoch", batch_size=26, stops=(1, 2, 5), steps=8),
    *both("data, ResumableDataLoader", "batch larger than the data", batch_size=40, stops=(3,), steps=8),
    *both("data, ResumableDataLoader", "short batch left out, 2 workers", drop_last=True, workers=2, stops=(6, 11)),
    *both("data, ResumableDataLoader", "samples not seeded", dataset="still", loader_options={"seed_samples": False}),
    *both(
        "data, ResumableDataLoader",
        "fetches batches",
        dataset="fetches batches",
        loader_options={"seed_samples": False},
    ),
    *both(
        "data, ResumableDataLoader", "worker_init_fn seeds", workers=2, loader_options={"worker_init_fn": "seed_worker"}
    ),
    *both("data, ResumableDataLoader", "spawned workers", **_SPAWNED),
    *[
        cell
        for own in ("own NumPy generator", "own Python generator")
        for workers in (0, 2)
        for cell in both(
            "data, ResumableDataLoader",
            f"dataset with its {own}, {workers} workers",
            dataset=own,
            workers=workers,
            expected=EXACT_OR_SAID,
        )
    ],
    # resumable(DataLoader)
    *[
        cell
        for sampler in _SAMPLERS
        for workers in (0, 2)
        for cell in _each(
            "data, resumable()",
            "resumable",
            f"{sampler}, {workers} workers",
            sampler=sampler,
            workers=workers,
            network="dropout",  # batches of one sample are among them
        )
    ],
    *_each("data, resumable()", "resumable", "persistent workers", workers=2, persistent_workers=True),
    *_each("data, resumable()", "resumable", "prefetching persistent workers", **_PREFETCH),
    *_each("data, resumable()", "resumable", "no augmentation", dataset="still"),
    *_each("data, resumable()", "resumable", "collate that draws", collate="masked"),
    *_each("data, resumable()", "resumable", "collate that draws, 2 workers", collate="masked", workers=2),
    *_each("data, resumable()", "resumable", "short batch left out", drop_last=True),
    *_each(
        "data, resumable()", "resumable", "not batched", batch_size=None, steps=60, network="dropout", dataset="still"
    ),
    *_each(
        "data, resumable()",
        "resumable",
        "not batched, augmented",
        batch_size=None,
        steps=60,
        network="dropout",
        dataset="augmented",
    ),
    *[
        cell
        for sampler in ("sequential", "shuffle", "weighted", "own, random state", "own random batches")
        for cell in _each(
            "data, resumable()", "resumable", f"{sampler}, no seed given", sampler=sampler, loader_seed=None
        )
    ],
    *both("data, resumable()", "no seed given, 2 workers", workers=2, **_UNSEEDED),
    *both("data, resumable()", "0 workers, then 2", loader="resumable", workers=0, changes={"workers": 2}),
    *both("data, resumable()", "2 workers, then 0", loader="resumable", workers=2, changes={"workers": 0}),
    *both("data, resumable()", "2 workers, then 3", loader="resumable", workers=2, changes={"workers": 3}),
    *both("data, resumable()", "no seed given, 2 workers, then 0", workers=2, changes={"workers": 0}, **_UNSEEDED),
    *both(
        "data, resumable()",
        "weighted, 2 workers, then 3",
        loader="resumable",
        sampler="weighted",
        workers=2,
        changes={"workers": 3},
    ),
    *both("data, resumable()", "fetches batches", loader="resumable", dataset="fetches batches"),
    *both("data, resumable()", "batches of one", loader="resumable", batch_size=1, network="dropout"),
    *both("data, resumable()", "one batch an epoch", loader="resumable", batch_size=26, stops=(1, 2, 5), steps=8),
    *both(
        "data, resumable()",
        "worker_init_fn seeds",
        loader="resumable",
        workers=2,
        loader_options={"worker_init_fn": "seed_worker"},
    ),
    *both(
        "data, resumable()",
        "spawned workers",
        loader="resumable",
        **_SPAWNED,
    ),
    *both("data, resumable()", "in fresh interpreters", loader="resumable", workers=2, fresh_interpreter=True),
    *[
        cell
        for own in ("own NumPy generator", "own Python generator")
        for workers in (0, 2)
        for cell in both(
            "data, resumable()",
            f"dataset with its {own}, {workers} workers",
            loader="resumable",
            dataset=own,
            workers=workers,
            expected=EXACT_OR_SAID,
        )
    ],
    loop("data, resumable()", "set_epoch at each pass", loader="resumable", loop=frozenset({"set_epoch"})),
    loop(
        "data, resumable()",
        "set_epoch at each pass, own sampler",
        loader="resumable",
        sampler="own, set_epoch",
        loop=frozenset({"set_epoch"}),
    ),
    loop(
        "data, resumable()",
        "saves after the pass is over",
        loader="resumable",
        stops=(7,),
        schedule=None,
        loop=frozenset({"saves after epochs"}),
    ),
]
