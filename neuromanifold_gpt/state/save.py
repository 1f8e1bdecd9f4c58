"""Save the state of a training loop: capture it, stage it, write it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

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
from neuromanifold_gpt.state.inspection.users_objects import has_position
from neuromanifold_gpt.state.metrics import metric_states, metrics_of
from neuromanifold_gpt.state.modules import module_modes, module_state, parameter_names, require_module, unwrap
from neuromanifold_gpt.state.optimizers import named_optimizer_state
from neuromanifold_gpt.state.own_generators import by_number, generators_around, of_positions
from neuromanifold_gpt.state.rng import capture_rng_state, distributed, gather_across_ranks, rank_and_world_size
from neuromanifold_gpt.state.steps_taken_again import note_steps, steps_are_behind
from neuromanifold_gpt.state.unsaved.before_next_batch import follow_up_to_batch
from neuromanifold_gpt.state.unsaved.loop_numbers import FIRST_NUMBERS_KEY, LOOP_NUMBERS, LOOP_NUMBERS_KEY
from neuromanifold_gpt.state.unsaved.modes_of_steps import follow_modes, note_modes_of_first_step
from neuromanifold_gpt.state.unsaved.rank_differences import shown_on_this_rank, warn_of_other_ranks
from neuromanifold_gpt.state.unsaved.saved_things import is_optimizer
from neuromanifold_gpt.state.unsaved.shared_tensors import warn_of_shared_tensors
from neuromanifold_gpt.state.unsaved.unsaved_values import DETAILS_KEY, warn_of_values_left_out, with_what_they_read

T = TypeVar("T")
# The layout of the model file is that of Lightning 2 weights; Lightning migrates nothing from this version on.
DATA_KEY = "data"  # of a manifest's details: what shows the data of loaders
_LIGHTNING_LAYOUT_VERSION = "2.0.0"
in_next_step(LOOP_NUMBERS.has_stepped)
in_next_step(note_modes_of_first_step)


class Stateful(Protocol):
    """Anything with torch's two methods: a ``GradScaler``, an EMA of the weights, a ``ResumableDataLoader``."""

    def state_dict(self) -> dict[str, Any]:
        """The state, of plain values and tensors."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Take the state."""
        ...


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
    require_module(model)
    step, epoch = _count("step", step), None if epoch is None else _count("epoch", epoch)
    further, generators = without_generators(stateful)
    kept = [*as_list(optimizers), *as_list(schedulers), *as_list(loaders), *further.values()]
    left_out = {} if save_model_only else warn_of_values_left_out(model, kept)
    warn_of_shared_tensors(as_list(optimizers), further)
    of_this_rank = {
        "rng": capture_rng_state(),
        "own_generators": generators_around(
            unwrap(model),
            by_number(optimizers=as_list(optimizers), schedulers=as_list(schedulers)),
            (*of_positions(kept), *generators.values()),
            things=with_what_they_read(kept),
            with_locals=True,
        ).generator_states(),
        "stateful_generators": {key: generator_state(generator) for key, generator in sorted(generators.items())},
        "metrics": metric_states(metrics_of(unwrap(model), further)),
        "data": [loader.state_dict() for loader in as_stateful("loaders", loaders)],
        "gradients": {}
        if save_model_only
        else capture_gradients(model, as_list(optimizers), further, all_of_them=save_gradients),
    }
    if distributed():
        of_this_rank["shown"] = shown_on_this_rank(model, as_list(optimizers), further)
    rank_states = gather_across_ranks(of_this_rank)
    if distributed():
        warn_of_other_ranks(model, [state["shown"] for state in rank_states])
    names = parameter_names(model)
    model_content = {
        "epoch": epoch or 0,
        "global_step": step,
        LIGHTNING_VERSION_KEY: _LIGHTNING_LAYOUT_VERSION,
        "state_dict": module_state(model),
        "config": dict(config or {}),
    }
    optimizer_content = {
        "epoch": epoch or 0,
        "global_step": step,
        "optimizer_states": [named_optimizer_state(optimizer, names) for optimizer in as_list(optimizers)],
        "lr_schedulers": [scheduler.state_dict() for scheduler in as_list(schedulers)],
        "lr_scheduler_classes": [type(scheduler).__name__ for scheduler in as_list(schedulers)],
        "rng_states": [state["rng"] for state in rank_states],
        "own_generators": [state["own_generators"] for state in rank_states],
        "stateful_generators": [state["stateful_generators"] for state in rank_states],
        "metrics": [state["metrics"] for state in rank_states],
        "data": [state["data"] for state in rank_states],
        "modes": module_modes(model),
        "gradients": [state["gradients"] for state in rank_states],
        "stateful": {key: value.state_dict() for key, value in sorted(further.items())},
    }
    paths = paths_of_name(resolve_directory(directory), name or step_name(step))

    def save() -> Checkpoint:
        staged = stage_checkpoint(
            step,
            model_content,
            None if save_model_only else optimizer_content,
            epoch=epoch,
            metrics={key: float(value) for key, value in (metrics or {}).items()},
            environment=current_environment(_device_type(model), len(rank_states)),
            details={} if save_model_only else _to_be_compared(left_out, as_list(loaders)),
        )
        return _written(paths, staged, retention)

    saved = _on_rank_0(save) if distributed() else save()
    if not save_model_only:
        followed = [*as_list(schedulers), *filter(is_optimizer, as_list(optimizers))]
        follow_up_to_batch("save", as_list(loaders), followed)
        follow_modes(model, as_list(optimizers), is_saved=True)
        if optimizers and rank_and_world_size()[0] == 0:
            steps_are_behind(saved, note_steps(as_list(optimizers)))
    return saved


