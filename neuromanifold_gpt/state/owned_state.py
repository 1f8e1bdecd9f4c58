"""State that users' own objects keep: random number generators, and values that change while they are used.

A sampler with ``self.rng = random.Random(1)``, a dataset with a NumPy ``Generator`` for its augmentation, a batch
sampler that counts its epochs: nothing of it is in a state dict, and all of it decides what the next batch is.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from typing import Any

import xxhash
from torch import Tensor

from neuromanifold_gpt.state.generators import (
    Generator,
    generator_state,
    raw_state,
    seed_generator,
    set_generator_state,
    set_raw_state,
)
from neuromanifold_gpt.state.inspection.flat_values import as_plain, copy_of, equal, put_back, seem_equal
from neuromanifold_gpt.state.inspection.kept_variables import (
    keeps_variables,
    kept_variables,
    set_variable,
    take_back,
    variables_at,
)
from neuromanifold_gpt.state.inspection.searched_parts import holds_loaders, is_opaque, saves_itself, searched_parts
from neuromanifold_gpt.state.inspection.shared_values import is_shared_number, number_in
from neuromanifold_gpt.state.inspection.stored_values import UNKNOWN, as_it_was, is_scalar, is_single_value, stored
from neuromanifold_gpt.state.inspection.users_objects import is_stateful

_MAXIMUM_DEPTH = 6
_MAXIMUM_OBJECTS = 10_000  # that are searched from one root


class OwnedState:
    """The state of some objects and of what they refer to, found when this is made.

    Args:
        roots: objects by name, such as ``{"sampler": sampler}``; the names begin the paths in :meth:`capture`.
        ignored: objects that are not searched.
        thorough: attributes that are lists, tuples, arrays or tensors count as state too, not only numbers and
            strings, and so does what ``state_dict`` returns. For samplers, which may shuffle a list of indices in
            place; a dataset keeps its data in such lists.
        only_generators: values do not count.
        with_trainers: those of an object that holds a loader of this package count too, and of what only it refers to.
            They are state of the run, not of the samples whose ``collate_fn`` is its method.
    """

    def __init__(
        self,
        roots: dict[str, Any],
        ignored: tuple[Any, ...] = (),
        *,
        thorough: bool = False,
        only_generators: bool = False,
        with_trainers: bool = False,
    ) -> None:
        self._roots, self._ignored, self._thorough = dict(roots), ignored, thorough
        self._with_trainers = with_trainers
        # Of flat containers, as they were when they were last looked at; other containers, of which there is no copy.
        self._copies: dict[str, tuple[Any, Any]] = {}
        self._versions: dict[str, int | None] = {}  # of tensors among them
        self._as_made: dict[str, Any] = {}
        self._owners: dict[str, Any] = {}
        self.look_again()
        if only_generators:
            for kept_alive in (self._owners, self._as_made, self._roots):
                kept_alive.clear()

    def look_again(self) -> None:
        """Find what the objects refer to now; objects that are new begin as they are."""
        before, self._owners = self._owners, {}
        self._search_roots()
        known = {path for path, owner in self._owners.items() if before.get(path) is owner}
        new = {path: value for path, value in self.values().items() if path.rpartition(".")[0] not in known}
        self._as_made = {**new, **self._as_made}

    def look_for_generators(self) -> None:
        """Find those that there are now; values are followed as before."""
        owners, self._owners = self._owners, {}
        self._search_roots()
        self._owners = owners

    def leave_trainers(self) -> None:
        """Those that hold a loader by now are no longer followed, as if they had when this was made."""
        trainers = [path for path, owner in self._owners.items() if holds_loaders(owner)]
        for path in [path for path in self._owners for trainer in trainers if f"{path}.".startswith(f"{trainer}.")]:
            self._owners.pop(path, None)

    def replace(self, name: str, root: Any) -> None:
        """Let a root be another object, which begins as it is."""
        if self._roots[name] is not root:
            self._as_made = {path: value for path, value in self._as_made.items() if not path.startswith(f"{name}.")}
            self._roots[name] = root
            self.look_again()

    def reseed(self, seed: int, paths: Collection[str] | None = None) -> None:
        """Seed generators, or some, each with a number of its own, by its path; ``seed`` is one of 64 bits."""
        for path in self._generators if paths is None else paths:
            seed_generator(self._generators[path], seed ^ xxhash.xxh3_64_intdigest(path.encode()))

    def raw_generator_states(self) -> dict[str, Any]:
        """The generators, as they describe themselves, by path."""
        return {path: raw_state(generator) for path, generator in self._generators.items()}

    def set_raw_generator_states(self, states: dict[str, Any]) -> None:
        """Put back :meth:`raw_generator_states`."""
        for path, state in states.items():
            set_raw_state(self._generators[path], state)

    def generator_states(self) -> dict[str, Any]:
        """The generators, as plain values and tensors, by path; of attributes, those that they hold now."""
        for path, generator in self._generators.items():
            owner, _, name = path.rpartition(".")
            held: Any = kept_variables(self._owners[owner]).get(name) if owner in self._owners else None
            if held is not generator and issubclass(type(held), Generator):
                self._generators[path] = held
        return {path: generator_state(generator) for path, generator in sorted(self._generators.items())}

    def restore_generators(self, states: dict[str, Any]) -> list[str]:
        """Put back :meth:`generator_states`; gives the paths at which there is none of the kind."""
        missing = states.keys() - self._generators.keys()
        for path, saved in states.items():
            if path in self._generators:
                try:
                    set_generator_state(self._generators[path], saved)
                except TypeError:
                    missing.add(path)
        return sorted(missing)

    def changed_values(self) -> dict[str, Any]:
        """The values that are no longer those of the beginning, :func:`stored`, by path."""
        values = self.values().items()
        changed = {path: stored(value) for path, value in values if not equal(value, self._as_made.get(path, ...))}
        for path, owner in self._owners.items():
            if self._thorough and is_stateful(owner) and not holds_loaders(owner):
                changed[path] = copy.deepcopy(owner.state_dict())
        return changed

    def restore_values(self, changed: dict[str, Any]) -> None:
        """Put back :meth:`changed_values`, and the others as they were in the beginning.

        What was ``None`` and is an object now, such as a file that is open, is left alone.
        """
        for path in changed.keys() & self._owners.keys():
            self._owners[path].load_state_dict(copy.deepcopy(changed[path]))
        self.restore_attributes(changed)

    def restore_attributes(self, changed: dict[str, Any]) -> None:
        """:meth:`restore_values`, but for what ``state_dict`` gave: an iteration that is under way may be in it."""
        now = self.values()
        for path in now.keys() - self._as_made.keys() - changed.keys():
            owner, _, name = path.rpartition(".")
            take_back(self._owners[owner], name)
        unchanged = {path: value for path, value in self._as_made.items() if path in now}
        self.set_values({**unchanged, **changed})

    def set_values(self, values: dict[str, Any]) -> None:
        """Some of :meth:`values`, :func:`stored` or not."""
        now = self.values()
        for path, saved in values.items():
            owner, _, name = path.rpartition(".")
            if owner in self._owners and path not in self._owners:
                value, keeper = as_it_was(saved), self._owners[owner]
                if value is not UNKNOWN and not equal(value, now.get(path, ...)):
                    set_variable(keeper, name, put_back(kept_variables(keeper).get(name), value))

    def set_values_still_there(self, values: dict[str, Any]) -> None:
        """:meth:`set_values`, but for what has been taken away since."""
        now = self.values()
        self.set_values({path: value for path, value in values.items() if path in now})

    def set_single_values(self, values: dict[str, Any]) -> None:
        """:meth:`set_values` of numbers and texts, without a look at what else there is."""
        for path, saved in values.items():
            owner, _, name = path.rpartition(".")
            if owner in self._owners and (value := as_it_was(saved)) is not UNKNOWN:
                set_variable(self._owners[owner], name, value)

    def shared_numbers(self) -> dict[str, Any]:
        """Those of :meth:`values` that data workers see at once, and may change."""
        return {f"{path}.value": number_in(owner) for path, owner in self._owners.items() if is_shared_number(owner)}

    def generators_that_are_new_since(self, other: OwnedState) -> list[str]:
        """The paths of those that ``other`` had not found, wherever they are."""
        known = {id(generator) for generator in other._generators.values()}
        return sorted(path for path, generator in self._generators.items() if id(generator) not in known)

    def has_as_many_generators_as(self, other: OwnedState) -> bool:
        """Whether none has been made since ``other`` looked at the same."""
        return len(self._generators) == len(other._generators)

    def objects(self) -> tuple[Any, ...]:
        """All objects that were found."""
        return (*self._owners.values(), *self._generators.values())

    def shares_objects_with(self, other: OwnedState) -> bool:
        """Whether an object, or a generator, was found by both."""
        return not {id(thing) for thing in self.objects()}.isdisjoint(id(thing) for thing in other.objects())

    def owners(self) -> list[tuple[str, Any]]:
        """All objects with attributes, by path."""
        return [*self._owners.items()]

    def attributes(self) -> Iterator[tuple[str, Any]]:
        """All attributes of all objects, and what functions refer to, by path."""
        for path, owner in self._owners.items():
            yield from ((f"{path}.{name}", value) for name, value in variables_at(owner).items())

    def held(self) -> list[int]:
        """What the objects refer to, by identity: as long as it is the same, there is nothing new to be found."""
        return [id(value) for _, value in self.attributes() if value is None or not is_scalar(type(value))]

    def _search_roots(self) -> None:
        self._generators: dict[str, Generator] = {}
        trainers: dict[str, Any] = {}
        self._trainers: dict[str, Any] | None = trainers  # that are found
        seen = {id(thing) for thing in self._ignored}
        for name, root in self._roots.items():
            self._left_to_search = _MAXIMUM_OBJECTS
            self._search(name, root, seen, 0)
        owners, self._trainers = self._owners, None
        for path, trainer in trainers.items():  # last, so that what others refer to as well is found as theirs
            self._owners = owners if self._with_trainers else {}
            self._left_to_search = _MAXIMUM_OBJECTS
            seen.remove(id(trainer))
            self._search(path, trainer, seen, 1)
        self._owners = owners

    def _search(self, path: str, thing: Any, seen: set[int], depth: int) -> None:
        if id(thing) in seen or depth > _MAXIMUM_DEPTH or self._left_to_search <= 0:
            return
        seen.add(id(thing))
        self._left_to_search -= 1
        try:
            parts = self._take(path, thing, is_root=depth == 0)
        except Exception:  # noqa: BLE001 - proxies of what is gone, what another thread changes: it has nothing to tell
            self._owners.pop(path, None)
            return
        for name, part in parts:
            if not is_scalar(type(part)):
                self._search(f"{path}.{name}", part, seen, depth + 1)

    def _take(self, path: str, thing: Any, *, is_root: bool) -> list[tuple[str, Any]]:
        kind = type(thing)  # isinstance() would ask proxies
        if issubclass(kind, Generator):
            raw_state(thing)  # random.SystemRandom has none
            self._generators[path] = thing
            return []
        if is_opaque(thing) or (not is_root and saves_itself(thing)):
            return []
        if self._trainers is not None and holds_loaders(thing):
            self._trainers[path] = thing
            return []
        if keeps_variables(thing):
            self._owners[path] = thing
        return [] if is_shared_number(thing) else list(searched_parts(thing))

    def values(self, *, at_a_glance: bool = False) -> dict[str, Any]:
        """All single values and, if ``thorough``, flat containers, by path.

        Args:
            at_a_glance: look for changes in a part of long lists and of large arrays only.
        """
        found = {}
        for owner_path, owner in self._owners.items():
            for name, value in kept_variables(owner).items():
                path = f"{owner_path}.{name}"
                if is_scalar(type(value)):
                    found[path] = value
                elif (copied := self._copy_of(path, value, at_a_glance)) is not None:
                    found[path] = copied
        return found

    def _copy_of(self, path: str, value: Any, at_a_glance: bool) -> Any:
        """:func:`copy_of`, the last one if the value is still that."""
        if not (self._thorough or is_single_value(value)) or (plain := as_plain(value)) is None:
            return None
        known, copied = self._copies.get(path, (None, None))
        if copied is None and at_a_glance and known is value:  # a long list that has an object in it
            return None
        is_counted = issubclass(type(value), Tensor) and not value.is_inference()
        version = value._version if is_counted else None  # how often torch has written to it
        same = seem_equal if at_a_glance and version == self._versions.get(path) else equal
        self._versions[path] = version
        if copied is None or not same(plain, copied):
            copied = copy_of(value) if _is_flat(plain) else None
            self._copies[path] = (value if copied is None else None, copied)
        return copied


def _is_flat(value: Any) -> bool:
    return isinstance(value, Tensor) or all(map(is_scalar, {*map(type, value)}))
