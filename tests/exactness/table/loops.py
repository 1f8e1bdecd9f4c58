"""Lightning's loop: validation, callbacks, logging, limits; and what modules do in their hooks."""

from __future__ import annotations

from typing import Any

from ..cell import EXACT, EXACT_OR_SAID, NOT_SILENT, Cell, lightning, warns

_TRAINERS: dict[str, dict[str, Any]] = {
    "validation every third batch": {"val_check_interval": 3},
    "validation every quarter of an epoch": {"val_check_interval": 0.25},
    "validation by steps, across epochs": {"val_check_interval": 5, "check_val_every_n_epoch": None},
    "validation every second epoch": {"check_val_every_n_epoch": 2},
    "no sanity check": {"num_sanity_val_steps": 0},
    "whole sanity check": {"num_sanity_val_steps": -1},
    "limited validation": {"limit_val_batches": 1},
    "limited training batches": {"limit_train_batches": 5},
    "limited training batches, by share": {"limit_train_batches": 0.5},
    "limited by epochs": {"max_steps": -1, "max_epochs": 3},
    "limited by epochs and batches": {"max_steps": -1, "max_epochs": 4, "limit_train_batches": 5},
    "limited by epochs and steps": {"max_epochs": 2},
    "at least so many steps": {"min_steps": 15},
    "loaders made anew each epoch": {"reload_dataloaders_every_n_epochs": 1},
    "deterministic": {"deterministic": True},
    "anomalies detected": {"detect_anomaly": True},
    "profiled": {"profiler": "simple"},
    "no inference mode": {"inference_mode": False},
    "barebones off, logging every step": {"log_every_n_steps": 1},
}
_STOPPERS = ("EarlyStopping", "EarlyStopping, patient", "EarlyStopping, training loss", "EarlyStopping, threshold")
_MODULES = ("logs means", "metrics", "persistent metrics", "keeps outputs", "own keys", "ends epochs early", "iterator")
_STOPS = {"in the middle": (10,), "at an epoch's end": (7,), "twice": (4, 13)}

