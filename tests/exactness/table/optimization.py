"""Every optimizer of torch.optim and every scheduler."""

from __future__ import annotations

from typing import Any

from ..cell import Cell, both, lightning, loop
from ..ingredients.optimization import OPTIMIZERS, SCHEDULES

_FOREACH = (
    "ASGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
)
_FUSED = ("Adagrad", "Adam", "AdamW", "SGD")
_VARIANTS: dict[str, dict[str, Any]] = {
    "Adam, amsgrad": {"amsgrad": True},
    "AdamW, amsgrad, fused": {"amsgrad": True, "fused": True},
    "AdamW, maximize": {"maximize": True, "lr": 0.0001},
    "AdamW, rate in a tensor": {"tensor_lr": True},
    "AdamW, rate in a tensor, foreach, capturable off": {"tensor_lr": True, "foreach": False},
    "AdamW, differentiable off": {"differentiable": False, "weight_decay": 0.1},
    "SGD, nesterov": {"nesterov": True, "weight_decay": 0.01},
    "SGD, no momentum": {"momentum": 0.0},
    "SGD, dampening": {"dampening": 0.1},
    "RMSprop, centered with momentum": {"centered": True, "momentum": 0.9},
    "Adadelta, capturable off": {"weight_decay": 0.01},
    "NAdam, decoupled": {"decoupled_weight_decay": True, "weight_decay": 0.1},
    "RAdam, decoupled": {"decoupled_weight_decay": True, "weight_decay": 0.1},
    "Adagrad, accumulator": {"initial_accumulator_value": 0.1, "lr_decay": 0.1},
    "LBFGS, strong Wolfe": {"line_search_fn": "strong_wolfe"},
}
_NO_BATCH_NORM = {"network": "dropout"}


def _optimizer(varies: str, optimizer: str, options: dict[str, Any], **fields: Any) -> list[Cell]:
    network = {"Muon": "matrices", "SparseAdam": "sparse embedding"}.get(optimizer, "plain")
    options = {**OPTIMIZERS[optimizer], **options}
    return both(
        "optimizer", varies, optimizer=optimizer, optimizer_options=options, network=network, stops=(5, 14), **fields
    )


CELLS: list[Cell] = [
    *[cell for name in OPTIMIZERS for cell in _optimizer(name, name, {})],
    *[cell for name in _FOREACH for cell in _optimizer(f"{name}, foreach", name, {"foreach": True})],
    *[cell for name in _FUSED for cell in _optimizer(f"{name}, fused", name, {"fused": True})],
    *[cell for varies, options in _VARIANTS.items() for cell in _optimizer(varies, varies.split(",")[0], options)],
    *_optimizer("AdamW, fused, bf16-mixed", "AdamW", {"fused": True}, precision="bf16-mixed"),
    *_optimizer("AdamW, then foreach", "AdamW", {}, changes={"optimizer_options": {"lr": 0.01, "foreach": False}}),
    *both("optimizer", "groups with rates of their own", optimizer="head and body", stops=(5, 14)),
    *both("optimizer", "named parameters", optimizer="named AdamW", stops=(5, 14)),
    loop("optimizer", "Muon and AdamW", optimizer="Muon+AdamW", stops=(5, 14)),
    lightning("optimizer", "Muon and AdamW, by hand", optimizer="Muon+AdamW", module="by hand", stops=(5, 14)),
    lightning("optimizer", "one, by hand", module="by hand", stops=(5, 14)),
    lightning("optimizer", "GAN, two by hand", module="GAN", schedule="steps", stops=(5, 14, 21), steps=30),
    lightning("optimizer", "GAN, two by hand, at an epoch's end", module="GAN", schedule=None, stops=(14,), steps=30),
    lightning(
        "optimizer", "GAN, two by hand, 2 workers", module="GAN", schedule="steps", stops=(10,), steps=30, workers=2
    ),
    lightning(
        "optimizer",
        "rate and decay changed by a callback",
        callbacks=("changes the rate",),
        schedule=None,
        stops=(3, 8),
    ),
    lightning("optimizer", "steps that are skipped", module="skips steps", stops=(2, 9)),
]
_INTERRUPTED = {
    "step": {"in the middle": (5,), "at an epoch's end": (7,), "twice": (3, 16)},
    "epoch": {"in the middle": (10,), "at an epoch's end": (14,), "twice": (6, 21), "after an epoch's first": (8,)},
}


def _runs(name: str) -> list[tuple[str, Any]]:
    return list(_INTERRUPTED[SCHEDULES[name].interval].items())


def _of(name: str) -> dict[str, Any]:
    """What the schedule needs of the scenario."""
    fields: dict[str, Any] = {"schedule": name, "steps": 20 if SCHEDULES[name].interval == "step" else 30}
    if "cyclic with momentum" in name:
        fields.update(optimizer="SGD", optimizer_options={"lr": 0.01, "momentum": 0.9})
    if SCHEDULES[name].monitor == "train_loss_epoch":
        fields.update(module="logs means")
    return fields


CELLS += [
    cell
    for name in SCHEDULES
    for where, stops in _runs(name)
    for cell in both("scheduler", f"{name}, {where}", stops=stops, **_of(name))
    if not (cell.driver == "loop" and SCHEDULES[name].monitor == "train_loss_epoch")
]
CELLS += [
    cell
    for schedule in ("plateau, validation loss", "warm-up by epoch", "one cycle", "warm restarts", "sequential")
    for stop in (6, 7, 8, 13)
    for cell in both(
        "scheduler",
        f"{schedule}, max_steps reached at {stop}",
        schedule=schedule,
        stops=(stop,),
        ending="finish",
        steps=24,
    )
]
CELLS += [
    lightning(
        "scheduler",
        "plateau on the mean of the epoch, gathered by the user",
        schedule="plateau, mean training loss",
        module="keeps outputs",
        stops=(10,),
        steps=24,
    ),
    lightning("scheduler", "stepped by the module", module="steps its schedule", stops=(5, 14)),
    lightning(
        "scheduler",
        "plateau, validation inside the epoch",
        schedule="plateau, validation loss",
        trainer={"val_check_interval": 3},
        stops=(6, 10),
        steps=24,
    ),
    lightning(
        "scheduler",
        "plateau, validation every second epoch",
        schedule="plateau, validation loss",
        trainer={"check_val_every_n_epoch": 2},
        stops=(10,),
        steps=30,
    ),
    *both("scheduler", "plateau, accumulated", schedule="plateau, validation loss", accumulate=4, stops=(3,), steps=9),
]
