"""What users keep in variables of their Python modules, and in metrics; generators that several draw from."""

from __future__ import annotations

from ..cell import EXACT_OR_SAID_AT_START, Cell, both, lightning, warns

_GROUP = "variables"
_AT = {"in the middle": (10,), "at an epoch's end and again": (7, 16)}
_SAMPLERS = ("own, from a variable", "own, from what others draw from", "shuffle, from what others draw from")

CELLS: list[Cell] = [
    *[
        cell
        for loader in ("own", "resumable")
        for workers in (0, 2)
        for where, stops in _AT.items()
        for cell in both(
            _GROUP,
            f"dataset that draws from one, {loader}, {workers} workers, {where}",
            dataset="draws from a variable",
            loader=loader,
            workers=workers,
            stops=stops,
        )
    ],
    *[
        lightning(
            _GROUP,
            f"dataset that draws from one, plain, {workers} workers, {where}",
            dataset="draws from a variable",
            loader="plain",
            workers=workers,
            stops=stops,
        )
        for workers in (0, 2)
        for where, stops in _AT.items()
    ],
    *[
        cell
        for where, stops in _AT.items()
        for cell in both(
            _GROUP, f"a network that draws from some, {where}", network="noise from variables", stops=stops
        )
    ],
    *[
        cell
        for sampler in (
            "own, from a variable",
            "own, from what others draw from",
            "shuffle, from what others draw from",
        )
        for workers in (0, 2)
        for where, stops in _AT.items()
        for cell in both(
            _GROUP,
            f"sampler: {sampler}, {workers} workers, {where}",
            sampler=sampler,
            workers=workers,
            loader="resumable",
            network="noise from variables",
            stops=stops,
        )
    ],
    *[
        lightning(
            _GROUP,
            f"sampler: {sampler}, plain, {where}",
            sampler=sampler,
            loader="plain",
            callbacks=("scales by what others draw from",),
            stops=stops,
            **({"expected": EXACT_OR_SAID_AT_START} if sampler.startswith("own") else {}),
        )
        for sampler in (
            "own, from a variable",
            "own, from what others draw from",
            "shuffle, from what others draw from",
        )
        for where, stops in _AT.items()
    ],
    *[
        lightning(
            _GROUP,
            f"one generator for all loaders, {loader}, {where}",
            sampler="shuffle, from what others draw from",
            loader=loader,
            data_module="one generator for all loaders",
            module="validates on all",
            trainer={"val_check_interval": 3},
            stops=stops,
        )
        for loader in ("resumable", "plain")
        for where, stops in _AT.items()
    ],
    lightning(
        _GROUP,
        "sampler: with replacement, from what others draw from, plain",
        sampler="with replacement, from what others draw from",
        loader="plain",
        callbacks=("scales by what others draw from",),
        expected=warns("InexactResumeWarning", "others draw from the generator of a RandomSampler"),
    ),
    lightning(
        _GROUP,
        "sampler: with replacement, from what others hold, plain",
        sampler="with replacement, from what others draw from",
        loader="plain",
    ),
    *both(
        _GROUP,
        "a network that counts in one",
        network="counts in a variable",
        expected=warns("InexactResumeWarning", "ingredients.variables.calls"),
    ),
    *both(
        _GROUP,
        "a network that counts in its class",
        network="counts in its class",
        expected=warns("InexactResumeWarning", "CountsInClass.seen"),
    ),
    *[
        cell
        for where, stops in _AT.items()
        for cell in both(_GROUP, f"a network with a metric, {where}", network="scaled by a metric", stops=stops)
    ],
    *[
        lightning(_GROUP, f"a callback with a metric, {where}", callbacks=("scales by a metric",), stops=stops)
        for where, stops in _AT.items()
    ],
    lightning(
        _GROUP,
        "a callback with a metric, saved in a validation",
        callbacks=("scales by a metric",),
        stops=(7,),
        save_in_hook="on_validation_batch_end",
    ),
]
