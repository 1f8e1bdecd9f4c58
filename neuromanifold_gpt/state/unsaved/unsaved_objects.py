"""What a plain loop may forget to save: an average of the weights, a gradient scaler, a second optimizer."""

from __future__ import annotations

import copy
import functools
import types
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any
from weakref import WeakSet

from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.state.generators import Generator
from neuromanifold_gpt.state.inspection.flat_values import equal
from neuromanifold_gpt.state.inspection.plain_reading import bases_of, parts_of, variables_of_class
from neuromanifold_gpt.state.inspection.users_locals import users_locals, values_carried_by_loops, variables_of_script
from neuromanifold_gpt.state.inspection.users_modules import is_users_code
from neuromanifold_gpt.state.inspection.users_objects import (
    NAMESPACES,
    has_position,
    is_iterator,
    is_of_the_run,
    is_of_users_class,
    is_over_stock_loader,
    loader_of_pass,
)
from neuromanifold_gpt.state.modules import listed
from neuromanifold_gpt.state.rng import distributed
from neuromanifold_gpt.state.unsaved.orders import is_order, shown_order
from neuromanifold_gpt.state.unsaved.saved_things import (
    is_optimizer,
    is_saved,
    memory_of_saved_modules,
    note_saved,
    parameters_of_saved_optimizers,
    saved_parameters,
)
from neuromanifold_gpt.state.unsaved.shown_values import holds_tensors, plain_attributes, shown_tensors, shown_value
from neuromanifold_gpt.state.unsaved.stock_loaders import is_stock_loader
from neuromanifold_gpt.state.unsaved.unsaved_attributes import (
    attributes_of_data,
    attributes_of_module,
    own_attributes,
)

_FUNCTIONS = (types.FunctionType, functools.partial)
_CONTAINERS = (dict, list, tuple, deque)
_DATA = (DataLoader, Dataset, Sampler, Generator)  # they have a position, or are stored
_said: WeakSet[Any] = WeakSet()
_NOT_COPIED = ("__new__", "__slots__", "__del__")  # what these may do, a copy cannot or must not
_RANGE_ITERATOR = type(iter(range(0)))
_MAXIMUM_DEPTH = 4  # of a state in another, and of an object
_LOOKED_AT = 10_000
_LOOKED_AT_OF_ONE = 100
_PLAIN = (str, bytes, int, float, complex, type(None))


def unsaved_objects(kept: Collection[int]) -> dict[str, Any]:
    """Modules, other objects with ``state_dict``, and loaders that the functions that run, or the script, hold.

    Of what they carry from one round of a loop to the next also tensors, arrays, and what holds such, and iterators;
    of modules, and of data that no loader has, the attributes that are such.

    Args:
        kept: identities of those that are saved, and of their parts.
    """
    found: dict[str, Any] = {}
    datasets: dict[str, Any] = {}
    values = [_owner_of(value) for value in values_carried_by_loops()]
    carried = {id(value) for value in values if not issubclass(type(value), _FUNCTIONS) and not _has_state(value)}
    seen: set[int] = set()
    of_others = saved_parameters() | parameters_of_saved_optimizers()
    variables = [(path, _owner_of(variable)) for path, variable in (*variables_of_script(), *users_locals())]
    objects = {id(value) for _, value in variables if _has_attributes(value)}  # they are looked at by their own names
    for path, value in variables:
        depth_of_tensors = 1 if _has_attributes(value) else 0  # of attributes, each has a name
        others = of_others | ({id(value)} if depth_of_tensors else set())  # they may refer to it
        for name, part, depth in _with_parts(path, value, seen, ()):
            if id(part) in kept or is_saved(part):
                continue
            is_carried, has_state = id(value) in carried, _has_state(part)
            may_go_on = is_carried and depth == depth_of_tensors and (holds_tensors(part, others) or is_order(part))
            goes_on = may_go_on or (is_carried and _is_followed_iterator(part)) or _fetches_ahead(part)
            if goes_on or has_state or has_position(part) or is_stock_loader(part):
                found[name] = part
            if is_carried and issubclass(type(part), Dataset) and is_of_users_class(part):
                datasets[name] = part
            for attribute, thing in _attributes_of_module(part, is_whole=has_state):
                if not (id(thing) in kept or id(thing) in objects or is_saved(thing)):
                    found[f"{name}.{attribute}"] = thing
    return {**found, **attributes_of_data(datasets, found)}


