"""What shows whether a loader has the same data as before: a split that was drawn again, labels that were made anew."""

from __future__ import annotations

import posixpath
from collections import deque
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import xxhash
from torch import Tensor

from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.data.errors import DataOrderWarning
from neuromanifold_gpt.data.function_identity import name_of
from neuromanifold_gpt.state.modules import listed
from neuromanifold_gpt.state.owned_state import OwnedState
from neuromanifold_gpt.state.unsaved.shown_values import shown_value

_LOOKED_AT_ITEMS = 1000  # of a list, evenly spaced
_LOOKED_AT_WITHIN = 10  # of a list in it


class ShownData:
    """Tensors, arrays and lists that data consists of, as they are when this is made.

    Of texts in lists only what is behind the last slash counts: the data may have moved.

    Args:
        owned: those of datasets, samplers and collate functions.

    Attributes:
        texts: what shows them, by path.
    """

    def __init__(self, owned: OwnedState) -> None:
        shown = {path: text for path, value in owned.attributes() if (text := _shown(value)) is not None}
        elsewhere = tuple(f"{path}." for path, owner in owned.owners() if _is_of_another_process(owner))
        self.texts = {path: text for path, text in shown.items() if not path.startswith(elsewhere)}

    def under(self, prefix: str, collate_fns: Mapping[str, Any] = MappingProxyType({})) -> dict[str, str]:
        """``texts`` with something in front of the paths, to be stored among others.

        Args:
            prefix: it.
            collate_fns: the functions that collate now, by path, to be shown by name.
        """
        names = {path: name_of(function) for path, function in collate_fns.items()}
        return {prefix + path: text for path, text in {**self.texts, **names}.items()}

    def warn_of_others(
        self, saved: Mapping[str, str], prefix: str = "", collate_fns: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        """Compare with those of a save; what only one of them has was made on the way.

        Args:
            saved: with what :meth:`under` gave then, and others.
            prefix, collate_fns: as for that.

        Warns:
            DataOrderWarning: names what differs.
        """
        now = self.under(prefix, collate_fns)
        others = sorted(path.removeprefix(prefix) for path, text in now.items() if saved.get(path, text) != text)
        if others:
            warn_user(
                f"the data is other than at the save, so other samples follow: {listed(others)}. Make it as it was "
                "made then: draw splits, noise and orders from a generator with a seed of its own, such as "
                "random_split(..., generator=torch.Generator().manual_seed(0)), and save what the weights have made.",
                DataOrderWarning,
            )


def _is_of_another_process(owner: Any) -> bool:
    """Whether it is of :mod:`multiprocessing.managers`, and has where that process is found, instead of data."""
    return any(base.__module__ == "multiprocessing.managers" for base in type(owner).__mro__)


def _shown(value: Any) -> str | None:
    kind = type(value)  # isinstance() would ask proxies
    if issubclass(kind, Tensor | np.ndarray):
        return shown_value(value, is_data=True)
    if not issubclass(kind, list | tuple):
        return None
    return f"{len(value)} {xxhash.xxh3_64_hexdigest(repr(_items(value, _LOOKED_AT_ITEMS)).encode())}"


def _items(values: Sequence[Any], count: int) -> list[Any]:
    return [_item(values[number]) for number in range(0, len(values), -(-len(values) // count) or 1)]


def _item(value: Any) -> Any:
    kind = type(value)
    if issubclass(kind, str):
        return posixpath.basename(value)
    if issubclass(kind, bool | int | float | complex | bytes | np.generic):
        return repr(value)
    if kind in (list, tuple, deque):
        return _items(value, _LOOKED_AT_WITHIN)
    return shown_value(value, is_data=True) if issubclass(kind, Tensor | np.ndarray) else kind.__qualname__
