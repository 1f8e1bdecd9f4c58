"""Streams: iterable datasets, with and without a state of their own."""

from __future__ import annotations

from ..cell import EXACT, EXACT_OR_SAID, Cell, both, lightning, loop, warns

_AT = {"in the middle": (10,), "at an epoch's end and again": (7, 16)}
_ENDLESS = {"validate": False, "trainer": {"limit_train_batches": 7}}
_STREAM_SKIPPED = warns("ReadAgainWarning", keeps=("all",), times=1)


def _each(group: str, loader: str, varies: str, **fields: object) -> list[Cell]:
    """Both drivers, interrupted in the middle and at an epoch's end."""
    return [
        cell
        for where, stops in _AT.items()
        for cell in both(group, f"{varies}, {where}", loader=loader, stops=stops, **fields)
    ]


CELLS: list[Cell] = [
    *[
        cell
        for dataset in ("stateful stream", "sized stateful stream")
        for workers in (0, 2)
        for cell in _each(
            "data, streams",
            "resumable",
            f"{dataset}, {workers} workers",
            dataset=dataset,
            sampler="stream",
            network="dropout",
            workers=workers,
        )
    ],
    *[
        cell
        for dataset in ("still stream", "stream", "shuffled stream")
        for workers in (0, 2)
        for cell in _each(
            "data, streams",
            "resumable",
            f"{dataset}, {workers} workers",
            dataset=dataset,
            sampler="stream",
            network="dropout",
            workers=workers,
            expected=_STREAM_SKIPPED,
        )
    ],
    *both(
        "data, streams",
        "stateful, not batched",
        loader="resumable",
        dataset="stateful stream",
        sampler="stream",
        network="dropout",
        batch_size=None,
        steps=60,
        stops=(30,),
    ),
    *both(
        "data, streams",
        "not batched",
        loader="resumable",
        dataset="stream",
        sampler="stream",
        network="dropout",
        batch_size=None,
        steps=60,
        stops=(30,),
        expected=_STREAM_SKIPPED,
    ),
    *both(
        "data, streams",
        "stateful, 2 workers, then 0",
        loader="resumable",
        dataset="stateful stream",
        sampler="stream",
        network="dropout",
        workers=2,
        changes={"workers": 0},
        expected=EXACT_OR_SAID,
    ),
    *both(
        "data, streams",
        "2 workers, then 0",
        loader="resumable",
        dataset="stream",
        sampler="stream",
        network="dropout",
        workers=2,
        changes={"workers": 0},
        expected=EXACT_OR_SAID,
    ),
    *both(
        "data, streams",
        "stateful, persistent workers",
        loader="resumable",
        dataset="stateful stream",
        sampler="stream",
        network="dropout",
        workers=2,
        persistent_workers=True,
    ),
    *both(
        "data, streams",
        "collate that draws",
        loader="resumable",
        dataset="stream",
        sampler="stream",
        network="dropout",
        collate="masked",
        expected=_STREAM_SKIPPED,
    ),
    *[
        cell
        for dataset, expected in (("stateful stream", EXACT), ("stream", _STREAM_SKIPPED))
        for workers in (0, 2)
        for cell in _each(
            "data, streams",
            "resumable",
            f"{dataset}, collate that counts, {workers} workers",
            dataset=dataset,
            sampler="stream",
            network="dropout",
            workers=workers,
            collate="counts",
            expected=expected,
        )
    ],
    *[
        cell
        for workers in (0, 2)
        for cell in _each(
            "data, streams",
            "resumable",
            f"stateful stream that collates, {workers} workers",
            dataset="stateful stream that collates",
            sampler="stream",
            network="dropout",
            workers=workers,
            collate="the data's",
        )
    ],
    *[
        cell
        for workers in (0, 2)
        for dataset, collate in (("stream that collates", "the data's"), ("stateful stream", "mixes"))
        for cell in both(
            "data, streams",
            f"{dataset}, {collate}, {workers} workers",
            loader="resumable",
            dataset=dataset,
            sampler="stream",
            network="dropout",
            workers=workers,
            collate=collate,
            expected=warns("DataOrderWarning", "changes as batches are made"),
        )
    ],
    *both(
        "data, streams",
        "short batch left out",
        loader="resumable",
        dataset="stateful stream",
        sampler="stream",
        network="dropout",
        drop_last=True,
        stops=(6, 10),
    ),
    loop(
        "data, streams",
        "endless",
        loader="resumable",
        dataset="endless stream",
        sampler="stream",
        network="dropout",
        expected=_STREAM_SKIPPED,
    ),
    loop(
        "data, streams",
        "endless, 2 workers",
        loader="resumable",
        dataset="endless stream",
        sampler="stream",
        network="dropout",
        workers=2,
        expected=_STREAM_SKIPPED,
    ),
    lightning(
        "data, streams",
        "endless",
        loader="resumable",
        dataset="endless stream",
        sampler="stream",
        network="dropout",
        **_ENDLESS,
        expected=_STREAM_SKIPPED,
    ),
    lightning(
        "data, streams",
        "iterable with state_dict, not in a loader",
        loader="bare",
        network="dropout",
        dataset="sized stateful stream",
        batch_size=None,
    ),
    lightning(
        "data, streams",
        "iterable with state_dict and no length, not in a loader",
        loader="bare",
        network="dropout",
        dataset="stateful stream",
        batch_size=None,
        expected=EXACT_OR_SAID,
    ),
]
