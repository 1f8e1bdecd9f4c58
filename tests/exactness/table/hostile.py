"""What an independent, hostile tester would think of."""

from __future__ import annotations

from ..cell import EXACT, EXACT_OR_SAID, EXACT_OR_SAID_AT_START, Cell, both, lightning, loop, warns

_LEFT = warns("DataOrderWarning", "was left")
_GROUP = "hostile"
_MODULES = ("draws everything", "warms up by hand", "averages by hand", "own loaders", "penalizes past")
_STOPS = {"in the middle": (10,), "at an epoch's end": (7,), "twice": (4, 13)}
_EVERY_EPOCH = {"every_n_epochs": 1, "save_top_k": -1}


def _flag(name: str) -> frozenset[str]:
    return frozenset({name})


CELLS: list[Cell] = [
    # the moment
    *[
        cell
        for number in range(6)
        for cell in both(
            _GROUP, f"killed at any moment, {number}", ending="kill at any moment", stops=(2 + number, 9, 15)
        )
    ],
    *both(_GROUP, "killed at any moment, 2 workers", ending="kill at any moment", stops=(3, 9, 15), workers=2),
    *both(
        _GROUP,
        "killed at any moment, resumable()",
        ending="kill at any moment",
        stops=(3, 9, 15),
        loader="resumable",
        workers=2,
    ),
    *[
        cell
        for stops in ((2,), (7,), (8,), (5, 12))
        for cell in both(_GROUP, f"killed while saving {stops}", ending="kill while saving", stops=stops)
    ],
    lightning(_GROUP, "killed in the validation at an epoch's end", ending="kill in validation", stops=(7,)),
    lightning(
        _GROUP,
        "killed in a validation inside the epoch",
        ending="kill in validation",
        stops=(9,),
        trainer={"val_check_interval": 3},
    ),
    # modules
    *[
        lightning(_GROUP, f"{module}, {where}", module=module, stops=stops)
        for module in _MODULES
        for where, stops in _STOPS.items()
    ],
    lightning(_GROUP, "own generator of the module", module="own generator", expected=EXACT_OR_SAID),
    lightning(
        _GROUP,
        "a group added by hand, before",
        module="adds a group",
        schedule=None,
        stops=(4,),
        expected=EXACT_OR_SAID,
    ),
    lightning(
        _GROUP,
        "a group added by hand, after",
        module="adds a group",
        schedule=None,
        stops=(10,),
        expected=EXACT_OR_SAID,
    ),
    *[
        lightning(_GROUP, f"data module, {where}", loop=_flag("data module"), stops=stops, loader=loader)
        for loader, stops_of in (("own", _STOPS), ("resumable", {"in the middle, resumable()": (10,)}))
        for where, stops in stops_of.items()
    ],
    lightning(
        _GROUP,
        "data module, loaders made anew",
        loop=_flag("data module"),
        trainer={"reload_dataloaders_every_n_epochs": 1},
    ),
    *[
        lightning(
            _GROUP,
            f"workers seeded by Lightning, {loader}",
            loop=_flag("seeds workers"),
            loader=loader,
            workers=2,
            expected=EXACT_OR_SAID_AT_START,
        )
        for loader in ("own", "resumable", "plain")
    ],
    lightning(_GROUP, "checkpoints written by AsyncCheckpointIO", trainer={"async": True}, ending="finish"),
    lightning(_GROUP, "weights beside, in the same folder", callbacks=("weights beside",)),
    lightning(
        _GROUP,
        "more epochs",
        trainer={"max_steps": -1, "max_epochs": 4},
        changes={"trainer": {"max_steps": -1, "max_epochs": 4}},
    ),
    # networks
    *both(_GROUP, "stochastic depth and recomputation", network="stochastic depth", stops=(5, 14)),
    *both(_GROUP, "noise from a generator of the network", network="noise of its own", expected=EXACT_OR_SAID),
    # optimizers and schedules
    *both(_GROUP, "own optimizer with an odd state", optimizer="own", stops=(5, 14)),
    *both(
        _GROUP,
        "own optimizer, layers in another order",
        optimizer="own",
        network="equal layers",
        schedule=None,
        changes={"network": "equal layers, reordered"},
    ),
    # generators beside the global ones
    *both(_GROUP, "optimizer that draws", optimizer="noisy", stops=(5, 14)),
    *both(_GROUP, "schedule that draws", schedule="drawn", stops=(5, 14)),
    *both(_GROUP, "hooks that draw", network="noise in hooks", stops=(5, 14)),
    *[
        loop(_GROUP, f"Fabric, {kind}, {where}", loop=_flag("fabric"), loader=kind, stops=stops)
        for kind in ("own", "resumable")
        for where, stops in (("in the middle", (10,)), ("at an epoch's end", (7, 7)), ("often", (3, 9, 16)))
    ],
    # plain loops
    *[
        loop(
            _GROUP,
            f"calls next, {kind}, {workers} workers, {where}",
            loop=_flag("calls next"),
            stops=stops,
            workers=workers,
            loader=kind,
        )
        for kind in ("own", "resumable")
        for workers in (0, 2)
        for where, stops in (("in the middle", (10,)), ("at an epoch's end", (7,)))
    ],
    *[
        loop(
            _GROUP,
            f"leaves passes early, {kind}, {where}",
            loop=_flag("leaves passes early"),
            stops=stops,
            loader=kind,
            schedule=None,
            expected=expected,
        )
        for kind in ("own", "resumable")
        for where, stops, expected in (
            ("inside", (3, 12), EXACT),
            ("where it leaves", (5,), _LEFT),
        )
    ],
    *[
        loop(
            _GROUP,
            f"evaluates on the training loader, {kind}",
            loop=_flag("evaluates on the loader"),
            loader=kind,
            stops=(6, 13),
            expected=warns("DataOrderWarning", "another pass"),
        )
        for kind in ("own", "resumable")
    ],
    loop(_GROUP, "draws everything", loop=_flag("draws everything"), stops=(5, 10)),
    loop(_GROUP, "GradScaler that overflows", precision="fp16", loop=_flag("overflows"), stops=(3, 14)),
    # two things at once
    lightning(
        _GROUP,
        "much at once",
        stops=(2, 5, 8),
        steps=11,
        accumulate=4,
        clip=0.1,
        precision="bf16-mixed",
        workers=2,
        callbacks=("EMA", "EarlyStopping, patient", "best", "counts hooks"),
        schedule="plateau, validation loss",
        trainer={"val_check_interval": 3},
    ),
    lightning(
        _GROUP,
        "much at once, resumable()",
        stops=(4, 13),
        loader="resumable",
        sampler="weighted",
        workers=2,
        persistent_workers=True,
        collate="masked",
        callbacks=("EMA of buffers", "best"),
        schedule="one cycle",
        network="attentive",
    ),
    loop(
        _GROUP,
        "much at once",
        stops=(2, 5, 8),
        steps=11,
        accumulate=4,
        clip=0.1,
        precision="fp16",
        workers=2,
        average="EMA of buffers",
        schedule="plateau, patient",
        loop=_flag("draws everything"),
    ),
    lightning(
        _GROUP,
        "much at once, saved by epoch",
        ending="finish",
        stops=(10, 17),
        steps=30,
        schedule="plateau, validation loss",
        callbacks=("EMA", "counts hooks", "EarlyStopping, patient"),
        save=_EVERY_EPOCH,
    ),
]
