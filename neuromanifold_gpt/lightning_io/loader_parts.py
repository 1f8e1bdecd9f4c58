"""What decides the batches of a loader that is read again on a resume."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from lightning.fabric.utilities.data import sized_len
from lightning.fabric.utilities.types import _Stateful
from lightning.pytorch.utilities.combined_loader import CombinedLoader, _shutdown_workers_and_reset_iterator
from torch.utils.data import DataLoader

from neuromanifold_gpt.checkpoint.errors import StateMismatchError
from neuromanifold_gpt.data.function_identity import name_of
from neuromanifold_gpt.data.positioned_loader import PositionedLoader
from neuromanifold_gpt.state.inspection.plain_reading import CONTAINERS, attribute_dict, values_in
from neuromanifold_gpt.state.inspection.users_objects import is_of_users_class
from neuromanifold_gpt.state.owned_state import OwnedState
from neuromanifold_gpt.state.unsaved.stock_loaders import parts_of_stock_loader

DATA = ("dataset", "collate_fn", "generator", "iterable", "loader")  # of a validation, training may share it
ORDER = ("sampler",)
_END = object()
DATA_PREFIX = "data."  # of paths in the manifest


class OwnedByLoaders:
    """What decides the batches of loaders without ``state_dict``.

    Args:
        loaders: all.
        kinds: of parts.

    Attributes:
        parts: by name, such as ``0.dataset``.
    """

    def __init__(self, loaders: list[Any], kinds: Collection[str] = (*DATA, *ORDER)) -> None:
        self._loaders = loaders
        self.parts = {
            name: OwnedState(
                {name: part},
                ignored,
                thorough=name.endswith("sampler"),
                with_trainers=name.endswith(".iterable"),  # it may go through loaders, and does not train
            )
            for number, loader in enumerate(loaders)
            if not isinstance(loader, _Stateful)
            for name, part, ignored in _parts_with_state(number, loader)
            if name.partition(".")[2] in kinds
        }
        self._inner = {name: _positioned_within(owned) for name, owned in self.parts.items()}

    def look_for_generators(self) -> None:
        """Find those that hooks and samples have made meanwhile."""
        for owned in self.parts.values():
            owned.look_for_generators()

    def generator_states(self) -> dict[str, Any]:
        """By name of the part, as plain values and tensors."""
        return {name: owned.generator_states() for name, owned in self.parts.items()}

    def restore_generators(self, states: dict[str, Any]) -> list[str]:
        """Put back :meth:`generator_states`; gives the paths at which there is none of the kind."""
        self.look_for_generators()
        names = states.keys() & self.parts.keys()
        return [path for name in sorted(names) for path in self.parts[name].restore_generators(states[name])]

    def make_generators(self, states: dict[str, Any]) -> None:
        """Make those of a save that are not there yet, as far as they come with the first batch, which nobody gets.

        Values, and random number generators, are used; the caller restores them afterwards.
        """
        self.look_for_generators()
        missing = {
            name.partition(".")[0]
            for name, owned in self.parts.items()
            if states.get(name, {}).keys() - owned.generator_states().keys()
        }
        for number, loader in enumerate(self._loaders):
            if str(number) in missing and not isinstance(loader, Iterator):
                next(iter(loader), None)
                _shutdown_workers_and_reset_iterator(loader)

    def state(self) -> dict[str, Any]:
        """Generators, changed values, and epochs of loaders within, by name of the part."""
        return {
            name: {
                "generators": owned.generator_states(),
                "values": owned.changed_values(),
                "inner": [loader.position() for loader in self._inner[name]],
            }
            for name, owned in self.parts.items()
        }

    def restore(self, saved: dict[str, Any]) -> list[str]:
        """Put back :meth:`state`; gives what :meth:`restore_generators` gives."""
        for name, owned in self.of(saved):
            owned.restore_values(saved[name]["values"])
            for loader, state in zip(self._inner[name], saved[name]["inner"], strict=False):
                loader.load_state_dict(state)
                loader.leave_pass()
        return self.restore_generators(generators_in(saved))

    def of(self, saved: dict[str, Any]) -> list[tuple[str, OwnedState]]:
        """The parts of :meth:`state` that are here, in its order."""
        return [(name, self.parts[name]) for name in saved if name in self.parts]


def _positioned_within(owned: OwnedState) -> list[PositionedLoader]:
    """Loaders of this package that a user's iterable goes through, such as a prefetcher: it is read again from the
    beginning of the epoch in which they were.
    """
    found: dict[int, PositionedLoader] = {}
    for _, value in owned.attributes():
        parts = values_in(value) if issubclass(type(value), CONTAINERS) else [value]
        found.update((id(part), part) for part in parts if isinstance(part, PositionedLoader))
    return [*found.values()]


def generators_in(saved: dict[str, Any]) -> dict[str, Any]:
    """The states of generators in :meth:`OwnedByLoaders.state`."""
    return {name: state["generators"] for name, state in saved.items()}


def positioned(combined: CombinedLoader | None) -> list[PositionedLoader]:
    """The loaders of this package among some."""
    loaders = combined.flattened if combined is not None else []
    return [loader for loader in loaders if isinstance(loader, PositionedLoader)]


def states_of(loaders: list[Any]) -> list[dict[str, Any]]:
    """Of the loaders that have one. Lightning knows by itself when an epoch is over."""
    return [
        loader.state_between_passes() if isinstance(loader, PositionedLoader) else loader.state_dict()
        for loader in loaders
        if isinstance(loader, _Stateful)
    ]


def load_states(loaders: list[Any], states: list[dict[str, Any]]) -> None:
    """Put loaders where they were at :func:`states_of`."""
    stateful = _with_state(loaders)
    if len(stateful) != len(states):
        raise StateMismatchError(
            f"the checkpoint has the positions of {len(states)} training loaders with state_dict, there are "
            f"{len(stateful)} here. Use the loaders of the save."
        )
    for loader, state in zip(stateful, states, strict=True):
        loader.load_state_dict(state)


def _with_state(loaders: list[Any]) -> list[Any]:
    return [loader for loader in loaders if isinstance(loader, _Stateful)]


def finish_passes(loaders: list[Any], states: list[dict[str, Any]]) -> None:
    """Of loaders that were put to the end of a pass: some would give an empty one first, which Lightning would count.

    Random number generators are used; the caller restores them afterwards.
    """
    for loader, state in zip(_with_state(loaders), states, strict=True):
        if isinstance(loader, PositionedLoader):
            continue
        if next(iter(loader), _END) is not _END:  # it begins the next by itself
            loader.load_state_dict(state)
        _shutdown_workers_and_reset_iterator(loader)


def settings_of(loaders: list[Any], as_made: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """What decides how the samples of loaders without ``state_dict`` become batches.

    Args:
        loaders: all.
        as_made: the settings when training began, of which only the function that collates may be another now.
    """
    stock = [loader for loader in loaders if not isinstance(loader, _Stateful)]
    before = map(_settings, stock) if as_made is None else as_made
    return [{**settings, **_collate_fn(loader)} for settings, loader in zip(before, stock, strict=True)]


def collate_fns_of(loaders: list[Any]) -> dict[str, Any]:
    """The functions that collate batches of stock loaders, by path."""
    parts = {number: parts_of_stock_loader(loader) for number, loader in enumerate(loaders)}
    return {f"{number}.collate_fn": found["collate_fn"] for number, found in parts.items() if "collate_fn" in found}


def _collate_fn(loader: Any) -> dict[str, Any]:
    found = parts_of_stock_loader(loader)
    return {"collate_fn": name_of(found["collate_fn"])} if "collate_fn" in found else {}


def _settings(loader: Any) -> dict[str, Any]:
    if not isinstance(loader, DataLoader):
        return {}
    batches = loader.batch_sampler if loader.batch_sampler is not None else loader
    found: dict[str, Any] = {"sampler": type(loader.sampler).__name__}
    for name in ("batch_size", "drop_last"):
        value = (attribute_dict(batches) or {}).get(name)
        if type(value) in (int, bool):  # users' batch samplers may have anything there
            found[name] = value
    if all(type(part).__module__.startswith("torch.") for part in (loader.sampler, batches)):  # they ask for it too
        found["dataset_size"] = sized_len(loader.dataset)
    return found


def data_of(loaders: list[Any], known: list[Any]) -> OwnedState:
    """What holds the data of loaders.

    Args:
        loaders: of training, or of validation.
        known: objects that are passed over.
    """
    parts: dict[str, Any] = {}
    for number, loader in enumerate(loaders):
        of_it = loader.data_parts() if isinstance(loader, PositionedLoader) else parts_of_stock_loader(loader)
        named = sorted((of_it or {"iterable": loader}).items(), key=lambda pair: pair[0] != "dataset")  # it gives names
        parts.update((f"{number}.{name}", part) for name, part in named)
    return OwnedState(parts, tuple(known))


def _parts_with_state(number: int, loader: Any) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """What of a loader decides its batches, by name, each with what belongs to another part."""
    parts = parts_of_stock_loader(loader)
    for name, part in parts.items():
        yield f"{number}.{name}", part, (parts.get("dataset"),) if name == "sampler" else ()
    if not parts:
        yield f"{number}.iterable", loader, ()
    elif is_of_users_class(loader):  # which may count passes, or batches, itself
        yield f"{number}.loader", loader, (*parts.values(), vars(loader).get("sampler"))


def is_order(name: str) -> bool:
    """Whether a part decides the order of the samples, and is under way while they come."""
    return name.endswith((".sampler", ".generator"))