CELLS: list[Cell] = [
    *[
        lightning("loop", f"{name}, {where}", trainer=options, stops=stops)
        for name, options in _TRAINERS.items()
        for where, stops in _STOPS.items()
    ],
    *[lightning("loop", f"no validation, {where}", validate=False, stops=stops) for where, stops in _STOPS.items()],
    lightning(
        "loop",
        "max_steps with every_n_epochs=1, no validation",
        validate=False,
        stops=(14,),
        save={"every_n_epochs": 1, "save_top_k": -1},
    ),
    lightning(
        "loop",
        "sanity check on resume only",
        trainer={"num_sanity_val_steps": 0},
        changes={"trainer": {"num_sanity_val_steps": 2}},
    ),
    lightning("loop", "no sanity check on resume", changes={"trainer": {"num_sanity_val_steps": 0}}),
    *[
        lightning(
            "loop",
            f"{name}, plateau, {where}",
            trainer=_TRAINERS[name],
            stops=stops,
            schedule="plateau, validation loss",
        )
        for name in ("validation every third batch", "limited by epochs and batches", "no sanity check")
        for where, stops in _STOPS.items()
    ],
    # callbacks
    *[
        lightning(
            "callbacks",
            f"{stopper}, stopped at {stop}",
            callbacks=(stopper,),
            stops=(stop,),
            steps=40,
            trainer={"val_check_interval": 3},
        )
        for stopper in _STOPPERS
        for stop in (2, 3, 6, 7)
    ],
    lightning(
        "callbacks", "EarlyStopping, every second validation lost", callbacks=("EarlyStopping",), stops=(8,), steps=60
    ),
    lightning(
        "callbacks",
        "EarlyStopping, and at least 30 steps",
        callbacks=("EarlyStopping",),
        stops=(20,),
        steps=60,
        trainer={"val_check_interval": 3, "min_steps": 30},
    ),
    *[
        lightning("callbacks", f"{best}, {where}", callbacks=(best,), stops=stops, trainer={"val_check_interval": 3})
        for best in ("best", "best of training")
        for where, stops in _STOPS.items()
    ],
    *[
        lightning(
            "callbacks",
            f"stock best, {where}",
            callbacks=("stock best",),
            stops=stops,
            trainer={"val_check_interval": 3},
            same_place=True,
        )
        for where, stops in _STOPS.items()
    ],
    *[
        lightning("callbacks", f"{name}, {where}", callbacks=(name,), stops=stops)
        for name in ("counts hooks", "draws everywhere", "progress bar")
        for where, stops in _STOPS.items()
    ],
    lightning("callbacks", "counts hooks, cut short by max_steps", callbacks=("counts hooks",), ending="finish"),
    lightning(
        "callbacks",
        "counts hooks, cut short by max_steps, saved by epoch",
        callbacks=("counts hooks",),
        ending="finish",
        save={"every_n_epochs": 1, "save_top_k": -1},
    ),
    lightning(
        "callbacks",
        "counts hooks, on an exception",
        callbacks=("counts hooks",),
        ending="exception",
        save={"every_n_train_steps": 4, "save_top_k": -1, "save_on_exception": True},
    ),
    lightning("callbacks", "should_stop set by the user, later", callbacks=("stops later",), stops=(10,)),
    *[
        lightning(
            "callbacks",
            f"should_stop set by the user, in this process alone, {where}",
            callbacks=("counts hooks",),
            ending="should_stop",
            stops=stops,
            **more,
            expected=expected,
        )
        for where, stops, more, expected in (
            ("in the middle", (10,), {}, warns("InexactResumeWarning", "should_stop in the middle of an epoch")),
            ("at an epoch's end", (7,), {}, EXACT),
            ("when a validation is due", (10,), {"trainer": {"val_check_interval": 3}}, EXACT),
            ("without a validation", (10,), {"validate": False}, EXACT),
        )
    ],
    lightning("callbacks", "Timer", callbacks=("Timer",), clocks=("time_elapsed",)),
    lightning("callbacks", "ModelPruning", callbacks=("pruning",), expected=NOT_SILENT),
    lightning(
        "callbacks", "LearningRateFinder", callbacks=("LearningRateFinder",), module="tunable", expected=EXACT_OR_SAID
    ),
    lightning(
        "callbacks",
        "several at once",
        callbacks=("EMA", "EarlyStopping, patient", "best", "counts hooks"),
        stops=(4, 13),
        trainer={"val_check_interval": 3},
    ),
    # hooks of modules
    *[
        lightning("module", f"{module}, {where}", module=module, stops=stops)
        for module in _MODULES
        for where, stops in _STOPS.items()
    ],
    lightning(
        "module",
        "set up in on_train_epoch_start",
        module="curriculum",
        stops=(10,),
        expected=warns("InexactResumeWarning", "Curriculum"),
    ),
    lightning("module", "set up in on_train_epoch_start, at an epoch's end", module="curriculum", stops=(7,)),
    # loggers
    *[
        lightning(
            "logging",
            f"CSVLogger, {where}",
            stops=stops,
            trainer={"logger": "csv", "log_every_n_steps": 1},
            callbacks=("LearningRateMonitor",),
        )
        for where, stops in _STOPS.items()
    ],
    lightning("logging", "CSVLogger, every third step", stops=(10,), trainer={"logger": "csv", "log_every_n_steps": 3}),
    lightning(
        "logging",
        "CSVLogger, mean over the epoch",
        stops=(10,),
        module="logs means",
        trainer={"logger": "csv", "log_every_n_steps": 1},
    ),
    lightning(
        "logging",
        "CSVLogger, steps lost since the last save",
        stops=(11,),
        trainer={"logger": "csv", "log_every_n_steps": 1},
        save={"every_n_train_steps": 4, "save_top_k": -1},
    ),
    lightning(
        "logging",
        "CSVLogger, max_steps reached",
        stops=(10,),
        ending="finish",
        trainer={"logger": "csv", "log_every_n_steps": 1},
    ),
]
