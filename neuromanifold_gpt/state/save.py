"""Save the state of a training loop: capture it, stage it, write it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed
from torch import nn

from neuromanifold_gpt.checkpoint.commit import Checkpoint
from neuromanifold_gpt.checkpoint.environment import current_environment
from neuromanifold_gpt.checkpoint.errors import CheckpointError, CheckpointWriteError
from neuromanifold_gpt.checkpoint.foreign import LIGHTNING_VERSION_KEY
from neuromanifold_gpt.checkpoint.lock import writing
from neuromanifold_gpt.checkpoint.naming import CheckpointPaths, paths_of_name, step_name
from neuromanifold_gpt.checkpoint.retention import Retention, enforce, note_as_intact
from neuromanifold_gpt.checkpoint.writer import (
    StagedCheckpoint,
    resolve_directory,
    stage_checkpoint,
    write_checkpoint,
)
from neuromanifold_gpt.state.generators import Generator, generator_state
from neuromanifold_gpt.state.gradients import capture_gradients
from neuromanifold_gpt.state.in_steps import in_next_step
from neuromanifold_gpt.state.loop_parts import DATA_KEY, LoopParts, Stateful
from neuromanifold_gpt.state.metrics import metric_states, metrics_of
from neuromanifold_gpt.state.modules import module_modes, module_state
from neuromanifold_gpt.state.optimizers import named_optimizer_state
from neuromanifold_gpt.state.own_generators import generators_around, of_positions
from neuromanifold_gpt.state.pruned_weights import pruned_weights
from neuromanifold_gpt.state.rng import capture_rng_state, distributed, gather_across_ranks, rank_and_world_size
from neuromanifold_gpt.state.steps_taken_again import note_steps, steps_are_behind
from neuromanifold_gpt.state.unsaved.before_next_batch import follow_up_to_batch
from neuromanifold_gpt.state.unsaved.loop_numbers import FIRST_NUMBERS_KEY, LOOP_NUMBERS, LOOP_NUMBERS_KEY
from neuromanifold_gpt.state.unsaved.modes_of_steps import follow_modes, note_modes_of_first_step
from neuromanifold_gpt.state.unsaved.rank_differences import shown_on_this_rank, warn_of_other_ranks
from neuromanifold_gpt.state.unsaved.shared_tensors import warn_of_shared_tensors
from neuromanifold_gpt.state.unsaved.unsaved_values import DETAILS_KEY, warn_of_values_left_out, with_what_they_read

# The layout of the model file is that of Lightning 2 weights; Lightning migrates nothing from this version on.
_LIGHTNING_LAYOUT_VERSION = "2.0.0"
in_next_step(LOOP_NUMBERS.has_stepped)
in_next_step(note_modes_of_first_step)


def save_checkpoint(
    directory: str | Path,
    *,
    step: int,
    model: nn.Module,
    optimizers: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = (),
    schedulers: Stateful | Sequence[Stateful] | None = (),
    loaders: Stateful | Sequence[Stateful] | None = (),
    stateful: Mapping[str, Stateful | Generator] | None = None,
    epoch: int | None = None,
    config: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    save_model_only: bool = False,
    save_gradients: bool = False,
    name: str | None = None,
    retention: Retention | None = None,
) -> Checkpoint:
    """Save everything that training needs to continue exactly. On return it survives a power loss.

    Call it between two steps, or in the middle of an accumulation window: gradients that no optimizer has used yet are
    stored too, see :func:`capture_gradients`. With ``torch.distributed`` it is collective: every rank calls it, rank 0
    writes.

    Args:
        directory: created where it does not exist.
        step: global step, the number of optimizer steps taken; it names the files.
        model: its ``state_dict()`` goes to the model file, free of ``torch.compile`` and data-parallel prefixes.
        optimizers: one, several or none; their state is stored with the names of the parameters in ``model``.
        schedulers: learning-rate schedulers, one, several or none.
        loaders: objects that know their position in the data, such as :class:`ResumableDataLoader`.
        stateful: further objects by name, such as ``{"scaler": scaler}``; they go to the optimizer file. Random number
            generators too: a ``torch.Generator``, ``random.Random``, or one of NumPy's.
        epoch: for your information, and Lightning's.
        config: plain values that describe the model and its training; stored in the model file. Paths and times do not
            belong here: they would make the bytes of equal runs differ.
        metrics: numbers that describe the state, stored in the manifest.
        save_model_only: write no optimizer file.
        save_gradients: store gradients too that an optimizer has used: for a loop that goes on adding to them.
        name: instead of ``checkpoint-step000050``.
        retention: which older checkpoints stay, once this one is durable. It is about those that have no ``name``.

    Returns:
        The complete checkpoint.

    Raises:
        CheckpointWriteError: the file system refused; older checkpoints are untouched. Every rank raises it.
        CheckpointLockedError: another process trains in the directory.
        UnsupportedObjectError: something could not be read back safely; the message names it.
        ValueError: ``step`` or ``epoch`` is negative.
        TypeError: ``model`` is no module, or one of ``loaders`` or ``stateful`` has no state to save.
    """
    parts = LoopParts.given(model, optimizers, schedulers, loaders, stateful)
    step, epoch = _count("step", step), None if epoch is None else _count("epoch", epoch)
    left_out = {} if save_model_only else warn_of_values_left_out(model, parts.beside_model)
    warn_of_shared_tensors(parts.optimizers, parts.further)
    of_this_rank = _state_of_this_rank(model, parts)
    of_this_rank["gradients"] = (
        {} if save_model_only else capture_gradients(model, parts.optimizers, parts.further, all_of_them=save_gradients)
    )
    rank_states = gather_across_ranks(of_this_rank)
    if distributed():
        warn_of_other_ranks(model, [state.pop("shown") for state in rank_states])
    counts = {"epoch": epoch or 0, "global_step": step}
    model_content = {
        **counts,
        LIGHTNING_VERSION_KEY: _LIGHTNING_LAYOUT_VERSION,
        "state_dict": module_state(model),
        "config": dict(config or {}),
    }
    optimizer_content = {**counts, **_optimizer_content(model, parts, rank_states)}
    paths = paths_of_name(resolve_directory(directory), name or step_name(step))

    def save() -> Checkpoint:
        staged = stage_checkpoint(
            step,
            model_content,
            None if save_model_only else optimizer_content,
            epoch=epoch,
            metrics={key: float(value) for key, value in (metrics or {}).items()},
            environment=current_environment(_device_type(model), len(rank_states)),
            details={} if save_model_only else _to_be_compared(left_out, parts),
        )
        return _written(paths, staged, retention)

    saved = _on_rank_0(save) if distributed() else save()
    if not save_model_only:
        follow_up_to_batch("save", parts.loaders, parts.with_settings)
        follow_modes(model, parts.optimizers, is_saved=True)
        if parts.optimizers and rank_and_world_size()[0] == 0:
            steps_are_behind(saved, note_steps(parts.optimizers))
    return saved


def _state_of_this_rank(model: nn.Module, parts: LoopParts) -> dict[str, Any]:
    """What each rank has of its own, but for gradients; and what shows whether the rest is alike."""
    generators = parts.generators
    for own_loader in parts.own_loaders.values():
        own_loader.saved_with(parts.further.values())
    found = {
        "rng": capture_rng_state(),
        "own_generators": generators_around(
            parts.module,
            parts.by_number,
            (*of_positions(parts.beside_model), *generators.values()),
            things=with_what_they_read(parts.beside_model),
            with_locals=True,
        ).generator_states(),
        "stateful_generators": {key: generator_state(generator) for key, generator in sorted(generators.items())},
        "metrics": metric_states(metrics_of(parts.module, parts.further)),
        "data": [loader.state_dict() for loader in parts.loaders],
    }
    if distributed():
        found["shown"] = shown_on_this_rank(model, parts.optimizers, parts.further)
    return found


def _optimizer_content(model: nn.Module, parts: LoopParts, rank_states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of the optimizer file, but for the counts: all that goes on, beside the model."""
    names = parts.parameter_names
    return {
        "optimizer_states": [named_optimizer_state(optimizer, names) for optimizer in parts.optimizers],
        "lr_schedulers": [scheduler.state_dict() for scheduler in parts.schedulers],
        "lr_scheduler_classes": [type(scheduler).__name__ for scheduler in parts.schedulers],
        "rng_states": [state["rng"] for state in rank_states],
        "own_generators": [state["own_generators"] for state in rank_states],
        "stateful_generators": [state["stateful_generators"] for state in rank_states],
        "metrics": [state["metrics"] for state in rank_states],
        "data": [state["data"] for state in rank_states],
        "modes": module_modes(model),
        "pruned_weights": pruned_weights(model),
        "gradients": [state["gradients"] for state in rank_states],
        "stateful": {key: value.state_dict() for key, value in sorted(parts.further.items())},
    }


