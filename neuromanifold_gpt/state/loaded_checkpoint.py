"""The content of a checkpoint in memory, and how it is restored into live objects."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from neuromanifold_gpt.checkpoint.commit import Checkpoint
from neuromanifold_gpt.checkpoint.environment import current_environment, warn_if_changed
from neuromanifold_gpt.checkpoint.errors import (
    InexactResumeWarning,
    MissingOptimizerError,
    StateMismatchError,
)
from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.state.generators import Generator, set_generator_state
from neuromanifold_gpt.state.gradients import restore_gradients
from neuromanifold_gpt.state.inspection.users_objects import has_position
from neuromanifold_gpt.state.metrics import load_metric_states, metrics_of
from neuromanifold_gpt.state.modules import (
    load_module_state,
    parameter_names,
    require_module,
    restore_modes,
    unwrap,
    warn_if_rounded,
    warn_of_other_modes_once_stepped,
)
from neuromanifold_gpt.state.optimizers import (
    check_group_order,
    has_names,
    load_matched_state,
    match_optimizer_state,
)
from neuromanifold_gpt.state.own_generators import by_number, restore_generators_around
from neuromanifold_gpt.state.rng import own_state, rank_and_world_size, restore_own_rng_state
from neuromanifold_gpt.state.save import DATA_KEY, Stateful, as_list, as_stateful, without_generators
from neuromanifold_gpt.state.settings import check_classes, warn_of_ignored_settings
from neuromanifold_gpt.state.steps_taken_again import compare_steps
from neuromanifold_gpt.state.unsaved.before_next_batch import follow_up_to_batch
from neuromanifold_gpt.state.unsaved.loop_numbers import FIRST_NUMBERS_KEY, LOOP_NUMBERS, LOOP_NUMBERS_KEY
from neuromanifold_gpt.state.unsaved.modes_of_steps import follow_modes
from neuromanifold_gpt.state.unsaved.saved_things import is_optimizer
from neuromanifold_gpt.state.unsaved.stock_loaders import warn_of_seeds_of_iterators
from neuromanifold_gpt.state.unsaved.unsaved_values import (
    DETAILS_KEY,
    compare_at_first_batch,
    warn_of_other_values,
    with_what_they_read,
)


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
        if model is not None:
            require_module(model)
        optimizers, schedulers = as_list(optimizers), as_list(schedulers)
        loaders = as_stateful("loaders", loaders)
        optimizer_states = self._optimizer_states_for(optimizers)
        _check_number("optimizers", optimizers, optimizer_states)
        _check_number("schedulers", schedulers, self.lr_scheduler_states)
        check_classes("scheduler", schedulers, self.lr_scheduler_classes)
        _check_number("loaders", loaders, self.loader_states)
        further, generators = without_generators(stateful)
        saved_generators: dict[str, Any] = own_state(self.stateful_generators) if self.stateful_generators else {}
        missing = sorted({*further} - {*self.stateful_states} | {*generators} - {*saved_generators})
        if missing:
            known = sorted({*self.stateful_states, *saved_generators})
            raise StateMismatchError(f"the checkpoint has no state of {missing}, only of {known}.")
        if optimizers and model is None and any(map(has_names, optimizer_states)):
            raise StateMismatchError(
                "optimizer state is matched to parameters by their names in the model, and no model was given. Give it."
            )
        names = parameter_names(model) if model is not None else {}
        matched = []  # before anything is changed
        for optimizer, state in zip(optimizers, optimizer_states, strict=False):
            matched.append(match_optimizer_state(optimizer, state, names, strict=strict))
            if schedulers:
                check_group_order(optimizer, state, names)
        if model is not None:
            load_module_state(model, self.model_state, strict=strict)
            if optimizers:
                warn_if_rounded(model, self.model_state)
                kept = [*optimizers, *schedulers, *loaders, *further.values()]
                warn_of_other_values(model, self._values_of_save(DETAILS_KEY), kept)
            if self.modes:
                warn_of_other_modes_once_stepped(model, restore_modes(model, self.modes), optimizers)
            follow_modes(model, optimizers, is_saved=False)
        for optimizer, state in zip(optimizers, matched, strict=True):
            load_matched_state(optimizer, state)
            if self.global_step:  # else schedulers warn that they step before the optimizer has
                optimizer._opt_called = True  # type: ignore[attr-defined]
        targets = [*schedulers, *loaders, *further.values()]
        states = [
            *(self.lr_scheduler_states if schedulers else []),
            *(self.loader_states if loaders else []),
            *(self.stateful_states[name] for name in further),
        ]
        for target, state in zip(targets, states, strict=True):
            target.load_state_dict(copy.deepcopy(state))
        gradients: dict[str, Any] = own_state(self.gradients) if self.gradients and model is not None else {}
        if gradients and model is not None:
            restore_gradients(model, gradients, optimizers, further)
        together: list[Any] = list(filter(has_position, loaders))
        for loader in together:
            loader.restored_with(other for other in together if other is not loader)
        self._warn_of_other_data(loaders)
        if optimizers:
            warn_of_ignored_settings(optimizers, optimizer_states)
            self._warn_of_what_nobody_takes(schedulers, loaders, stateful or {})
        self._warn_of_other_environment(model)
        module = unwrap(model) if model is not None else nn.Module()
        self._restore_beside_state(module, further, generators)
        at_first_batch: list[Callable[[], None]] = []
        if self.own_generators and model is not None:
            restore_late = restore_generators_around(
                module,
                own_state(self.own_generators),
                by_number(optimizers=optimizers, schedulers=schedulers),
                tuple(generators.values()),
                with_what_they_read([*optimizers, *targets]),
                with_variables=bool(loaders),
                silently=not optimizers and not loaders,
            )
            at_first_batch.append(restore_late)
        if together and optimizers and model is not None:
            at_first_batch.append(functools.partial(compare_at_first_batch, model, [*optimizers, *targets]))
        if self.rng_states:
            restore_own_rng_state(self.rng_states)
            warn_of_seeds_of_iterators(loaders, self.loader_states or [])
            numbers, counts = self._values_of_save(LOOP_NUMBERS_KEY), (self.global_step, self.epoch)
            followed = [*schedulers, *filter(is_optimizer, optimizers)]
            follow_up_to_batch("restore", loaders, followed, numbers, counts, at_first_batch)
            if optimizers and (first := self._values_of_save(FIRST_NUMBERS_KEY)):
                LOOP_NUMBERS.compare_in_first_step(numbers, first)
        elif optimizers:
            warn_user(
                "the checkpoint has no states of random number generators, since another program has written it: what "
                "draws from them (the order of batches, dropout) goes on otherwise.",
                InexactResumeWarning,
            )
        if self.checkpoint is not None and optimizers and strict and rank_and_world_size()[0] == 0:
            compare_steps(self.checkpoint, optimizers)
        return self

    def _restore_beside_state(
        self, module: nn.Module, further: dict[str, Stateful], generators: dict[str, Generator]
    ) -> None:
        """Metrics, and generators that were given."""
        if self.metrics:
            load_metric_states(metrics_of(module, further), own_state(self.metrics))
        for name, generator in generators.items():
            try:
                set_generator_state(generator, own_state(self.stateful_generators)[name])
            except TypeError as error:
                raise StateMismatchError(
                    f"stateful: {name}: {error}, found another in the checkpoint. Give the kind of the save."
                ) from error

    def _warn_of_what_nobody_takes(
        self, schedulers: list[Stateful], loaders: list[Stateful], stateful: Collection[str]
    ) -> None:
        saved_generators: dict[str, Any] = own_state(self.stateful_generators) if self.stateful_generators else {}
        left = [f"{len(self.lr_scheduler_states)} schedulers"] * bool(self.lr_scheduler_states and not schedulers)
        left += [f"{len(self.loader_states)} loaders"] * bool(self.loader_states and not loaders)
        left += [name for name in sorted({*self.stateful_states, *saved_generators}) if name not in stateful]
        if left:
            warn_user(
                f"the checkpoint has state that nobody takes, so training does not continue exactly: "
                f"{', '.join(left)}. Give restore() what was given to save_checkpoint().",
                InexactResumeWarning,
            )

    def _optimizer_states_for(self, optimizers: list[torch.optim.Optimizer]) -> list[dict[str, Any]]:
        if optimizers and not self.optimizer_states:
            where = self.checkpoint.name if self.checkpoint else "the checkpoint"
            raise MissingOptimizerError(
                f"{where} has no optimizer state (it was saved without, or was loaded with load_optimizer=False). "
                "Restore without optimizers to continue from the weights alone."
            )
        return self.optimizer_states or []

    def _warn_of_other_data(self, loaders: list[Any]) -> None:
        saved = self._values_of_save(DATA_KEY)
        for number, loader in enumerate(loaders):
            if has_position(loader):
                loader.shown_data.warn_of_others(saved, f"{number}.")

    def _values_of_save(self, key: str) -> dict[str, str]:
        """Those of the manifest, which rank 0 wrote; on other ranks none."""
        rank, _ = rank_and_world_size()
        saved = self.checkpoint.manifest.details.get(key) if self.checkpoint and rank == 0 else None
        return saved if isinstance(saved, dict) else {}

    def _warn_of_other_environment(self, model: nn.Module | None) -> None:
        if self.checkpoint is None or model is None or self.optimizer_states is None:
            return
        device = next((parameter.device.type for parameter in model.parameters()), "cpu")
        _, world_size = rank_and_world_size()
        warn_if_changed(self.checkpoint.manifest.environment, current_environment(device, world_size))


def _check_number(kind: str, given: list[Any], saved: list[Any]) -> None:
    if given and len(given) != len(saved):
        raise StateMismatchError(
            f"the checkpoint has the state of {len(saved)} {kind}, {len(given)} were given. Give them all, in the "
            "order of the save."
        )
