"""State that users keep in objects of their own, in no state dict."""

from __future__ import annotations

from ..cell import EXACT, EXACT_OR_SAID, EXACT_OR_SAID_AT_START, Cell, both, lightning, loop, warns

_GROUP = "own state"
_LOADERS = ("own", "resumable", "plain")
_IN_EPOCH_OR_AT_END = {"in the middle": (10,), "at an epoch's end": (7,)}
_SHUFFLED = {
    "data_module": "shuffled validation",
    "module": "validates on all",
    "trainer": {"val_check_interval": 3},
    "schedule": None,
}

CELLS: list[Cell] = [
    *[
        cell
        for loader in ("own", "resumable")
        for where, stops in _IN_EPOCH_OR_AT_END.items()
        for cell in both(
            _GROUP, f"dataset that counts, {loader}, {where}", dataset="counts samples", loader=loader, stops=stops
        )
    ],
    *[
        cell
        for loader in ("own", "resumable")
        for cell in both(
            _GROUP,
            f"dataset that counts in workers, {loader}",
            dataset="counts samples",
            loader=loader,
            workers=2,
            expected=warns("DataOrderWarning", "changes in the workers"),
        )
    ],
    lightning(
        _GROUP,
        "dataset that counts, plain",
        dataset="counts samples",
        loader="plain",
        expected=EXACT_OR_SAID_AT_START,
    ),
    *[
        lightning(
            _GROUP,
            f"{module}, {loader}, {workers} workers, {where}",
            module=module,
            dataset="of a difficulty",
            loader=loader,
            workers=workers,
            stops=stops,
            expected=EXACT_OR_SAID_AT_START,
        )
        for loader in _LOADERS
        for module, workers in (("follows steps", 0), ("raises difficulty", 0), ("raises difficulty", 2))
        for where, stops in _IN_EPOCH_OR_AT_END.items()
    ],
    *[
        lightning(
            _GROUP,
            f"a data module collates, {loader}, {where}",
            data_module="collates itself",
            loader=loader,
            stops=stops,
            expected=EXACT_OR_SAID_AT_START,
        )
        for loader in ("resumable", "plain")
        for where, stops in _IN_EPOCH_OR_AT_END.items()
    ],
    *[
        lightning(
            _GROUP,
            f"the module collates, {loader}, {workers} workers, {where}",
            data_module="collated by the module",
            module="collates",
            loader=loader,
            workers=workers,
            stops=stops,
            expected=EXACT_OR_SAID if workers else EXACT,
        )
        for loader in ("resumable", "plain")
        for workers in (0, 2)
        for where, stops in _IN_EPOCH_OR_AT_END.items()
    ],
    *[
        lightning(
            _GROUP,
            f"data by epoch, asked for every {n}, {loader}, stopped at {stop}",
            data_module="data by epoch",
            loader=loader,
            samples=10,
            trainer={"reload_dataloaders_every_n_epochs": n},
            stops=(stop,),
            expected=EXACT_OR_SAID_AT_START,
        )
        for n, stops in ((0, (4,)), (1, (3, 8)), (2, (3, 4, 10)))
        for loader in _LOADERS
        for stop in stops
    ],
    *[
        lightning(_GROUP, f"shuffled validation, {where}", **_SHUFFLED, stops=stops)
        for where, stops in {**_IN_EPOCH_OR_AT_END, "twice": (4, 10), "before the first": (2,)}.items()
    ],
    lightning(_GROUP, "shuffled validation, killed in it", **_SHUFFLED, stops=(9,), ending="kill in validation"),
    lightning(
        _GROUP, "shuffled validation, saved in it", **_SHUFFLED, stops=(10,), save_in_hook="on_validation_batch_end"
    ),
    lightning(
        _GROUP,
        "a mean over the epoch, cut short and saved at the epoch's end",
        module="logs means",
        save={"every_n_epochs": 1, "save_top_k": -1, "save_on_train_epoch_end": True},
        trainer={"val_check_interval": 3},
        ending="finish",
        stops=(8,),
    ),
    *[
        lightning(_GROUP, f"a module counts by itself, {where}", network="counts by itself", stops=stops)
        for where, stops in {**_IN_EPOCH_OR_AT_END, "twice": (4, 10)}.items()
    ],
    *[
        lightning(_GROUP, f"a module anneals by itself, {where}", network="anneals by itself", stops=stops)
        for where, stops in {**_IN_EPOCH_OR_AT_END, "twice": (4, 10)}.items()
    ],
    loop(
        _GROUP,
        "a module anneals by itself",
        network="anneals by itself",
        expected=warns("InexactResumeWarning", "temperature"),
    ),
    lightning(
        _GROUP,
        "a module anneals beside a clock",
        network="anneals beside a clock",
        expected=warns("InexactResumeWarning", "temperature"),
    ),
    *both(
        _GROUP,
        "a module carries by itself",
        network="carries by itself",
        expected=warns("InexactResumeWarning", "has_scale"),
    ),
    *both(
        _GROUP,
        "a module replays by itself",
        network="replays by itself",
        expected=warns("InexactResumeWarning", "memory"),
    ),
    lightning(
        _GROUP,
        "a callback that counts",
        callbacks=("scales by count",),
        expected=warns("InexactResumeWarning", "ScalesByCount.count"),
    ),
    *[
        lightning(_GROUP, f"a callback that draws, {where}", callbacks=("scales by chance",), stops=stops)
        for where, stops in {**_IN_EPOCH_OR_AT_END, "twice": (4, 10)}.items()
    ],
    lightning(
        _GROUP,
        "a data module that counts",
        data_module="counts batches",
        expected=warns("InexactResumeWarning", "CountsBatches.count"),
    ),
    loop(
        _GROUP,
        "a module counts by itself",
        network="counts by itself",
        expected=warns("InexactResumeWarning", "calls"),
    ),
]