def _to_be_compared(left_out: dict[str, str], parts: LoopParts) -> dict[str, dict[str, str]]:
    """For the manifest: what a resumed run is compared with, beside the state."""
    own = parts.own_loaders
    data = {
        path: shown
        for number, loader in own.items()
        for path, shown in loader.shown_data.under(f"{number}.", {"collate_fn": loader.collate_fn}).items()
    }
    around = [carried for loader in own.values() for carried in loader.carried_around()]
    numbers = LOOP_NUMBERS.at_save(around)
    details = {DETAILS_KEY: left_out, LOOP_NUMBERS_KEY: numbers, DATA_KEY: data}
    details[FIRST_NUMBERS_KEY] = {} if own else LOOP_NUMBERS.at_first(numbers)
    return {key: values for key, values in details.items() if values}


def _written(paths: CheckpointPaths, staged: StagedCheckpoint, retention: Retention | None) -> Checkpoint:
    with writing(paths.directory):  # once for both: what is saved needs no further lock that might be refused
        saved = write_checkpoint(paths, staged)
        if retention is not None:
            note_as_intact(saved)
            enforce(paths.directory, retention, up_to_step=saved.step, untouched={saved.name})
    return saved


def _on_rank_0(save: Callable[[], Checkpoint]) -> Checkpoint:
    """Save on rank 0; return or raise on every rank what came of it, so that none waits for the others forever."""
    outcome: list[Any] = [CheckpointWriteError("rank 0 could not save; its own error says why.")]
    try:
        if torch.distributed.get_rank() == 0:
            try:
                outcome = [save()]
            except CheckpointError as error:
                outcome = [error]
    finally:  # of whatever else rank 0 dies, the others learn of it
        torch.distributed.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[0], CheckpointError):
        raise outcome[0]
    return cast(Checkpoint, outcome[0])


def _count(name: str, value: int) -> int:
    count = int(operator.index(value))
    if count < 0:
        raise ValueError(f"{name}: expected a count, found {value!r}.")
    return count


def _device_type(model: nn.Module) -> str:
    return next((parameter.device.type for parameter in model.parameters()), "cpu")
