"""``train.py``: interrupted, and continued with other flags."""

from __future__ import annotations

from typing import Any

from ..cell import Cell, refuses, train_py, warns

_PASSES: dict[str, Any] = {
    "num_workers": 2,
    "save_interval": 5,
    "log_interval": 3,
}
_SAID: dict[str, Any] = {
    "learning_rate": 2e-3,
    "batch_size": 8,
    "seed": 7,
    "dropout": 0.3,
    "weight_decay": 0.0,
    "beta1": 0.8,
    "beta2": 0.95,
    "grad_clip": 0.5,
    "warmup_iters": 4,
    "lr_decay_iters": 30,
    "gradient_accumulation_steps": 2,
    "dtype": "bfloat16",
}
_REFUSED: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4, "block_size": 16, "bias": True}

_ACCUMULATED = {"gradient_accumulation_steps": 3, "lr_decay_iters": 18}

CELLS: list[Cell] = [
    train_py("train.py", "killed"),
    train_py("train.py", "killed three times", stops=(6, 11, 17)),
    train_py("train.py", "max_iters raised", ending="finish", stops=(8,)),
    train_py(
        "train.py",
        "killed, accumulation and cosine decay",
        flags=_ACCUMULATED,
    ),
    train_py("train.py", "killed, bfloat16", flags={"dtype": "bfloat16"}),
    train_py("train.py", "SIGTERM", ending="sigterm"),
    *[train_py("train.py", f"{flag} changed", changes={"flags": {flag: value}}) for flag, value in _PASSES.items()],
    *[
        train_py(
            "train.py", f"{flag} changed", changes={"flags": {flag: value}}, expected=warns("changed setting", flag)
        )
        for flag, value in _SAID.items()
    ],
    *[
        train_py("train.py", f"{flag} changed", changes={"flags": {flag: value}}, expected=refuses("ConfigError", flag))
        for flag, value in _REFUSED.items()
    ],
]
