"""How the content of a checkpoint goes back into the parts of a plain loop: what is checked, what is set, what is said.

Everything is checked before anything is changed, and the global random number generators come last, so that nothing
else disturbs them.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from neuromanifold_gpt.checkpoint.environment import current_environment, warn_if_changed
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning, MissingOptimizerError, StateMismatchError
from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.state.generators import set_generator_state
from neuromanifold_gpt.state.gradients import restore_gradients
from neuromanifold_gpt.state.loop_parts import DATA_KEY, LoopParts
from neuromanifold_gpt.state.metrics import load_metric_states, metrics_of
from neuromanifold_gpt.state.module_loading import load_module_state
from neuromanifold_gpt.state.modules import (
    restore_modes,
    warn_if_rounded,
    warn_of_other_modes_once_stepped,
)
from neuromanifold_gpt.state.optimizers import (
    check_group_order,
    has_names,
    load_matched_state,
    match_optimizer_state,
)
from neuromanifold_gpt.state.own_generators import restore_generators_around
from neuromanifold_gpt.state.pruned_weights import restore_pruned_weights
from neuromanifold_gpt.state.rng import own_state, rank_and_world_size, restore_own_rng_state
from neuromanifold_gpt.state.settings import check_classes, warn_of_ignored_settings
from neuromanifold_gpt.state.steps_taken_again import compare_steps
from neuromanifold_gpt.state.unsaved.before_next_batch import follow_up_to_batch
from neuromanifold_gpt.state.unsaved.loop_numbers import FIRST_NUMBERS_KEY, LOOP_NUMBERS, LOOP_NUMBERS_KEY
from neuromanifold_gpt.state.unsaved.modes_of_steps import follow_modes
from neuromanifold_gpt.state.unsaved.stock_loaders import warn_of_seeds_of_iterators
from neuromanifold_gpt.state.unsaved.unsaved_values import (
    DETAILS_KEY,
    compare_at_first_batch,
    warn_of_other_values,
    with_what_they_read,
)

if TYPE_CHECKING:
    from neuromanifold_gpt.state.loaded_checkpoint import LoadedCheckpoint


def restore_into(parts: LoopParts, loaded: LoadedCheckpoint, *, strict: bool) -> None:
    """Raises and warns as :meth:`LoadedCheckpoint.restore` says."""
    matched = _matched_states(parts, loaded, strict)
    if parts.model is not None:
        _restore_model(parts, parts.model, loaded, strict)
    for optimizer, state in zip(parts.optimizers, matched, strict=True):
        load_matched_state(optimizer, state)
        if loaded.global_step:  # else schedulers warn that they step before the optimizer has
            optimizer._opt_called = True  # type: ignore[attr-defined]
    _load_state_dicts(parts, loaded)
    if parts.model is not None and (gradients := _of_this_rank(loaded.gradients)):
        restore_gradients(parts.model, gradients, parts.optimizers, parts.further)
    _warn_of_what_is_other(parts, loaded)
    at_first_batch = _restore_metrics_and_generators(parts, loaded)
    if parts.own_loaders and parts.optimizers and parts.model is not None:
        at_first_batch.append(functools.partial(compare_at_first_batch, parts.model, parts.beside_model))
    _restore_global_generators(parts, loaded, at_first_batch)
    if loaded.checkpoint is not None and parts.optimizers and strict and rank_and_world_size()[0] == 0:
        compare_steps(loaded.checkpoint, parts.optimizers)


def _matched_states(parts: LoopParts, loaded: LoadedCheckpoint, strict: bool) -> list[dict[str, Any]]:
    """The state for each optimizer, when all fits; nothing is changed so far."""
    if parts.optimizers and not loaded.optimizer_states:
        where = loaded.checkpoint.name if loaded.checkpoint else "the checkpoint"
        raise MissingOptimizerError(
            f"{where} has no optimizer state (it was saved without, or was loaded with load_optimizer=False). "
            "Restore without optimizers to continue from the weights alone."
        )
    states = loaded.optimizer_states or []
    _check_number("optimizers", parts.optimizers, states)
    _check_number("schedulers", parts.schedulers, loaded.lr_scheduler_states)
    check_classes("scheduler", parts.schedulers, loaded.lr_scheduler_classes)
    _check_number("loaders", parts.loaders, loaded.loader_states)
    saved_generators = _of_this_rank(loaded.stateful_generators)
    missing = {*parts.further} - {*loaded.stateful_states} | {*parts.generators} - {*saved_generators}
    if missing:
        known = sorted({*loaded.stateful_states, *saved_generators})
        raise StateMismatchError(f"the checkpoint has no state of {sorted(missing)}, only of {known}.")
    if parts.optimizers and parts.model is None and any(map(has_names, states)):
        raise StateMismatchError(
            "optimizer state is matched to parameters by their names in the model, and no model was given. Give it."
        )
    names, matched = parts.parameter_names, []
    for optimizer, state in zip(parts.optimizers, states, strict=False):
        matched.append(match_optimizer_state(optimizer, state, names, strict=strict))
        if parts.schedulers:
            check_group_order(optimizer, state, names)
    return matched


def _check_number(kind: str, given: list[Any], saved: list[Any]) -> None:
    if given and len(given) != len(saved):
        raise StateMismatchError(
            f"the checkpoint has the state of {len(saved)} {kind}, {len(given)} were given. Give them all, in the "
            "order of the save."
        )


def _restore_model(parts: LoopParts, model: nn.Module, loaded: LoadedCheckpoint, strict: bool) -> None:
    load_module_state(model, loaded.model_state, strict=strict)
    restore_pruned_weights(model, loaded.pruned_weights)
    if loaded.modes:
        warn_of_other_modes_once_stepped(model, restore_modes(model, loaded.modes), parts.optimizers)
    if parts.optimizers:
        warn_if_rounded(model, loaded.model_state)
        warn_of_other_values(model, _details(loaded, DETAILS_KEY), parts.beside_model)
    follow_modes(model, parts.optimizers, is_saved=False)


def _load_state_dicts(parts: LoopParts, loaded: LoadedCheckpoint) -> None:
    """Of all but the model and its optimizers."""
    for scheduler, state in zip(parts.schedulers, loaded.lr_scheduler_states, strict=False):
        scheduler.load_state_dict(copy.deepcopy(state))
    for loader, state in zip(parts.loaders, loaded.loader_states, strict=False):
        loader.load_state_dict(copy.deepcopy(state))
    for name, thing in parts.further.items():
        thing.load_state_dict(copy.deepcopy(loaded.stateful_states[name]))
    together = parts.own_loaders.values()
    for own_loader in together:
        own_loader.restored_with(other for other in together if other is not own_loader)


def _warn_of_what_is_other(parts: LoopParts, loaded: LoadedCheckpoint) -> None:
    """Data, settings and environment than at the save; and of what the checkpoint has and nobody takes."""
    for number, own_loader in parts.own_loaders.items():
        data, collate_fns = _details(loaded, DATA_KEY), {"collate_fn": own_loader.collate_fn}
        own_loader.shown_data.warn_of_others(data, f"{number}.", collate_fns)
    if parts.optimizers:
        warn_of_ignored_settings(parts.optimizers, loaded.optimizer_states or [])
        _warn_of_what_nobody_takes(parts, loaded)
    if loaded.checkpoint is not None and parts.model is not None and loaded.optimizer_states is not None:
        device = next((parameter.device.type for parameter in parts.model.parameters()), "cpu")
        _, world_size = rank_and_world_size()
        warn_if_changed(loaded.checkpoint.manifest.environment, current_environment(device, world_size))


def _warn_of_what_nobody_takes(parts: LoopParts, loaded: LoadedCheckpoint) -> None:
    of_rank_0 = loaded.stateful_states if rank_and_world_size()[0] == 0 else {}  # others may have no average, say
    named = {*of_rank_0, *_of_this_rank(loaded.stateful_generators)}
    left = [f"{len(loaded.lr_scheduler_states)} schedulers"] * bool(loaded.lr_scheduler_states and not parts.schedulers)
    left += [f"{len(loaded.loader_states)} loaders"] * bool(loaded.loader_states and not parts.loaders)
    left += sorted(named - parts.further.keys() - parts.generators.keys())
    if left:
        warn_user(
            f"the checkpoint has state that nobody takes, so training does not continue exactly: "
            f"{', '.join(left)}. Give restore() what was given to save_checkpoint().",
            InexactResumeWarning,
        )


def _restore_metrics_and_generators(parts: LoopParts, loaded: LoadedCheckpoint) -> list[Callable[[], None]]:
    """But for the global ones; gives what is to be called when the first batch is there."""
    if loaded.metrics:
        load_metric_states(metrics_of(parts.module, parts.further), own_state(loaded.metrics))
    saved = _of_this_rank(loaded.stateful_generators)
    for name, generator in parts.generators.items():
        try:
            set_generator_state(generator, saved[name])
        except TypeError as error:
            raise StateMismatchError(
                f"stateful: {name}: {error}, found another in the checkpoint. Give the kind of the save."
            ) from error
    if not loaded.own_generators or parts.model is None:
        return []
    restore_late = restore_generators_around(
        parts.module,
        own_state(loaded.own_generators),
        parts.by_number,
        tuple(parts.generators.values()),
        with_what_they_read(parts.beside_model),
        with_variables=bool(parts.loaders),
        silently=_is_for_weights_only(parts, loaded),
    )
    return [restore_late]


def _is_for_weights_only(parts: LoopParts, loaded: LoadedCheckpoint) -> bool:
    """Whether more than the model was saved, and nobody takes it; a loop that steps by hand saves no more."""
    return not (parts.optimizers or parts.loaders) and bool(loaded.optimizer_states or loaded.loader_states)


def _restore_global_generators(
    parts: LoopParts, loaded: LoadedCheckpoint, at_first_batch: list[Callable[[], None]]
) -> None:
    """And follow what is drawn, and changed, from here on up to the first batch."""
    if not loaded.rng_states:
        if parts.optimizers:
            warn_user(
                "the checkpoint has no states of random number generators, since another program has written it: what "
                "draws from them (the order of batches, dropout) goes on otherwise.",
                InexactResumeWarning,
            )
        return
    restore_own_rng_state(loaded.rng_states)
    warn_of_seeds_of_iterators(parts.loaders, loaded.loader_states)
    numbers, counts = _details(loaded, LOOP_NUMBERS_KEY), (loaded.global_step, loaded.epoch)
    follow_up_to_batch("restore", parts.loaders, parts.with_settings, numbers, counts, at_first_batch)
    if parts.optimizers and (first := _details(loaded, FIRST_NUMBERS_KEY)):
        LOOP_NUMBERS.compare_in_first_step(numbers, first)


def _of_this_rank(states: list[dict[str, Any]]) -> dict[str, Any]:
    return own_state(states) if states else {}


def _details(loaded: LoadedCheckpoint, key: str) -> dict[str, str]:
    """Of the manifest, which rank 0 wrote; on other ranks none."""
    rank, _ = rank_and_world_size()
    details = loaded.checkpoint.manifest.details.get(key) if loaded.checkpoint and rank == 0 else None
    return details if isinstance(details, dict) else {}
