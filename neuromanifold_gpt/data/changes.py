"""What training changes in its data, in this process, that goes with no position: said at the saves."""

from __future__ import annotations

import enum
import functools
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler
from torch.utils.data.dataloader import _BaseDataLoaderIter

from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.data.carried_generators import CarriedGenerators
from neuromanifold_gpt.data.errors import DataOrderWarning
from neuromanifold_gpt.data.function_identity import identity, is_same_function, name_of
from neuromanifold_gpt.data.memos import MOST_OWNERS, Memos
from neuromanifold_gpt.data.saved_elsewhere import SavedWith
from neuromanifold_gpt.state.inspection.kept_variables import attributes_made_by, variables_at
from neuromanifold_gpt.state.inspection.searched_parts import MAXIMUM_ITEMS
from neuromanifold_gpt.state.inspection.shared_values import array_in
from neuromanifold_gpt.state.inspection.users_objects import NAMESPACES, is_iterator, is_of_users_class, is_users_module
from neuromanifold_gpt.state.modules import listed
from neuromanifold_gpt.state.owned_state import OwnedState
from neuromanifold_gpt.state.unsaved.shown_values import shown_value

_WATCHED_ELEMENTS = 1 << 16
_USERS = (Dataset, Sampler, *NAMESPACES)
_CONTAINERS = (list, tuple, deque, dict)
_NONE, _CALLED, _REFERS_TO = "none", "called", "refers to"


