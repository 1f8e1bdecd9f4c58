"""Loaders of torch that are none of this package: what decides their batches, whether a pass is under way, and whether
their workers stay."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.state.inspection.plain_reading import attribute_dict
from neuromanifold_gpt.state.inspection.users_objects import has_position
from neuromanifold_gpt.state.modules import listed

_MOST_LOOKS = 10  # for one loader: a look at all objects takes some 50 ms
_looks: WeakKeyDictionary[DataLoader[Any], int] = WeakKeyDictionary()
_said_to_stay: WeakSet[DataLoader[Any]] = WeakSet()


def is_stock_loader(thing: Any) -> bool:
    """Whether it is a ``DataLoader`` that is none of this package."""
    return issubclass(type(thing), DataLoader) and not has_position(thing)


def parts_of_stock_loader(loader: Any) -> dict[str, Any]:
    """What decides the batches of a loader that has no position, by name; nothing of other things."""
    if not is_stock_loader(loader):
        return {}
    has = attribute_dict(loader) or {}  # a users' class may have properties, or none of DataLoader's attributes
    sampler = "sampler" if has.get("batch_sampler") is None else "batch_sampler"
    attributes = {"generator": "generator", "sampler": sampler, "dataset": "dataset", "collate_fn": "collate_fn"}
    return {name: has[attribute] for name, attribute in attributes.items() if attribute in has}


def warn_of_passes_under_way(things: Mapping[str, Any]) -> None:
    """For plain loops: of a pass over a stock loader, no checkpoint has the position.

    Iterators are looked for among all objects, since those of a ``for`` are in no variable.

    Args:
        things: that a loop holds, by name.

    Warns:
        InexactResumeWarning: names the loaders in the middle of which is saved, once.
    """
    loaders = {name: thing for name, thing in things.items() if is_stock_loader(thing)}
    loaders = {name: loader for name, loader in loaders.items() if _looks.get(loader, 0) < _MOST_LOOKS}
    if not loaders:
        return
    _looks.update((loader, _looks.get(loader, 0) + 1) for loader in loaders.values())
    passes = {id(iterator._dataset): iterator._num_yielded for iterator in _iterators()}
    under_way = {name: loader for name, loader in loaders.items() if _is_under_way(loader, passes)}
    if under_way:
        _looks.update(dict.fromkeys(under_way.values(), _MOST_LOOKS))
        warn_user(
            f"this save is in the middle of a pass over a DataLoader, and no checkpoint has its position: "
            f"{listed(sorted(under_way))}. Unless the loop goes there by itself, a resume goes on with other batches: "
            "use ResumableDataLoader, or resumable(loader), and give it to loaders=.",
            InexactResumeWarning,
        )


def warn_of_seeds_of_iterators(loaders: Iterable[Any], states: Iterable[Any]) -> None:
    """For plain loops, at the restore, of other loaders that have a position, such as torchdata's.

    Args:
        loaders: that were restored.
        states: of each.

    Warns:
        InexactResumeWarning: names those whose iterator, in the middle of an epoch, draws when the global random
            numbers have been restored.
    """
    drawing = [
        type(loader).__name__
        for loader, state in zip(loaders, states, strict=False)
        if is_stock_loader(loader) and loader.generator is None and not _is_finished(state)
    ]
    if drawing:
        warn_user(
            f"{listed(drawing)}: its iterator draws a seed from torch's global generator when it is made, which the "
            "run that was saved did not do here: what training draws from it (dropout) is other from here on. Give the "
            "loader a generator of its own: generator=torch.Generator().",
            InexactResumeWarning,
        )


def _is_finished(state: Any) -> bool:
    return isinstance(state, Mapping) and bool(state.get("_iterator_finished"))


def warn_of_workers_that_stay(things: Mapping[str, Any]) -> None:
    """For plain loops: workers that stay are made once in a run, but again behind each resume, and draw a seed.

    Args:
        things: that a loop holds, by name.

    Warns:
        InexactResumeWarning: names the stock loaders whose workers have been made, once.
    """
    loaders = {
        name: thing for name, thing in things.items() if is_stock_loader(thing) and _has_workers_that_stay(thing)
    }
    new = {name: loader for name, loader in loaders.items() if loader not in _said_to_stay}
    _said_to_stay.update(new.values())
    if new:
        warn_user(
            f"a DataLoader with persistent_workers has made its workers: {listed(sorted(new))}. That draws a seed from "
            "its generator, or from torch's: once in a run that goes on, and once more behind each resume, so that "
            "other random numbers follow. Leave persistent_workers out; or use ResumableDataLoader, or "
            "resumable(loader), and give it to loaders=.",
            InexactResumeWarning,
        )


def _has_workers_that_stay(loader: DataLoader[Any]) -> bool:
    """And that they have been made with a seed from a generator that others draw from."""
    has = attribute_dict(loader) or {}
    generator, of_sampler = has.get("generator"), (attribute_dict(has.get("sampler")) or {}).get("generator")
    is_made = has.get("persistent_workers") is True and has.get("_iterator") is not None
    return is_made and has.get("num_workers", 0) > 0 and (generator is None or generator is of_sampler)


def _iterators() -> Iterator[_BaseDataLoaderIter]:
    yield from (thing for thing in gc.get_objects() if issubclass(type(thing), _BaseDataLoaderIter))


def _is_under_way(loader: DataLoader[Any], passes: Mapping[int, int]) -> bool:
    given = passes.get(id((attribute_dict(loader) or {}).get("dataset")), 0)
    try:
        return 0 < given < len(loader)
    except TypeError:  # of a stream without length
        return given > 0
