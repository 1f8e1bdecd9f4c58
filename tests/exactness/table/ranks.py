"""Two processes with gloo, one of which is killed; and another number of them on resume."""

from __future__ import annotations

from ..cell import Cell, both, lightning, loop, warns

_TWO = {"ranks": 2, "batch_size": 2, "network": "dropout"}
_ONE = {"ranks": 1, "batch_size": 4}
_ORDER_STAYS = warns("UserWarning", keeps=("ids",))

CELLS: list[Cell] = [
    *both("ranks", "2, one killed in the middle", stops=(10,), **_TWO),
    *both("ranks", "2, one killed at an epoch's end", stops=(7,), **_TWO),
    *both("ranks", "2, one killed twice", stops=(4, 13), **_TWO),
    *both("ranks", "2, batch norm", ranks=2, batch_size=2, network="plain", stops=(10,), drop_last=True),
    *both("ranks", "2, 2 workers", stops=(10,), workers=2, **_TWO),
    *both("ranks", "2, accumulated", stops=(3,), steps=9, accumulate=4, **_TWO),
    *both("ranks", "2, max_steps reached", stops=(10,), ending="finish", **_TWO),
    *both("ranks", "2, resumable()", stops=(10,), loader="resumable", **_TWO),
    *both("ranks", "2, then 1", stops=(10,), changes=_ONE, expected=_ORDER_STAYS, **_TWO),
    *both(
        "ranks",
        "1, then 2",
        stops=(10,),
        network="dropout",
        changes={"ranks": 2, "batch_size": 2},
        expected=_ORDER_STAYS,
    ),
    lightning("ranks", "2, validation every third batch", stops=(10,), trainer={"val_check_interval": 3}, **_TWO),
    lightning("ranks", "2, EMA", stops=(10,), callbacks=("EMA",), **_TWO),
    loop("ranks", "2, fused AdamW", stops=(10,), optimizer_options={"lr": 0.01, "fused": True}, **_TWO),
]
