"""Stock loaders in Lightning without a word from the user, and several loaders at once."""

from __future__ import annotations

from ..cell import EXACT, EXACT_OR_SAID, EXACT_OR_SAID_AT_START, Cell, lightning, loop, warns

_LEFT = warns("DataOrderWarning", "was left")
_ENDLESS = {"validate": False, "trainer": {"limit_train_batches": 7}}
CELLS: list[Cell] = [
    lightning(
        "data, plain DataLoader",
        f"{sampler}, {data}, {workers} workers, {where}",
        loader="plain",
        sampler=sampler,
        dataset=data,
        workers=workers,
        stops=stops,
        expected=EXACT_OR_SAID_AT_START,
    )
    for sampler in (
        "sequential",
        "shuffle",
        "shuffle, own generator",
        "weighted",
        "own",
        "own, random state",
        "own, global random",
        "own, counts epochs",
        "own, set_epoch",
        "own random batches",
        "with replacement",
    )
    for data, workers in (("still", 0), ("augmented", 0), ("augmented", 2))
    for where, stops in (("in the middle", (10,)), ("at an epoch's end", (7,)))
]
CELLS += [
    lightning(
        "data, plain DataLoader",
        "persistent workers",
        loader="plain",
        workers=2,
        persistent_workers=True,
        expected=EXACT_OR_SAID_AT_START,
    ),
    lightning(
        "data, plain DataLoader",
        "collate that draws",
        loader="plain",
        collate="masked",
        expected=EXACT_OR_SAID_AT_START,
    ),
    lightning(
        "data, plain DataLoader",
        "stream",
        loader="plain",
        dataset="stream",
        sampler="stream",
        expected=EXACT_OR_SAID_AT_START,
    ),
    lightning(
        "data, plain DataLoader",
        "stream, 2 workers",
        loader="plain",
        dataset="stream",
        sampler="stream",
        workers=2,
        network="dropout",
        expected=EXACT_OR_SAID_AT_START,
    ),
    lightning(
        "data, plain DataLoader",
        "stateful stream",
        loader="plain",
        dataset="stateful stream",
        sampler="stream",
        expected=EXACT_OR_SAID_AT_START,
    ),
    lightning(
        "data, plain DataLoader",
        "endless stream",
        loader="plain",
        dataset="endless stream",
        sampler="stream",
        **_ENDLESS,
        expected=EXACT_OR_SAID_AT_START,
    ),
    lightning(
        "data, plain DataLoader",
        "2 workers, then 0",
        loader="plain",
        workers=2,
        changes={"workers": 0},
        expected=EXACT_OR_SAID,
    ),
]
# several loaders at once
CELLS += [
    lightning(
        "data, CombinedLoader", f"{mode} of {loader}, stopped at {stop}", loader=loader, combined=mode, stops=(stop,)
    )
    for mode in ("max_size_cycle", "min_size", "max_size", "dict", "list")
    for loader in ("own", "resumable")
    for stop in (2, 3, 5, 7, 10)
]
CELLS += [
    lightning("data, CombinedLoader", "max_size_cycle, 2 workers", combined="max_size_cycle", workers=2, stops=(4, 10)),
    lightning(
        "data, CombinedLoader",
        "max_size_cycle of plain loaders",
        loader="plain",
        combined="max_size_cycle",
        expected=EXACT_OR_SAID_AT_START,
    ),
    *[
        loop(
            "data, CombinedLoader",
            f"two zipped loaders, {kind}, {where}",
            combined="list",
            loader=kind,
            stops=stops,
            expected=expected,
        )
        for kind in ("own", "resumable")
        for where, stops, expected in (
            ("inside", (2, 10), EXACT),
            ("where the shorter ends", (3,), _LEFT),
        )
    ],
]