def names_of_carried_variables() -> set[str]:
    """Of the functions that run, and of the script, those that a loop carries from here on, with empty attributes."""
    carried = {id(value) for value in values_carried_by_loops()}
    found = [(name, value) for name, value in (*variables_of_script(), *users_locals()) if id(value) in carried]
    parts = (
        (f"{name}.{key}", part) for name, value in found if _has_attributes(value) for key, part in parts_of(value)
    )
    return {name for name, _ in found} | {name for name, part in parts if part is None}


def saved_by_others(changed: Mapping[str, Any], saved: Sequence[Any]) -> list[str]:
    """Names of objects whose state is in that of another: the schedulers in ``SequentialLR``, an average in a trainer,
    an optimizer in one that wraps it, a tensor in the ``state_dict`` of a user's object.

    Args:
        changed: some of :func:`unsaved_objects`, that are not as they began, when all are alike.
        saved: what is saved.
    """
    if distributed():  # there, the state_dict of others may wait for that of every rank
        changed = {name: thing for name, thing in changed.items() if isinstance(thing, LRScheduler)}
        saved = [thing for thing in saved if isinstance(thing, LRScheduler)]
    if not changed:
        return []
    states = [state_of(thing) for thing in saved]
    by_thing = list(zip(saved, states, strict=True))
    in_others = shown_tensors([state for thing, state in by_thing if not _has_weights(thing)])
    # A part of a module is known as such; one that equals it, such as a target network just after an update, is none.
    of_no_module = [state for thing, state in by_thing if not issubclass(type(thing), nn.Module)]
    in_optimizers = shown_tensors([state for thing, state in by_thing if is_optimizer(thing)])
    within = {}
    for name, thing in changed.items():
        state, optimizes = state_of(thing), is_optimizer(thing)
        shown, there = shown_tensors(state if optimizes else thing), in_optimizers if optimizes else in_others
        has_order = issubclass(type(thing), list | tuple | deque)
        has_tensors_of_others = _come_in_turn(shown, there) if has_order else {*shown} <= {*there}
        others = of_no_module if issubclass(type(thing), nn.Module) else states
        if _is_within(state, others, 0) or (shown and has_tensors_of_others):
            within[name] = thing
    note_saved(within.values())
    return [*within]


def _come_in_turn(some: list[str], others: list[str]) -> bool:
    left = iter(others)
    return all(shown in left for shown in some)


def _has_weights(thing: Any) -> bool:
    return issubclass(type(thing), nn.Module) or is_optimizer(thing)


def _is_followed_iterator(thing: Any) -> bool:
    """Of ``iter(range(steps))`` a process may have its own, to know when to end."""
    return is_iterator(thing) and type(thing) is not _RANGE_ITERATOR and not is_over_stock_loader(thing)


def _fetches_ahead(thing: Any) -> bool:
    """Whether it has begun to go through a loader of this package, and has tensors, such as the batch to come: also of
    what is saved itself, since what it takes from the loader counts as trained on.
    """
    if not _has_attributes(thing) or _has_state(thing):
        return False
    return any(loader_of_pass(part) is not None for _, part in parts_of(thing)) and holds_tensors(thing)


def _owner_of(value: Any) -> Any:
    """Of a bound method the object; else the value itself."""
    return value.__self__ if type(value) is types.MethodType else value


def state_of(thing: Any) -> Any:
    """Its ``state_dict()``; ``None`` of what has none, or has a position."""
    try:
        return None if issubclass(type(thing), _DATA) else _to_be_asked(thing).state_dict()
    except Exception:  # noqa: BLE001 - of an object that nobody may want to save
        return None


def _to_be_asked(thing: Any) -> Any:
    """Of a users' class a copy, since its ``state_dict`` may begin something anew, such as a mean that is logged."""
    kind = type(thing)
    is_plain = all(base is object or variables_of_class(base).keys().isdisjoint(_NOT_COPIED) for base in bases_of(kind))
    if not is_plain or not is_of_users_class(thing) or _has_weights(thing) or issubclass(kind, LRScheduler):
        return thing
    copied = object.__new__(kind)
    vars(copied).update(
        (name, copy.copy(value) if type(value) in (*_CONTAINERS, set) else value) for name, value in vars(thing).items()
    )
    return copied


def _is_within(state: Any, others: Any, depth: int) -> bool:
    if not isinstance(state, Mapping) or not state or depth > _MAXIMUM_DEPTH:
        return False
    try:
        if isinstance(others, Mapping):
            parts: Collection[Any] = others.values()
            return equal(dict(state), dict(others)) or any(_is_within(state, part, depth + 1) for part in parts)
        return isinstance(others, list | tuple) and any(_is_within(state, part, depth + 1) for part in others)
    except Exception:  # noqa: BLE001 - users' values that cannot be compared
        return False


