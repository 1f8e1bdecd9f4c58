"""The content of a checkpoint in memory, and how it is restored into live objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from neuromanifold_gpt.checkpoint.commit import Checkpoint
from neuromanifold_gpt.state.generators import Generator
from neuromanifold_gpt.state.loop_parts import LoopParts, Stateful
from neuromanifold_gpt.state.restore import restore_into


@dataclass
class LoadedCheckpoint:
    """The content of a checkpoint, in CPU memory.

    Attributes:
        form: ``"separated"``, ``"lightning"``, ``"nanogpt"`` or ``"plain"``.
        global_step: number of optimizer steps taken.
        epoch: epoch in which it was taken, if known.
        model_state: state dict of the model.
        optimizer_states: state dict of each optimizer; ``None`` if not loaded or not there.
        lr_scheduler_states: state dict of each learning-rate scheduler.
        lr_scheduler_classes: name of the class of each, if known.
        config: configuration stored with the model.
        rng_states: random number generators of each rank; empty where the file has none.
        loader_states: position in the data of each loader, on this rank.
        own_generators: states of random number generators of the model and of users' Python modules, of each rank.
        stateful_generators: those that were given to ``stateful=``, of each rank, by name.
        metrics: what metrics in the model have accumulated, of each rank.
        modes: names of the frozen parameters, and of the modules in evaluation mode.
        pruned_weights: see :func:`pruned_weights`.
        gradients: of each rank, see :func:`capture_gradients`.
        stateful_states: further objects by name.
        checkpoint: the files it came from; ``None`` for a unified checkpoint.
    """

    form: str
    global_step: int
    epoch: int | None
    model_state: dict[str, Any]
    optimizer_states: list[dict[str, Any]] | None = None
    lr_scheduler_states: list[dict[str, Any]] = field(default_factory=list)
    lr_scheduler_classes: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    rng_states: list[dict[str, Any]] = field(default_factory=list)
    loader_states: list[dict[str, Any]] = field(default_factory=list)
    own_generators: list[dict[str, Any]] = field(default_factory=list)
    stateful_generators: list[dict[str, Any]] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    modes: dict[str, list[str]] = field(default_factory=dict)
    pruned_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    gradients: list[dict[str, Any]] = field(default_factory=list)
    stateful_states: dict[str, Any] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None

    def restore(
        self,
        *,
        model: nn.Module | None = None,
        optimizers: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = (),
        schedulers: Stateful | Sequence[Stateful] | None = (),
        loaders: Stateful | Sequence[Stateful] | None = (),
        stateful: Mapping[str, Stateful | Generator] | None = None,
        strict: bool = True,
    ) -> LoadedCheckpoint:
        """Put everything back into objects built as at the save. Call it just before the first step.

        The random number generators come last, so that nothing above disturbs them. Optimizer state is matched to
        parameters by name. Its tensors may share memory with :attr:`optimizer_states` afterwards.

        Returns:
            itself.

        Raises:
            StateMismatchError: names, shapes or numbers of objects differ; the message lists them, and model and
                optimizers are as before. With ``strict=False``, what fits is loaded.
            MissingOptimizerError: optimizers were given, but the checkpoint has none, or they were not loaded.
            TypeError: ``model`` is no module, or one of ``loaders`` has no position to restore.

        Warns:
            EnvironmentChangedWarning: torch, threads, device or determinism settings differ from the save.
            InexactResumeWarning: weights are rounded, since the model holds them in a narrower type; an optimizer was
                built with other settings; parameters were frozen otherwise; modules had other values that no checkpoint
                has; schedulers, loaders or others were saved and are not given; random number generators are not there,
                or are in variables and were in another state, and no ``loaders`` are given.
        """
        restore_into(LoopParts.given(model, optimizers, schedulers, loaders, stateful), self, strict=strict)
        return self
