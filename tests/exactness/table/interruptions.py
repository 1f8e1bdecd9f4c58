"""Where and how a run is interrupted."""

from __future__ import annotations

from ..cell import BATCHES_PER_EPOCH, EXACT_OR_SAID, Cell, both, lightning, loop, warns

_EPOCH = BATCHES_PER_EPOCH
_DIVISIBLE = {"samples": 24}  # 6 batches an epoch, none of them short
_CUT = {"drop_last": True}  # 26 samples, 6 batches
_SAVE_IN_HOOKS = {
    "on_train_batch_start": 6,
    "on_train_batch_end": 5,
    "on_train_batch_end, validation due": 6,
    "on_train_batch_end, last of the epoch": 7,
    "on_validation_start": 6,
    "on_validation_batch_start": 6,
    "on_validation_batch_end": 6,
    "on_validation_epoch_end": 6,
    "on_validation_end": 6,
    "on_train_epoch_start": 7,
    "on_train_epoch_end": 7,
}

CELLS: list[Cell] = [
    *both("interruption", "at an epoch's end", stops=(_EPOCH,)),
    *both("interruption", "after an epoch's first batch", stops=(_EPOCH + 1,)),
    *both("interruption", "in the middle of an epoch", stops=(10,)),
    *both("interruption", "one batch before an epoch's end, whose last batch is short", stops=(2 * _EPOCH - 1,)),
    *both("interruption", "after the first step of all", stops=(1,)),
    *both("interruption", "before the last step", stops=(19,)),
    *both("interruption", "one batch before an epoch's end, no short batch", stops=(11,), **_DIVISIBLE),
    *both("interruption", "at an epoch's end, no short batch", stops=(12,), **_DIVISIBLE),
    *both("interruption", "at an epoch's end, short batch left out", stops=(12,), **_CUT),
    *both("interruption", "in the middle, short batch left out", stops=(9,), **_CUT),
    *both("interruption", "twice", stops=(4, 13)),
    *both("interruption", "twice in one epoch", stops=(8, 11)),
    *both("interruption", "three times", stops=(1, 7, 12)),
    *both("interruption", "after every step", stops=tuple(range(1, 20))),
    *both("interruption", "in the same process", stops=(10,), ending="same process"),
    *both("interruption", "in the same process, at an epoch's end", stops=(7,), ending="same process"),
    lightning("interruption", "same trainer, fitted again", stops=(10,), ending="same trainer"),
    lightning("interruption", "same trainer, fitted again at an epoch's end", stops=(7,), ending="same trainer"),
    *both("interruption", "immediately after a resume, before the first new step", stops=(10, 10)),
    *both("interruption", "twice immediately after a resume", stops=(7, 7, 7)),
    *both("interruption", "max_steps reached in the middle of an epoch", stops=(10,), ending="finish"),
    *both("interruption", "max_steps reached at an epoch's end", stops=(7,), ending="finish"),
    *both("interruption", "max_steps reached twice", stops=(4, 13), ending="finish"),
    *both("interruption", "an error in the user's code", stops=(10,), ending="exception"),
    lightning("interruption", "SIGTERM", stops=(10,), ending="sigterm"),
    lightning("interruption", "SIGTERM at an epoch's end", stops=(7,), ending="sigterm"),
    *both(
        "interruption",
        "steps were lost since the last save",
        stops=(11,),
        save={"every_n_train_steps": 4, "save_top_k": -1},
    ),
    *both(
        "interruption",
        "killed before the first save",
        stops=(2,),
        starts_over=True,
        save={"every_n_train_steps": 4, "save_top_k": -1},
    ),
    *both("interruption", "in fresh interpreters", stops=(10,), fresh_interpreter=True),
    *both("interruption", "in fresh interpreters, with workers", stops=(8, 13), workers=2, fresh_interpreter=True),
    # every position, and two at a time
    *[cell for stop in range(2, 19) for cell in both("interruption, sweep", f"after step {stop}", stops=(stop,))],
    *[
        lightning("interruption, sweep", f"max_steps reached at {stop}", stops=(stop,), ending="finish")
        for stop in range(1, 16)
    ],
    *[
        lightning(
            "interruption, sweep",
            f"after step {stop}, validation every third batch",
            stops=(stop,),
            trainer={"val_check_interval": 3},
        )
        for stop in range(1, 16)
    ],
    # saves by the user
    *[
        lightning(
            "saved by hand",
            f"in {hook}, schedule {schedule}",
            save_in_hook=hook.split(",")[0],
            stops=(stop,),
            schedule=schedule,
            trainer={"val_check_interval": 3},
        )
        for hook, stop in _SAVE_IN_HOOKS.items()
        for schedule in ("warm-up", "plateau, validation loss")
    ],
    *[
        lightning(
            "saved by hand",
            f"in the middle of a step, {hook}",
            save_in_hook=hook,
            stops=(5,),
            expected=EXACT_OR_SAID,
        )
        for hook in ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
    ],
    *[
        lightning(
            "saved by hand",
            f"in {hook}, before other callbacks",
            save_in_hook=hook,
            stops=(stop,),
            callbacks=("counts hooks", "EarlyStopping, training loss"),
            trainer={"val_check_interval": 3},
            expected=warns("InexactResumeWarning", "CountsHooks"),
        )
        for hook, stop in {"on_train_batch_end": 5, "on_validation_end": 6, "on_train_epoch_end": 7}.items()
    ],
    lightning("saved by hand", "in on_train_start", save_in_hook="on_train_start", stops=(0,)),
    lightning(
        "saved by hand", "in on_train_epoch_start of the first epoch", save_in_hook="on_train_epoch_start", stops=(0,)
    ),
    loop(
        "interruption",
        "saves after the pass is over",
        stops=(7,),
        schedule=None,
        loop=frozenset({"saves after epochs"}),
    ),
    *[
        loop(
            "interruption",
            f"{loader} loader, ends epochs behind the pass, {where}",
            stops=stops,
            loader=loader,
            schedule="plateau, validation loss",
            loop=frozenset({"ends epochs behind the pass"}),
        )
        for loader in ("own", "resumable")
        for where, stops in {"at an epoch's end": (7,), "and again": (7, 7, 14), "in the middle": (10,)}.items()
    ],
    loop("interruption", "set_epoch at each pass", stops=(10,), loop=frozenset({"set_epoch"})),
    loop("interruption", "set_epoch at each pass, at an epoch's end", stops=(7,), loop=frozenset({"set_epoch"})),
]
# when checkpoints are written
CELLS += [
    lightning("save policy", "every epoch", stops=(10,), save={"every_n_epochs": 1, "save_top_k": -1}),
    lightning(
        "save policy",
        "every epoch, cut short by max_steps",
        stops=(10,),
        ending="finish",
        save={"every_n_epochs": 1, "save_top_k": -1},
    ),
    lightning(
        "save policy",
        "every epoch, no validation",
        stops=(10,),
        validate=False,
        save={"every_n_epochs": 1, "save_top_k": -1},
    ),
    lightning("save policy", "every second epoch", stops=(16,), save={"every_n_epochs": 2, "save_top_k": -1}),
    lightning("save policy", "at validation", stops=(10,), trainer={"val_check_interval": 3}, save={"save_top_k": -1}),
    lightning(
        "save policy",
        "at the training epoch's end",
        stops=(8,),
        save={"every_n_epochs": 1, "save_top_k": -1, "save_on_train_epoch_end": True},
    ),
    lightning("save policy", "by time", stops=(10,), save={"interval_sec": 0, "save_top_k": -1}),
    lightning(
        "save policy",
        "best of validation",
        stops=(10,),
        trainer={"val_check_interval": 3},
        save={"monitor": "val_loss", "save_top_k": 2},
    ),
    lightning(
        "save policy",
        "best of training",
        stops=(10,),
        save={"monitor": "train_loss", "save_top_k": 2, "every_n_train_steps": 2},
    ),
    lightning(
        "save policy",
        "monitored, each validation",
        stops=(10,),
        trainer={"val_check_interval": 3},
        save={"monitor": "val_loss", "save_top_k": -1},
    ),
    lightning("save policy", "only the newest", stops=(10,), save={"every_n_train_steps": 2, "save_top_k": 1}),
    lightning(
        "save policy",
        "only the newest, interrupted twice",
        stops=(5, 12),
        save={"every_n_train_steps": 2, "save_top_k": 1},
    ),
    lightning(
        "save policy", "last as well", stops=(10,), save={"every_n_train_steps": 3, "save_top_k": -1, "save_last": True}
    ),
    lightning(
        "save policy",
        "last as a link",
        stops=(10,),
        save={"every_n_train_steps": 3, "save_top_k": -1, "save_last": "link"},
    ),
    lightning(
        "save policy",
        "on an exception",
        stops=(10,),
        ending="exception",
        save={"every_n_train_steps": 4, "save_top_k": -1, "save_on_exception": True},
    ),
    lightning(
        "save policy",
        "on an exception at an epoch's end",
        stops=(7,),
        ending="exception",
        save={"every_n_train_steps": 4, "save_top_k": -1, "save_on_exception": True},
    ),
    loop("save policy", "every third step", stops=(10,), save={"every_n_train_steps": 3}),
]
