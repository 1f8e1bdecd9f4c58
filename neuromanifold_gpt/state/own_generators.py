"""Random number generators that are not the global ones: of the model, of others, and of users' Python modules."""

from __future__ import annotations

import contextvars
import threading
import types
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.state.generators import Generator
from neuromanifold_gpt.state.inspection.flat_values import equal
from neuromanifold_gpt.state.inspection.hooks import hooks_of
from neuromanifold_gpt.state.inspection.plain_reading import CONTAINERS, FUNCTIONS
from neuromanifold_gpt.state.inspection.users_locals import is_data, users_locals
from neuromanifold_gpt.state.inspection.users_objects import NAMESPACES, has_position, is_of_users_class
from neuromanifold_gpt.state.inspection.users_variables import users_variables
from neuromanifold_gpt.state.module_values import OF_EVERY_MODULE
from neuromanifold_gpt.state.modules import listed
from neuromanifold_gpt.state.owned_state import OwnedState
from neuromanifold_gpt.state.unsaved.stock_loaders import parts_of_stock_loader

_SEARCHED = (*CONTAINERS, *FUNCTIONS, *NAMESPACES, contextvars.ContextVar, threading.local, types.GeneratorType)
# Of the model, what it owns is searched with it; of the others, what decides batches is in the position in the data.
_SEARCHED_ELSEWHERE = (nn.Module, Dataset, DataLoader, Sampler)


def what_is_drawn_from(
    roots: dict[str, Any], ignored: tuple[Any, ...] = (), *, things: Iterable[Any] = (), with_locals: bool = False
) -> OwnedState:
    """The generators of some objects by name, and those in variables of :func:`users_modules`.

    Args:
        roots, ignored: as for :class:`OwnedState`.
        things: what trains beside the roots.
        with_locals: also those of :func:`users_locals`, and of stock loaders in variables.
    """
    found = OwnedState(roots, ignored, with_trainers=True)
    variables = dict(users_variables([*things, *found.objects()]))
    may_have_some = {path: value for path, value in variables.items() if _may_have_some(value)}
    if with_locals:
        local = dict(users_locals())
        may_have_some.update((path, value) for path, value in local.items() if _may_have_some(value) or is_data(value))
        for path, value in {**variables, **local}.items():
            may_have_some.update((f"{path}.{name}", part) for name, part in parts_of_stock_loader(value).items())
    return OwnedState({**roots, **may_have_some}, ignored, only_generators=True)


def generators_around(
    module: nn.Module,
    others: dict[str, Any] | None = None,
    ignored: tuple[Any, ...] = (),
    *,
    things: Iterable[Any] = (),
    with_locals: bool = False,
) -> OwnedState:
    """The generators that a model and its parts own, and those of :func:`what_is_drawn_from`.

    Args:
        module: the model.
        others, ignored: further objects by name, and those not to search.
        things: what trains beside these.
        with_locals: as for :func:`what_is_drawn_from`.
    """
    roots = {**_attributes_of_parts(module), **(others or {})}
    return what_is_drawn_from(roots, ignored, things=[*module.modules(), *things], with_locals=with_locals)


def restore_generators_around(
    module: nn.Module,
    states: dict[str, Any],
    others: dict[str, Any],
    ignored: tuple[Any, ...],
    things: Iterable[Any],
    *,
    with_variables: bool,
    silently: bool,
) -> Callable[[], None]:
    """For plain loops, put back the states of :func:`generators_around`.

    Args:
        module: the model.
        states: of its generators and those of users' Python modules, by path.
        others, ignored: as for :func:`generators_around`.
        things: what is restored with it.
        with_variables: also those of users' Python modules. Where the loop goes to its position in the data by itself,
            it may be by drawing from them again.
        silently: where nothing goes on exactly.

    Returns:
        what is to be called when the first batch is there, whose samples may make some: puts them back, and warns if
        there is none of the kind then either.

    Warns:
        InexactResumeWarning: one that is left alone is not as it was.
    """
    things = list(things)
    ignored = (*of_positions(things), *ignored)
    around = generators_around(module, others, ignored, things=things, with_locals=True)
    own = OwnedState({**_attributes_of_parts(module), **others}, ignored, only_generators=True).generator_states()
    put_back = {path: state for path, state in states.items() if with_variables or path in own}
    here = around.generator_states()
    missing = {*around.restore_generators(put_back), *(states.keys() - here.keys())}
    if silently:
        return lambda: None
    left_alone = states.keys() & here.keys() - put_back.keys()
    moved = sorted(path for path in left_alone if not equal(states[path], here[path]))
    if moved:
        warn_user(
            f"random number generators in variables were in other states at the save: {listed(moved)}. They are left "
            "as they are, since no loaders= are given and it is the loop that finds its position in the data. Where it "
            "draws from them otherwise, give them to stateful=, here and at the save.",
            InexactResumeWarning,
        )

    def restore_late() -> None:
        late = generators_around(module, others, ignored, things=things, with_locals=True) if missing else around
        warn_of_missing_generators(late.restore_generators({path: states[path] for path in missing}))

    return restore_late


def of_positions(things: Iterable[Any]) -> tuple[Any, ...]:
    """Loaders, and the objects whose changes go with their positions: their generators, others may draw from too."""
    loaders = list(filter(has_position, things))
    objects = (thing for loader in loaders for thing in loader.objects_of_position())
    return (*loaders, *(thing for thing in objects if not isinstance(thing, Generator)))


def by_number(**kinds: Iterable[Any]) -> dict[str, Any]:
    """Things of some kinds by names such as ``optimizers.0``."""
    return {f"{kind}.{number}": thing for kind, things in kinds.items() for number, thing in enumerate(things)}


def warn_of_missing_generators(paths: list[str]) -> None:
    """Say what :meth:`OwnedState.restore_generators` gave.

    Warns:
        InexactResumeWarning: there is something to say.
    """
    if paths:
        warn_user(
            f"the checkpoint has random number generators that nobody has here: {listed(paths)}. Make them before "
            "training begins: with Lightning in __init__ or on_train_start, in a plain loop before restore().",
            InexactResumeWarning,
        )


def _attributes_of_parts(module: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = dict(hooks_of(module))
    for name, part in module.named_modules():
        for attribute, value in vars(part).copy().items():  # threads may change them
            if attribute not in OF_EVERY_MODULE:
                found[f"{name}.{attribute}".lstrip(".")] = value
    return found


def _may_have_some(value: Any) -> bool:
    kind = type(value)
    if issubclass(kind, Generator) or issubclass(kind, _SEARCHED):
        return True
    return not issubclass(kind, _SEARCHED_ELSEWHERE) and is_of_users_class(value)
