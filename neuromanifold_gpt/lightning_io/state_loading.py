"""Load weights and optimizer states by name, where Lightning loads them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning, MissingOptimizerError, StateMismatchError
from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.lightning_io.content import RESUME_KEY
from neuromanifold_gpt.state.module_loading import errors_as_mismatch, under_own_names
from neuromanifold_gpt.state.modules import parameter_names
from neuromanifold_gpt.state.optimizers import (
    check_group_order,
    keep_saved_dtypes,
    match_optimizer_state,
    without_names,
)
from neuromanifold_gpt.state.settings import check_classes


def require_optimizers(checkpoint: Mapping[str, Any], path: Any) -> None:
    """Refuse to train on from a model file alone.

    Raises:
        MissingOptimizerError: the checkpoint, loaded from ``path``, has no optimizer states.
    """
    if "optimizer_states" not in checkpoint:
        raise MissingOptimizerError(
            f"{path}: this checkpoint is model-only, so training cannot resume from it. Give another one, or start "
            "anew from its weights: load_checkpoint(path, load_optimizer=False)."
        )


def warn_of_stock_checkpoint() -> None:
    """Say that a checkpoint of Lightning alone is resumed.

    Warns:
        InexactResumeWarning: always.
    """
    warn_user(
        "the checkpoint was written without SeparatedCheckpoint: it has no random number generators, so the resume "
        "cannot be exact.",
        InexactResumeWarning,
    )


def own_names_hook(pl_module: LightningModule) -> Callable[..., None]:
    """A ``load_state_dict`` pre-hook: translate clean names, and say what does not fit before anything is changed."""
    expected = weakref.ref(pl_module)

    def use_own_names(module: torch.nn.Module, state: dict[str, Any], *_: Any) -> None:
        own = expected()
        if module is not own or own is None:
            return  # a copy of the module, such as an average of its weights: not what Lightning loads into
        # What is asked for does not reach this hook: torch collects what is missing, and complains later.
        renamed = under_own_names(module, state, strict=own.strict_loading, is_loading=True)
        state.clear()
        state.update(renamed)

    return use_own_names


def load_by_names(trainer: Trainer, on_optimizers_loaded: Callable[[list[dict[str, Any]]], None]) -> None:
    """Let the strategy load by the names of parameters, and say what does not fit.

    Args:
        trainer: whose strategy it is.
        on_optimizers_loaded: called with the states of the checkpoint.
    """
    strategy = trainer.strategy
    load_model, load_optimizers = strategy.load_model_state_dict, strategy.load_optimizer_state_dict

    def load_model_or_say(*arguments: Any, **options: Any) -> None:
        with errors_as_mismatch():  # parts of the module may load in a way of their own
            load_model(*arguments, **options)

    def load_optimizers_by_name(checkpoint: Mapping[str, Any]) -> None:
        load_optimizer_states(trainer, load_optimizers, checkpoint)
        on_optimizers_loaded(checkpoint["optimizer_states"])

    strategy.load_model_state_dict = load_model_or_say  # type: ignore[method-assign]
    strategy.load_optimizer_state_dict = load_optimizers_by_name  # type: ignore[method-assign]


def load_doubles(module: LightningModule, state: Mapping[str, Any]) -> None:
    """Load weights in double precision again: Lightning has loaded them before it made the module one of doubles."""
    live = module.state_dict()
    for name, saved in under_own_names(module, dict(state), strict=False).items():
        if isinstance(saved, torch.Tensor) and name in live and saved.dtype == live[name].dtype == torch.float64:
            live[name].copy_(saved)


def load_optimizer_states(trainer: Trainer, load: Callable[[Any], None], checkpoint: Mapping[str, Any]) -> None:
    """Load optimizer states by the names of parameters, in the types they were saved in.

    The strategy's own function ``load`` goes by position and casts.

    Raises:
        StateMismatchError: other optimizers, groups or parameters than at the save.
    """
    names = parameter_names(trainer.lightning_module)
    saved = checkpoint["optimizer_states"]
    if len(saved) != len(trainer.optimizers):
        raise StateMismatchError(
            f"the checkpoint has the state of {len(saved)} optimizers, the module configures "
            f"{len(trainer.optimizers)}. Configure them as at the save."
        )
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    if not _makes_schedulers(trainer):
        _check_schedulers(schedulers, checkpoint)
    if schedulers:  # their state counts groups
        for optimizer, state in zip(trainer.optimizers, saved, strict=True):
            check_group_order(optimizer, state, names)
    strict = trainer.lightning_module.strict_loading
    matched = [
        match_optimizer_state(optimizer, state, names, strict=strict)
        for optimizer, state in zip(trainer.optimizers, saved, strict=True)
    ]
    load({**checkpoint, "optimizer_states": [without_names(state) for state in matched]})
    for optimizer, state in zip(trainer.optimizers, matched, strict=True):
        keep_saved_dtypes(optimizer, state)


def _check_schedulers(schedulers: list[Any], checkpoint: Mapping[str, Any]) -> None:
    if len(schedulers) != len(checkpoint["lr_schedulers"]):
        raise StateMismatchError(
            f"the checkpoint has the state of {len(checkpoint['lr_schedulers'])} learning-rate schedulers, the module "
            f"configures {len(schedulers)}. Configure them as at the save."
        )
    check_classes("scheduler", schedulers, checkpoint.get(RESUME_KEY, {}).get("scheduler_classes", []))


def _makes_schedulers(trainer: Trainer) -> bool:
    """Whether a callback replaces the module's schedulers while it trains."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return any(isinstance(callback, StochasticWeightAveraging) for callback in callbacks)
