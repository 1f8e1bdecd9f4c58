"""Generator functions under way that samplers take along from epoch to epoch."""

from __future__ import annotations

import inspect
import types
import weakref
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from torch.utils.data import Sampler

from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.data.errors import DataOrderWarning
from neuromanifold_gpt.state.inspection.kept_variables import variables_at
from neuromanifold_gpt.state.modules import listed


class CarriedGenerators:
    """Follows those that are there before a pass, and have gone on when it ends: the next one takes up there."""

    def __init__(self) -> None:
        self._before_pass: dict[str, weakref.ref[types.GeneratorType[Any, Any, Any]]] = {}
        self._said: set[str] = set()

    def begin_pass(self, owners: Iterable[tuple[str, Any]]) -> None:
        """Nothing of it is asked for yet.

        Args:
            owners: the objects that batches are made of, by path.
        """
        self._before_pass = {path: weakref.ref(generator) for path, generator in _generators(owners)}

    def warn_of_those_that_go_on(self, owners: Iterable[tuple[str, Any]], made_by_passes: Collection[str]) -> None:
        """The pass is over.

        Args:
            owners: as for :meth:`begin_pass`.
            made_by_passes: paths of what is made anew in each.

        Warns:
            DataOrderWarning: names those that were not named before.
        """
        before = {path: generator() for path, generator in self._before_pass.items()}
        on_the_way = {
            path
            for path, generator in _generators(owners)
            if before.get(path) is generator and inspect.getgeneratorstate(generator) == inspect.GEN_SUSPENDED
        }
        new = sorted(on_the_way - {*made_by_passes} - self._said)
        self._said.update(new)
        if new:
            warn_user(
                f"{listed(new)}: a generator that goes on in the next epoch, and that no checkpoint can have. A "
                "resumed run begins it anew: draw each epoch by itself, from a seed and its number, or count how far "
                "it is in a state_dict.",
                DataOrderWarning,
            )


def _generators(owners: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, types.GeneratorType[Any, Any, Any]]]:
    for path, owner in owners:
        if issubclass(type(owner), Sampler) and not hasattr(owner, "state_dict"):
            for name, value in variables_at(owner).items():
                if type(value) is types.GeneratorType:
                    yield f"{path}.{name}", value
