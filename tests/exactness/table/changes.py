"""What differs on resume: passes, is said, or is refused."""

from __future__ import annotations

from typing import Any

from ..cell import NOT_SILENT, Cell, Expected, both, lightning, loop, refuses, warns

_GROUP = "changed on resume"
_ENVIRONMENT = "EnvironmentChangedWarning"


def _options(**options: Any) -> dict[str, Any]:
    return {"optimizer_options": {"lr": 0.01, **options}}


CELLS: list[Cell] = [
    # passes
    *both(_GROUP, "more steps", ending="finish", stops=(10,), schedule="steps"),
    *both(_GROUP, "seed of everything"),  # every resumed process has another one
    # changes the trajectory
    *both(_GROUP, "learning rate, no schedule", schedule=None, changes=_options(lr=0.003), expected=NOT_SILENT),
    *both(_GROUP, "learning rate, warm-up", changes=_options(lr=0.003), expected=NOT_SILENT),
    *both(_GROUP, "weight decay", changes=_options(weight_decay=0.5), expected=NOT_SILENT),
    *both(_GROUP, "betas", changes=_options(betas=(0.5, 0.9)), expected=NOT_SILENT),
    *[
        cell
        for loader in ("own", "resumable")
        for what, changes in {
            "batch size": {"batch_size": 8},
            "seed of the order": {"loader_seed": 6},
            "size of the dataset": {"samples": 30},
            "shuffling": {"sampler": "sequential"},
            "drop_last": {"drop_last": True},
        }.items()
        for cell in both(_GROUP, f"{what}, {loader}", loader=loader, changes=changes, expected=NOT_SILENT)
    ],
    *both(_GROUP, "sampler", loader="resumable", sampler="weighted", changes={"sampler": "own"}, expected=NOT_SILENT),
    *both(_GROUP, "ResumableDataLoader, then resumable()", changes={"loader": "resumable"}, expected=NOT_SILENT),
    *both(
        _GROUP,
        "resumable(), then ResumableDataLoader",
        loader="resumable",
        changes={"loader": "own"},
        expected=NOT_SILENT,
    ),
    lightning(
        _GROUP,
        "plain DataLoader, then ResumableDataLoader",
        loader="plain",
        changes={"loader": "own"},
        expected=NOT_SILENT,
    ),
    lightning(
        _GROUP,
        "ResumableDataLoader, then plain DataLoader",
        changes={"loader": "plain"},
        expected=Expected("not silent", "StateMismatchError", match="training loaders with state_dict"),
    ),
    *both(_GROUP, "another scheduler", changes={"schedule": "cosine"}, expected=NOT_SILENT),
    *both(_GROUP, "a scheduler less", changes={"schedule": None}, expected=NOT_SILENT),
    *both(_GROUP, "a scheduler more", schedule=None, changes={"schedule": "cosine"}, expected=NOT_SILENT),
    lightning(
        _GROUP, "accumulation", accumulate=4, steps=9, stops=(3,), changes={"accumulate": 2}, expected=NOT_SILENT
    ),
    lightning(_GROUP, "clipping", clip=0.1, changes={"clip": None}, expected=NOT_SILENT),
    lightning(_GROUP, "precision", precision="bf16-mixed", changes={"precision": None}, expected=NOT_SILENT),
    lightning(
        _GROUP,
        "a callback less",
        callbacks=("EarlyStopping",),
        changes={"callbacks": ()},
        expected=Expected("not silent", "UserWarning", match="callbacks used to create the checkpoint", by_anyone=True),
    ),
    loop(_GROUP, "an average less", average="EMA", changes={"average": None}, expected=NOT_SILENT),
    # another environment
    *both(_GROUP, "torch version", environment="another torch", expected=warns(_ENVIRONMENT, keeps=("all",))),
    *both(_GROUP, "number of threads", environment="another number of threads", expected=warns(_ENVIRONMENT)),
    *both(_GROUP, "deterministic algorithms", environment="deterministic algorithms", expected=warns(_ENVIRONMENT)),
    # cannot be
    *both(
        _GROUP,
        "another optimizer",
        changes={"optimizer": "SGD", "optimizer_options": {"lr": 0.01}},
        expected=refuses("CheckpointError"),
    ),
    *both(
        _GROUP,
        "order of the groups",
        optimizer="head and body",
        changes=_options(reversed=True),
        expected=refuses("StateMismatchError"),
    ),
    loop(_GROUP, "an average more", changes={"average": "EMA"}, expected=refuses("StateMismatchError", "average")),
    loop(_GROUP, "a loader more", changes={"combined": "list"}, expected=refuses("StateMismatchError")),
]
