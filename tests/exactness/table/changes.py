"""What differs on resume: passes, is said, or is refused."""

from __future__ import annotations

from ..cell import Cell, both, lightning, loop, refuses, warns

_SAID = warns("UserWarning")
_ENVIRONMENT = warns("EnvironmentChangedWarning", keeps=("all",))

CELLS: list[Cell] = [
    *both("changed on resume", "more steps", ending="finish", stops=(10,), schedule="steps"),
    *both(
        "changed on resume",
        "learning rate, no schedule",
        schedule=None,
        changes={"optimizer_options": {"lr": 0.003}},
        expected=_SAID,
    ),
    *both("changed on resume", "learning rate, warm-up", changes={"optimizer_options": {"lr": 0.003}}, expected=_SAID),
    *both(
        "changed on resume",
        "weight decay",
        changes={"optimizer_options": {"lr": 0.01, "weight_decay": 0.5}},
        expected=_SAID,
    ),
    *both(
        "changed on resume", "betas", changes={"optimizer_options": {"lr": 0.01, "betas": (0.5, 0.9)}}, expected=_SAID
    ),
    *[
        cell
        for loader in ("own", "resumable")
        for cell in [
            *both(
                "changed on resume", f"batch size, {loader}", loader=loader, changes={"batch_size": 8}, expected=_SAID
            ),
            *both(
                "changed on resume",
                f"seed of the order, {loader}",
                loader=loader,
                changes={"loader_seed": 6},
                expected=_SAID,
            ),
            *both(
                "changed on resume",
                f"size of the dataset, {loader}",
                loader=loader,
                changes={"samples": 30},
                expected=_SAID,
            ),
            *both(
                "changed on resume",
                f"shuffling, {loader}",
                loader=loader,
                changes={"sampler": "sequential"},
                expected=_SAID,
            ),
            *both(
                "changed on resume", f"drop_last, {loader}", loader=loader, changes={"drop_last": True}, expected=_SAID
            ),
        ]
    ],
    *both(
        "changed on resume",
        "sampler, resumable",
        loader="resumable",
        sampler="weighted",
        changes={"sampler": "own"},
        expected=_SAID,
    ),
    *both("changed on resume", "another loader", changes={"loader": "resumable"}, expected=_SAID),
    *both("changed on resume", "seed of everything", stops=(10,)),  # every resumed process has another one
    *both("changed on resume", "torch version", environment="another torch", expected=_ENVIRONMENT),
    *both(
        "changed on resume",
        "number of threads",
        environment="another number of threads",
        expected=warns("EnvironmentChangedWarning"),
    ),
    *both(
        "changed on resume",
        "deterministic algorithms",
        environment="deterministic algorithms",
        expected=warns("EnvironmentChangedWarning"),
    ),
    *both(
        "changed on resume",
        "another optimizer",
        changes={"optimizer": "SGD", "optimizer_options": {"lr": 0.01}},
        expected=refuses("CheckpointError"),
    ),
    *both("changed on resume", "another scheduler", changes={"schedule": "cosine"}, expected=_SAID),
    *both("changed on resume", "a scheduler less", changes={"schedule": None}, expected=_SAID),
    *both("changed on resume", "a scheduler more", schedule=None, changes={"schedule": "cosine"}, expected=_SAID),
    *both(
        "changed on resume",
        "order of the groups",
        optimizer="head and body",
        changes={"optimizer_options": {"lr": 0.01, "reversed": True}},
        expected=refuses("StateMismatchError"),
    ),
    *both(
        "changed on resume",
        "accumulation",
        accumulate=4,
        steps=9,
        stops=(3,),
        changes={"accumulate": 2},
        expected=_SAID,
    ),
    *both("changed on resume", "clipping", clip=0.1, changes={"clip": None}, expected=_SAID),
    *both("changed on resume", "precision", precision="bf16-mixed", changes={"precision": None}, expected=_SAID),
    lightning(
        "changed on resume", "a callback less", callbacks=("EarlyStopping",), changes={"callbacks": ()}, expected=_SAID
    ),
    lightning(
        "changed on resume",
        "validation interval",
        trainer={"val_check_interval": 3},
        changes={"trainer": {"val_check_interval": 2}},
        expected=_SAID,
    ),
    loop("changed on resume", "an average less", average="EMA", changes={"average": None}, expected=_SAID),
    loop(
        "changed on resume",
        "an average more",
        changes={"average": "EMA"},
        expected=refuses("StateMismatchError", "average"),
    ),
    loop("changed on resume", "a loader more", changes={"combined": "list"}, expected=refuses("StateMismatchError")),
]
