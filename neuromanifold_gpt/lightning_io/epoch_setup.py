"""Callbacks of Lightning that set up each epoch in a hook which a resume in the epoch's middle leaves out."""

from __future__ import annotations

import dis
import math
import re
import sys
import types
from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, GradientAccumulationScheduler, StochasticWeightAveraging
from torch import nn

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.lightning_io.tensor_sums import persistent_buffers
from neuromanifold_gpt.state.inspection.instructions import instructions_of
from neuromanifold_gpt.state.inspection.plain_reading import all_attributes, bases_of, variables_of_class
from neuromanifold_gpt.state.inspection.users_objects import is_a_time
from neuromanifold_gpt.state.module_values import is_stored

_STOCK = (LightningModule.on_train_epoch_start, Callback.on_train_epoch_start)
_COMPUTES = {"math", *vars(math), "min", "max", "abs", "round", "float", "int", "len", "time", "perf_counter"}
_HARMLESS = frozenset(_COMPUTES | {"print", "log", "log_dict", "info", "debug", "super", "on_train_epoch_start"})
_FLAGGED = ("LOAD_GLOBAL", *(("LOAD_ATTR", "LOAD_SUPER_ATTR") if sys.version_info >= (3, 12) else ()))
_SETTING = re.compile(r"^(set|use)_|seed")
_SWAPPED = object()
_CHANGING = ("STORE_SUBSCR", "STORE_SLICE", "STORE_GLOBAL", "STORE_DEREF", "DELETE_", "CALL_FUNCTION_EX")


def set_up_epoch_again(trainer: Trainer) -> None:
    """Let them do what they did at the beginning of the epoch, where it is not in their state.

    Hooks of other callbacks, and of the module, are not called twice: they may count.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            callback.on_train_epoch_start(trainer)
        elif isinstance(callback, StochasticWeightAveraging) and trainer.current_epoch <= callback.swa_end:
            groups = trainer.optimizers[0].param_groups
            restored = [dict(group) for group in groups]
            callback.on_train_epoch_start(
                trainer, trainer.lightning_module
            )  # makes its scheduler, and averages nothing
            for group, values in zip(groups, restored, strict=True):
                group.update(values)  # a new scheduler sets learning rates anew


def warn_of_epoch_hooks(trainer: Trainer) -> None:
    """Say whose hook is not called again: what it sets up for the epoch is unknown here, unless it is plain numbers.

    Warns:
        InexactResumeWarning: names the classes.
    """
    users: list[Any] = [trainer.lightning_module, *trainer.callbacks]  # type: ignore[attr-defined]
    names = [
        type(user).__name__
        for user in users
        if type(user).on_train_epoch_start not in _STOCK
        and not type(user).__module__.startswith("lightning.")
        and not isinstance(user, BaseFinetuning)  # what it freezes and unfreezes is restored
        and not _sets_only_what_is_stored(user)
    ]
    if names:
        warn_user(
            f"on_train_epoch_start of {', '.join(names)} is not called again, since training resumes in the middle of "
            "the epoch. What it sets up must be in a state_dict, or be set up in on_train_start as well.",
            InexactResumeWarning,
        )


def _sets_only_what_is_stored(user: Any) -> bool:
    """Whether its hooks only compute, draw, tell, and set or fill what a checkpoint has of the module, its numbers and
    persistent buffers, or times.
    """
    hooks = (variables_of_class(base).get("on_train_epoch_start") for base in bases_of(type(user)))
    return all(hook in (None, *_STOCK) or _is_harmless(hook, user) for hook in hooks)


def _is_harmless(hook: Any, user: Any) -> bool:
    if not isinstance(hook, types.FunctionType) or hasattr(hook, "__wrapped__"):
        return False
    own, attributes = hook.__code__.co_varnames[0], all_attributes(user)
    buffers = {name for name, _ in persistent_buffers(user)} if isinstance(user, LightningModule) else set()
    before, opened = None, None
    chain: tuple[Any, ...] = ()  # ``("self", "points")``, where that was loaded just now
    steps = instructions_of(hook)
    for step, then in pairwise([*steps, steps[-1]]):
        if step.opname == "COPY":  # in ``self.name += 1``, of ``self``, which is read and set
            opened = then.argval if before == own else None
        if step.opname == "STORE_ATTR":
            name, value = step.argval, attributes.get(step.argval)
            is_kept = isinstance(user, nn.Module) and (name in buffers or is_stored(user, name, value))
            is_own = before == own or (before == _SWAPPED and opened == name)
            if not is_own or not (is_kept or is_a_time(name, value)):
                return False
        elif step.opname.startswith(_CHANGING):
            return False
        elif step.opname == "BINARY_OP" and step.argrepr.endswith("=") and then.opname != "SWAP":
            return False  # of no number of the module: ``+=`` may change a tensor, or a list
        called = before if step.opname == "PUSH_NULL" else step.argval  # from Python 3.13 on, behind what is called
        fills = step.opname != "PUSH_NULL" and len(chain) == 2 and chain[0] == own and chain[1] in buffers
        # From Python 3.13 on, one instruction may load two variables.
        before = step.argval[-1] if isinstance(step.argval, tuple) else step.argval
        chain = _with_loaded(chain, step, before)
        of_torch = len(chain) > 0 and hook.__globals__.get(chain[0]) is torch
        if of_torch and _SETTING.search(str(chain[-1])):  # such as a seed
            return False
        if _is_called(step) and not (called in _HARMLESS or fills or of_torch):
            return False
        before = _SWAPPED if step.opname == "SWAP" else before
    return True


def _with_loaded(chain: tuple[Any, ...], step: dis.Instruction, loaded: Any) -> tuple[Any, ...]:
    if step.opname.startswith(("LOAD_FAST", "LOAD_GLOBAL")):
        return (loaded,)
    if step.opname == "PUSH_NULL":
        return chain
    return (*chain, loaded) if step.opname in ("LOAD_ATTR", "LOAD_METHOD") and chain else ()


def _is_called(step: dis.Instruction) -> bool:
    """Whether an instruction takes a function, a method, or a Python module with a function, in order to call it."""
    return step.opname in ("LOAD_METHOD", "PUSH_NULL") or (step.opname in _FLAGGED and bool((step.arg or 0) & 1))
