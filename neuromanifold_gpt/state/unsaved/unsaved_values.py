"""What modules change while they train and no checkpoint has: it is not stored, so it is said.

Flags, numbers, tensors, containers and users' objects in plain attributes may decide what comes next: a codebook that
is initialized by the first batch, a temperature that anneals, the hidden state that a recurrent model carries from
batch to batch, a replay buffer. Most of them are results that nobody reads again, and times, which no two runs share:
both are a reason not to store them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from neuromanifold_gpt.state.in_steps import in_next_step
from neuromanifold_gpt.state.inspection.drawing_caches import CACHE
from neuromanifold_gpt.state.inspection.hooks import hooks_of
from neuromanifold_gpt.state.inspection.kept_variables import attributes_carried, attributes_of_init_only
from neuromanifold_gpt.state.inspection.users_objects import (
    has_position,
    is_a_time,
    is_of_users_class,
    is_users_module,
)
from neuromanifold_gpt.state.inspection.users_variables import users_variables
from neuromanifold_gpt.state.metrics import is_metric
from neuromanifold_gpt.state.module_values import is_kept_by_others, is_stored, non_persistent_buffers
from neuromanifold_gpt.state.modules import has_batch_statistics, lasting_part, unwrap
from neuromanifold_gpt.state.unsaved.followed_values import FollowedValues, SavedValues
from neuromanifold_gpt.state.unsaved.layers import layers_by_path, settings_of_layers
from neuromanifold_gpt.state.unsaved.optimizer_values import (
    parameters_of_no_module,
    values_of_communication_hooks,
    values_of_optimizers,
    values_of_schedulers,
)
from neuromanifold_gpt.state.unsaved.orders import are_of_the_same, is_shown_order
from neuromanifold_gpt.state.unsaved.saved_things import note_saved, saved_parameters
from neuromanifold_gpt.state.unsaved.shown_code import NONE, OF_CLASS, own_methods
from neuromanifold_gpt.state.unsaved.shown_values import RESULT, holds_tensors, kept_by, plain_attributes, shown_value
from neuromanifold_gpt.state.unsaved.stock_loaders import warn_of_passes_under_way, warn_of_workers_that_stay
from neuromanifold_gpt.state.unsaved.under_way import places_on_the_way
from neuromanifold_gpt.state.unsaved.unsaved_attributes import attributes_of_module
from neuromanifold_gpt.state.unsaved.unsaved_objects import (
    names_of_carried_variables,
    saved_by_others,
    unsaved_objects,
    values_of_objects,
    warn_of_loaders_left_out,
)

DETAILS_KEY = "module_values"
_LOOKED_AT_OF_VARIABLES = 100  # there may be many, and large tables that never change among them


def values_beside_state(
    module: nn.Module,
    *,
    with_followed: bool = True,
    ignored: Collection[str] = (),
    kept: Iterable[Any] = (),
    kept_memory: Set[int] = frozenset(),
    as_settings: bool = False,
) -> dict[str, str]:
    """What :func:`shown_value` shows, by path.

    Args:
        module: it and its parts are searched.
        with_followed: also what :class:`ModuleValues` stores.
        ignored: names of attributes.
        kept: objects that a checkpoint has.
        kept_memory: that of tensors and arrays which it has too, see :func:`memory_in`.
        as_settings: see :func:`shown_value`.
    """
    found: dict[str, str | None] = {}
    all_kept = kept_by(module) | {id(thing) for thing in kept} | kept_memory
    parts = [] if as_settings else module.named_modules()
    carried = {f"{owner}.{name}" for owner, part in parts for name in attributes_carried(type(part))}
    for path, value, is_followed in attributes_of_parts(module, ignored, as_settings=as_settings):
        if with_followed or not is_followed:
            found[path] = shown_value(
                value,
                all_kept,
                is_setting=as_settings,
                is_carried=path in carried,
                names_code=not as_settings,
            )
    if as_settings:
        found.update(settings_of_layers(module))
        found.update((path, NONE) for path in _left_out_of_settings(module, ignored))
    else:
        for path, hooks in hooks_of(module):
            of_users = [hook for hook in hooks if is_users_module(getattr(hook, "__module__", None))]
            found[path] = shown_value(of_users, all_kept)
        found.update(layers_by_path(module))
        for name, part in module.named_modules():
            found.update((f"{name}.{method}", OF_CLASS) for method in own_methods(part))
    if with_followed:
        found.update((path, shown_value(buffer)) for path, buffer in non_persistent_buffers(module.named_modules()))
    return {path.lstrip("."): shown for path, shown in found.items() if shown is not None}


def warn_of_values_left_out(module: nn.Module, kept: Collection[Any]) -> dict[str, str]:
    """For plain loops, at each save; gives what :func:`warn_of_other_values` takes.

    Variables of users' Python modules are looked at too, but for the script, whose own affair its variables are.

    Args:
        module: that is saved.
        kept: objects that are saved with it.

    Warns:
        InexactResumeWarning: values have changed since the first call for this module, or since it was restored; or
            variables since the first pass over the first of the loaders.
    """
    key, (now, unsaved) = lasting_part(module), _with_variables(module, kept)
    module = unwrap(module)
    warn_of_loaders_left_out(unsaved)
    warn_of_passes_under_way(unsaved)
    warn_of_workers_that_stay(unsaved)
    if key not in _followed:
        before = [loader.variables_at_first_pass or {} for loader in filter(has_position, kept)]
        _followed[key] = FollowedValues({**now, **before[0]} if before else now)
    settings = values_beside_state(module, kept=kept, as_settings=True)
    settings.update((path, shown) for path, shown in now.items() if path in unsaved)
    saved = _saved.setdefault(key, SavedValues({}))
    missing = saved.missing(now)
    is_empty = missing & names_of_carried_variables() if missing else ()  # they had tensors at the save
    compared = {**settings, **dict.fromkeys(is_empty, "")}
    others = [*_followed[key].changed(now), *saved.others(compared)]
    within = saved_by_others({path: unsaved[path] for path in others if path in unsaved}, [module, *kept])
    _followed[key].warn_if_changed({path: shown for path, shown in now.items() if path not in within})
    known = {*within, *_followed[key].passed_over}  # to be saved by others, or to change
    saved.warn_of_others({path: shown for path, shown in compared.items() if path not in known})
    return {path: shown for path, shown in settings.items() if shown != RESULT and path not in known}


def warn_of_other_values(module: nn.Module, saved: Mapping[str, str], kept: Collection[Any]) -> None:
    """For plain loops, at the restore.

    Args:
        module: that is restored.
        saved: what :func:`warn_of_values_left_out` gave; on ranks that did not write it, nothing.
        kept: objects that are restored with it.

    Warns:
        InexactResumeWarning: the module has other values than at the save.
    """
    key, now = lasting_part(module), _with_variables(module, kept)[0]
    module = unwrap(module)
    _followed[key] = FollowedValues({path: shown for path, shown in now.items() if shown != NONE})  # to be set up
    orders = {path: shown for path, shown in saved.items() if is_shown_order(shown)}
    _compare_in_first_step(orders, kept)
    others = {path: shown for path, shown in saved.items() if path not in orders}
    _saved[key] = SavedValues(without_settings_in_dicts(others, module))
    _saved[key].warn_of_others(values_beside_state(module, kept=kept, as_settings=True))


def compare_at_first_batch(module: nn.Module, kept: Collection[Any]) -> None:
    """Behind :func:`warn_of_other_values`, where the loop has set up what it sets up.

    Warns:
        InexactResumeWarning: objects around the module have other values than at the save.
    """
    saved = _saved[lasting_part(module)]
    all_kept = {*kept_by(unwrap(module)), *map(id, with_what_they_read(kept))}
    unsaved = _unsaved(kept, all_kept)
    now = {path: shown for path, shown in values_of_objects(unsaved, all_kept).items() if not is_shown_order(shown)}
    within = saved_by_others({path: unsaved[path] for path in saved.others(now)}, [unwrap(module), *kept])
    saved.warn_of_others({path: shown for path, shown in now.items() if path not in within})


def _compare_in_first_step(orders: Mapping[str, str], kept: Collection[Any]) -> None:
    """Orders that a loop goes through, when an optimizer has stepped."""
    if not orders:
        return
    all_kept = {*map(id, with_what_they_read(kept))}

    def compare() -> None:
        shown = values_of_objects(unsaved_objects(all_kept), all_kept)
        same = {path: now for path, now in shown.items() if path in orders and are_of_the_same(orders[path], now)}
        SavedValues(orders).warn_of_others(same)

    in_next_step(compare)


def _with_variables(module: nn.Module, kept: Collection[Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """What is shown of the module, and of what is around it; also gives :func:`unsaved_objects`."""
    hooks = values_of_communication_hooks(module)
    module, others = unwrap(module), with_what_they_read(kept)
    things, all_kept = [*module.modules(), *others], {*kept_by(module), *map(id, others)}
    variables = variables_beside_state(things, all_kept)
    optimizers = [thing for thing in kept if isinstance(thing, torch.optim.Optimizer)]
    schedulers = [thing for thing in kept if isinstance(thing, torch.optim.lr_scheduler.LRScheduler)]
    note_saved([module, *kept])
    unsaved = _unsaved(kept, all_kept)
    found = {**values_beside_state(module, kept=kept), **values_of_optimizers(optimizers), **variables, **hooks}
    found.update(values_of_schedulers(schedulers, all_kept))
    return {**found, **values_of_objects(unsaved, all_kept)}, unsaved


def _unsaved(kept: Collection[Any], all_kept: Collection[int]) -> dict[str, Any]:
    """What the loop has and nobody saves; of modules that are saved beside the model what their states leave out."""
    optimizers = [thing for thing in kept if isinstance(thing, torch.optim.Optimizer)]
    beside = [thing for thing in kept if isinstance(thing, nn.Module) and not is_metric(thing)]
    left_out = {
        f"{type(thing).__name__}.{name}": value
        for thing in beside
        if type(thing).state_dict is nn.Module.state_dict
        for name, value in attributes_of_module(thing)
        if id(value) not in all_kept
    }
    found = {**unsaved_objects(all_kept), **parameters_of_no_module(optimizers, saved_parameters()), **left_out}
    if not any(map(has_position, kept)):  # else a loader gives the batches
        found.update(places_on_the_way({id(value) for value in found.values()}, all_kept))
    return found


def with_what_they_read(kept: Collection[Any]) -> list[Any]:
    """Some objects, and of loaders among them those whose changes go with the position."""
    return [*kept, *(thing for loader in filter(has_position, kept) for thing in loader.objects_of_position())]


def variables_beside_state(
    things: Iterable[Any], kept: Collection[int] = (), *, with_script: bool = False
) -> dict[str, str]:
    """What is shown of the variables of users' Python modules, by name.

    Args:
        things: what trains, see :func:`users_modules`.
        kept: as for :func:`shown_value`.
        with_script: also those of the script that runs; else of these only caches of what is drawn.
    """
    found = {
        path: shown_value(value, kept, items=_LOOKED_AT_OF_VARIABLES)
        for path, value in users_variables(things)
        if (with_script or not path.startswith("__main__.") or issubclass(type(value), CACHE))
        and not is_a_time(path.rpartition(".")[2], value)
    }
    return {path: shown for path, shown in found.items() if shown is not None}


_followed: WeakKeyDictionary[nn.Module, FollowedValues] = WeakKeyDictionary()  # of plain loops
_saved: WeakKeyDictionary[nn.Module, SavedValues] = WeakKeyDictionary()


def attributes_of_parts(
    module: nn.Module, ignored: Collection[str], *, as_settings: bool = True
) -> Iterator[tuple[str, Any, bool]]:
    """Of a module, but for times, and of parts that save state themselves; and whether ModuleValues stores them."""
    for owner, part in module.named_modules():
        if type(part).get_extra_state is not nn.Module.get_extra_state:
            continue
        if is_metric(part) and not is_of_users_class(part):
            continue
        if isinstance(part, LazyModuleMixin):  # it begins with its first batch
            continue
        of_library = is_kept_by_others(part)
        for name, value in plain_attributes(part).items() if not (of_library and as_settings) else ():
            if name in ignored:
                continue
            if not (of_library and _is_derived_or_restored(part, name)):
                yield f"{owner}.{name}", value, not of_library and is_stored(part, name, value)
    if as_settings:
        return
    for name, parameter in module.named_parameters():
        yield from ((f"{name}.{attribute}", value, False) for attribute, value in vars(parameter).items())


def _left_out_of_settings(module: nn.Module, ignored: Collection[str]) -> Iterator[str]:
    """Paths of what a user's part is made without, such as weights of classes, and no method of it sets later."""
    for path, value, _ in attributes_of_parts(module, ignored):
        owner, _, name = path.rpartition(".")
        if value is None and name in attributes_of_init_only(type(module.get_submodule(owner))):
            yield path


def without_settings_in_dicts(saved: Mapping[str, str], module: nn.Module) -> dict[str, str]:
    """Some values of :func:`values_beside_state`, but for those that are dicts of the restored module, with something
    in them and no tensors: as the settings of a program, many do not matter. One that is empty yet is filled by steps.
    """
    in_dicts = {
        path.lstrip(".")
        for path, value, _ in attributes_of_parts(module, ())
        if issubclass(type(value), Mapping) and value and not holds_tensors(value)
    }
    return {path: shown for path, shown in saved.items() if path not in in_dicts}


def _is_derived_or_restored(part: nn.Module, name: str) -> bool:
    """Whether it is a weight that torch's pruning, or its older norms, make anew of parameters in each step; or a mode
    that is restored.
    """
    if name == "track_running_stats" and has_batch_statistics(part):
        return True
    return f"{name}_orig" in part._parameters or f"{name}_v" in part._parameters