class ChangesBesidePosition:
    """Follows lists, dicts, tensors and arrays of datasets, samplers and collate functions, those in variables around
    functions included: labels that training finds, a table of losses by sample; and which transforms and other
    functions they hold.

    Args:
        owned: those that hold them. What is among their values is in the position.
        shared: those that workers have too.
        memos: what samples are remembered in, which is none of these.
    """

    def __init__(
        self, owned: Sequence[OwnedState], *, shared: Sequence[OwnedState] = (), memos: Memos | None = None
    ) -> None:
        self._owned, self._sharing, self._memos = owned, shared, memos or Memos()
        self._before: dict[str, str] | None = None
        self._behind_batch: set[str] = set()  # attributes that were there when the last batch was
        self._set_between_batches: set[str] = set()
        self._collate_fns: Mapping[str, Any] = {}
        self._said: set[str] = set()
        self._shared: dict[str, Any] = {}
        self._generators = CarriedGenerators()
        self._saved_with = SavedWith()

    def saved_with(self, things: Iterable[Any]) -> None:
        """The next checkpoints have the state of these."""
        self._saved_with.note(things)

    def begin_pass(self, *, with_workers: bool) -> None:
        """Batches are made from here on, by workers perhaps, which fetch ahead."""
        self._shared = self._shared_numbers() if with_workers else {}
        self._generators.begin_pass(self._looked_at())

    def batch_is_asked_for(self) -> None:
        """What appears from here on, until the batch is there, is what samples need, and make again."""
        if self._before is not None:
            self._memos.batch_is_asked_for()
            now = self._owners_of_attributes()
            new = now.keys() - self._behind_batch
            self._set_between_batches.update(path for path in new if not _is_cached_property(now[path], path))

    def batch_is_there(self, collate_fns: Mapping[str, Any]) -> None:
        """What the first one needs is made, files are open.

        Args:
            collate_fns: that loaders have, by path.
        """
        if self._before is None:
            self._before, self._collate_fns = self._shown(), collate_fns
        self._memos.batch_is_there()
        self._behind_batch = {*self._owners_of_attributes()}

    def warn_of_changes(self, collate_fns: Mapping[str, Any], *, is_at_end: bool) -> None:
        """A position is saved.

        Args:
            collate_fns: as for :meth:`batch_is_there`.
            is_at_end: no batch is left that was fetched ahead.

        Warns:
            DataOrderWarning: names what has changed and was not named before.
        """
        if self._before is None:
            return
        self._warn_of_other_functions(collate_fns)
        if is_at_end:
            owners = dict(self._looked_at())
            self._generators.warn_of_those_that_go_on(owners.items(), {*_made_by_passes(owners)})
        else:
            self._warn_of_shared_numbers()
        self.batch_is_asked_for()
        now, before, late = self._shown(), self._before, self._set_between_batches
        changed = sorted(
            path for path in now.keys() - self._said if _is_a_change(before.get(path, _NONE), now[path], path in late)
        )
        if changed and self._saved_with.are_there():
            owners = dict(named for owned in self._owned for named in owned.owners())
            values = dict(named for owned in self._owned for named in looked_at_attributes(owned))
            changed = self._saved_with.left_out(changed, owners, values)
        if changed := self._memos.left_out(changed):
            self._said.update(changed)
            warn_user(
                f"{listed(changed)}: training changes it, and no position has it. Where samples depend on it, a resume "
                "cannot be exact: derive it from the sample or the epoch, or save it, in the state_dict of the data "
                "module or a callback, in a plain loop of an object in stateful=.",
                DataOrderWarning,
            )

    def _warn_of_other_functions(self, collate_fns: Mapping[str, Any]) -> None:
        before = self._collate_fns
        others = {
            path for path in collate_fns.keys() & before.keys() if not is_same_function(before[path], collate_fns[path])
        }
        if new := sorted(others - self._said):
            self._said.update(new)
            changed = [f"{path} was {name_of(before[path])} and is {name_of(collate_fns[path])}" for path in new]
            warn_user(
                f"{', '.join(changed)}: training has set another function, and no position has it. A resumed run "
                "collates with the one that its loader is made with: let one function choose by a number or flag of "
                "its own, which goes with the position, or make the loader with the right one by the epoch.",
                DataOrderWarning,
            )

    def _warn_of_shared_numbers(self) -> None:
        now = self._shared_numbers()
        changed = {path for path in now.keys() & self._shared.keys() if now[path] != self._shared[path]}
        if new := sorted(changed - self._said):
            self._said.update(new)
            warn_user(
                f"{listed(new)} changes while workers, with which it is shared, fetch batches ahead: a checkpoint has "
                "its value, but not which of them were made with which. Where samples depend on it, a resume in the "
                "middle of an epoch cannot be exact: change it between epochs, or use num_workers=0.",
                DataOrderWarning,
            )

    def _shared_numbers(self) -> dict[str, Any]:
        return {path: number for owned in self._sharing for path, number in owned.shared_numbers().items()}

    def _owners_of_attributes(self) -> dict[str, Any]:
        """By path, of attributes that are neither ``None`` nor an empty dict, of which nothing is shown.

        It is asked around each batch, so only where they are few.
        """
        owners = [owner for owned in self._owned for owner in owned.owners()]
        if len(owners) > MOST_OWNERS:
            return {}
        return {
            f"{path}.{name}": owner
            for path, owner in owners
            for name, value in variables_at(owner).items()
            if not (value is None or (issubclass(type(value), dict) and not value))
        }

    def _looked_at(self) -> Iterator[tuple[str, Any]]:
        return (named for owned in self._owned for named in _looked_at(owned))

    def _shown(self) -> dict[str, str]:
        return {path: shown for owned in self._owned for path, shown in shown_attributes(owned).items()}


def shown_attributes(owned: OwnedState) -> dict[str, str]:
    """What shows whether containers and callables have changed, by path, but for what is among the values."""
    found = {}
    in_position, owners = owned.values(), dict(_looked_at(owned))
    looked_at = {id(owner) for owner in owners.values()}
    begun_again, made_again = _begun_again(owners), set(_made_by_passes(owners))
    for path, value in looked_at_attributes(owned):
        if path in made_again or (_is_under_way(value) and path.rpartition(".")[0] in begun_again):
            continue
        if value is None or path not in in_position:
            shown = _shown(_without_attributes(value, looked_at))
            found.update({path: shown} if shown is not None else {})
    return found


def shown_containers(owned: OwnedState, also: tuple[type, ...] = ()) -> dict[str, str]:
    """What shows whether lists, dicts and small arrays have changed, by path; not those of objects, such as files.

    Args:
        owned: what is looked at.
        also: further types of attributes.
    """
    values = {
        path: value for path, value in owned.attributes() if issubclass(type(value), also) or _is_container(value)
    }
    return {path: shown for path, value in values.items() if (shown := shown_value(value)) is not None}