def _to_be_compared(left_out: dict[str, str], loaders: list[Any]) -> dict[str, dict[str, str]]:
    """For the manifest: what a resumed run is compared with, beside the state."""
    own = [(number, loader) for number, loader in enumerate(loaders) if has_position(loader)]
    data = {path: shown for number, loader in own for path, shown in loader.shown_data.under(f"{number}.").items()}
    around = [carried for _, loader in own for carried in loader.carried_around()]
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


def as_list(one_or_several: T | Sequence[T] | None) -> list[T]:
    """A list of what was given, be it one object, a sequence or nothing."""
    if one_or_several is None:
        return []
    return list(one_or_several) if isinstance(one_or_several, Sequence) else [one_or_several]


def without_generators(
    stateful: Mapping[str, Stateful | Generator] | None,
) -> tuple[dict[str, Stateful], dict[str, Generator]]:
    """What was given to ``stateful``, and apart from it the random number generators.

    Raises:
        TypeError: one has no state.
    """
    generators = {key: value for key, value in (stateful or {}).items() if isinstance(value, Generator)}
    further = {key: value for key, value in (stateful or {}).items() if not isinstance(value, Generator)}
    as_stateful("stateful", list(further.values()))
    return further, generators


def as_stateful(kind: str, one_or_several: Stateful | Sequence[Stateful] | None) -> list[Stateful]:
    """:func:`as_list`, of objects that have a state.

    Raises:
        TypeError: one has none, such as a stock ``DataLoader``.
    """
    objects = as_list(one_or_several)
    for item in objects:
        if not (hasattr(item, "state_dict") and hasattr(item, "load_state_dict")):
            raise TypeError(
                f"{kind}: expected objects with state_dict and load_state_dict, found a {type(item).__qualname__}. "
                "Wrap a DataLoader in resumable(loader); of a wrapper, such as Fabric's, give the loader inside."
            )
    return objects


def _count(name: str, value: int) -> int:
    count = int(operator.index(value))
    if count < 0:
        raise ValueError(f"{name}: expected a count, found {value!r}.")
    return count


def _device_type(model: nn.Module) -> str:
    return next((parameter.device.type for parameter in model.parameters()), "cpu")