def values_of_objects(unsaved: Mapping[str, Any], kept: Collection[int]) -> dict[str, str]:
    """What is shown of :func:`unsaved_objects`, but for loaders; of attributes without the object that has them.

    Args:
        unsaved: they, by name.
        kept: as for :func:`shown_value`.
    """
    kept = {*kept, *saved_parameters(), *memory_of_saved_modules(), *parameters_of_saved_optimizers()}
    owners = {path: id(value) for path, value in (*variables_of_script(), *users_locals()) if _has_attributes(value)}
    found = {
        name: shown_order(part)
        if is_order(part)
        else shown_value(part, {*kept, owners.get(name.rpartition(".")[0], 0)}, is_carried=True)
        for name, part in unsaved.items()
        if not has_position(part)
    }
    return {name: shown for name, shown in found.items() if shown is not None}


def warn_of_loaders_left_out(unsaved: Mapping[str, Any]) -> None:
    """Say which loaders of this package have given batches, and are not saved.

    Args:
        unsaved: as for :func:`values_of_objects`.

    Warns:
        InexactResumeWarning: names those that count their passes and were not named before.
    """
    loaders = {name: part for name, part in unsaved.items() if has_position(part) and part not in _said}
    left_out = {name: loader for name, loader in loaders.items() if loader.needs_its_position}
    _said.update(left_out.values())
    if left_out:
        warn_user(
            f"a loader was iterated that is not saved: {listed(sorted(left_out))}. Its order, or what its samples draw,"
            " depends on the number of its passes, which begins at 0 again after a resume. Give it to loaders= as well,"
            " or call its set_epoch before each pass.",
            InexactResumeWarning,
        )


def _with_parts(path: str, value: Any, seen: set[int], inside: tuple[int, ...]) -> Iterator[tuple[str, Any, int]]:
    """It, and what it holds: a trainer its average, a dict its networks, but a hook not the trainer that has it."""
    if id(value) in inside:
        return
    yield path, value, len(inside)
    if len(inside) >= _MAXIMUM_DEPTH or id(value) in seen or len(seen) > _LOOKED_AT:
        return
    seen.add(id(value))
    try:
        parts = dict(islice(_parts(value), _LOOKED_AT_OF_ONE))
    except Exception:  # noqa: BLE001 - metaclasses and the like that fail when they are asked
        return
    for name, part in parts.items():
        if not issubclass(type(part), _PLAIN):
            yield from _with_parts(path + name, part, seen, (*inside, id(value)))


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    kind = type(value)
    if kind is types.FunctionType and not is_users_code(value.__globals__):
        return
    if issubclass(kind, functools.partial):
        yield from ((f".{name}", part) for name, part in value.keywords.items())
        yield from ((f"[{number}]", part) for number, part in enumerate(value.args))
    elif issubclass(kind, _CONTAINERS):
        yield from ((f"[{key!r}]", part) for key, part in parts_of(value) if isinstance(key, str | int))
    elif _has_attributes(value) or issubclass(kind, (*NAMESPACES, types.FunctionType)):
        yield from ((f".{name}", part) for name, part in parts_of(value))
    elif issubclass(kind, nn.Module) and not is_saved(value):
        parts = {**(plain_attributes(value) if is_of_users_class(value) else {}), **_parts_apart(value)}
        yield from ((f".{name}", part) for name, part in parts.items())


def _parts_apart(module: nn.Module) -> dict[str, Any]:
    """Of one around others that are saved: the wrapper of a learner its teacher. Else it has its parts."""
    return {} if _has_state(module) else module._modules


def _attributes_of_module(thing: Any, *, is_whole: bool) -> Iterator[tuple[str, Any]]:
    if issubclass(type(thing), nn.Module) and "_modules" in vars(thing):  # else it is half made
        yield from attributes_of_module(thing) if is_whole else own_attributes(thing)


def _has_attributes(value: Any) -> bool:
    return is_of_users_class(value) and not issubclass(type(value), (nn.Module, *_DATA, *_CONTAINERS))


def _has_state(value: Any) -> bool:
    kind = type(value)  # isinstance() would ask proxies
    if issubclass(kind, nn.Module):
        try:
            return not any(map(is_saved, value.modules()))  # as compiled, it is the same
        except AttributeError:  # it is half made
            return False
    if issubclass(kind, _DATA) or is_of_the_run(kind):
        return False
    return {"state_dict", "load_state_dict"} <= {name for base in bases_of(kind) for name in variables_of_class(base)}