def _looked_at(owned: OwnedState) -> Iterator[tuple[str, Any]]:
    """Users' objects and functions, datasets and samplers, by path."""
    for path, owner in owned.owners():
        is_function = type(owner) is types.FunctionType and is_users_module(owner.__module__)
        if is_function or issubclass(type(owner), _USERS) or is_of_users_class(owner):
            yield path, owner


def looked_at_attributes(owned: OwnedState) -> Iterator[tuple[str, Any]]:
    """What users' objects and functions, datasets and samplers hold; and what their class has until they have it."""
    for path, owner in _looked_at(owned):
        classes = [kind for kind in type(owner).__mro__[::-1] if is_users_module(kind.__module__)]
        of_classes = {name: value for kind in classes for name, value in vars(kind).items() if _is_data(name, value)}
        yield from ((f"{path}.{name}", value) for name, value in {**of_classes, **variables_at(owner)}.items())


def _begun_again(owners: Mapping[str, Any]) -> set[str]:
    """Paths of samplers and loaders, whose iterators are put at their position; with a stream, of all."""
    kinds = {path: type(owner) for path, owner in owners.items()}
    has_stream = any(issubclass(kind, IterableDataset) for kind in kinds.values())
    return {path for path, kind in kinds.items() if has_stream or issubclass(kind, Sampler | DataLoader)}


def _made_by_passes(owners: Mapping[str, Any]) -> Iterator[str]:
    """Paths of what samplers make anew in each ``__iter__``; that they give the same ids again, is checked."""
    for path, owner in owners.items():
        begin = getattr(type(owner), "__iter__", None)
        if issubclass(type(owner), Sampler) and type(begin) is types.FunctionType:
            yield from (f"{path}.{name}" for name in attributes_made_by(begin.__code__))


def _is_under_way(value: Any) -> bool:
    return is_iterator(value) or issubclass(type(value), _BaseDataLoaderIter)


def _without_attributes(value: Any, looked_at: set[int]) -> Any:
    """A list or dict in which objects that are looked at by themselves, such as transforms, are their names."""
    kind = type(value)
    if kind not in (list, tuple, dict) or len(value) > MAXIMUM_ITEMS:
        return value
    items = {name: _name(item) if id(item) in looked_at else item for name, item in _named_items(value)}
    return items if kind is dict else [*items.values()]


def _named_items(container: Any) -> Iterable[tuple[Any, Any]]:
    return container.copy().items() if type(container) is dict else enumerate(container)


def _name(thing: Any) -> str:
    named = thing if type(thing) is types.FunctionType else type(thing)
    return str(named.__qualname__)


def _is_data(name: str, value: Any) -> bool:
    """Whether an attribute of a class is no method or descriptor."""
    return not name.startswith("__") and not hasattr(type(value), "__get__")


def _shown(value: Any) -> str | None:
    kind = type(value)  # isinstance() would ask proxies, which may have nobody to ask
    if issubclass(kind, (Tensor, np.ndarray, *_CONTAINERS, set, enum.Enum)) or array_in(value) is not None:
        return shown_value(value, is_data=True)
    if value is None:
        return _NONE
    if _is_under_way(value):
        return shown_value(value)
    if callable(value):
        return f"{_CALLED} {kind.__qualname__} {identity(value)}"
    if issubclass(kind, Dataset | Sampler):  # which of several
        return f"{_REFERS_TO} {kind.__qualname__} {id(value)}"
    return f"{_REFERS_TO} {kind.__qualname__}" if is_of_users_class(value) else None


def _is_a_change(before: str, now: str, is_set_between_batches: bool) -> bool:
    """Tables and files that samples make when they first need them are none."""
    if before == _NONE:
        return is_set_between_batches and now != _NONE
    return now not in (before, _NONE)  # which the position has


def _is_cached_property(owner: Any, path: str) -> bool:
    name = path.rpartition(".")[2]
    return any(type(vars(kind).get(name)) is functools.cached_property for kind in type(owner).__mro__)


def _is_container(value: Any) -> bool:
    """Larger tensors and arrays are data, perhaps in a mapped file."""
    kind = type(value)
    if issubclass(kind, Tensor):
        return not is_lazy(value) and value.numel() <= _WATCHED_ELEMENTS
    return value.size <= _WATCHED_ELEMENTS if issubclass(kind, np.ndarray) else issubclass(kind, _CONTAINERS)
