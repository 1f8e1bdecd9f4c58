"""What a plain loop gives ``save_checkpoint`` and ``restore``: of each kind one, several or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from neuromanifold_gpt.state.generators import Generator
from neuromanifold_gpt.state.inspection.users_objects import has_position
from neuromanifold_gpt.state.modules import parameter_names, require_module, unwrap
from neuromanifold_gpt.state.own_generators import by_number
from neuromanifold_gpt.state.unsaved.saved_things import is_optimizer

T = TypeVar("T")
DATA_KEY = "data"  # of a manifest's details: what shows the data of loaders


class Stateful(Protocol):
    """Anything with torch's two methods: a ``GradScaler``, an EMA of the weights, a ``ResumableDataLoader``."""

    def state_dict(self) -> dict[str, Any]:
        """The state, of plain values and tensors."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Take the state."""
        ...


@dataclass(frozen=True)
class LoopParts:
    """All that is saved, or restored, together.

    Attributes:
        model: ``None`` where only the rest is restored.
        optimizers, schedulers, loaders: in the order of the user.
        further: what else has a state, by name.
        generators: random number generators that were given by name.
    """

    model: nn.Module | None
    optimizers: list[torch.optim.Optimizer]
    schedulers: list[Stateful]
    loaders: list[Stateful]
    further: dict[str, Stateful]
    generators: dict[str, Generator]

    @classmethod
    def given(
        cls,
        model: nn.Module | None,
        optimizers: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None,
        schedulers: Stateful | Sequence[Stateful] | None,
        loaders: Stateful | Sequence[Stateful] | None,
        stateful: Mapping[str, Stateful | Generator] | None,
    ) -> LoopParts:
        """As users give them.

        Raises:
            TypeError: ``model`` is no module; ``optimizers``, ``schedulers`` or ``loaders`` is a dict; or one of
                ``loaders`` or ``stateful`` has no state.
        """
        if model is not None:
            require_module(model)
        for kind, given in (("optimizers", optimizers), ("schedulers", schedulers), ("loaders", loaders)):
            if isinstance(given, Mapping):
                raise TypeError(f"{kind}: expected one object or a list, found a {type(given).__qualname__}.")
        generators = {key: value for key, value in (stateful or {}).items() if isinstance(value, Generator)}
        further = {key: value for key, value in (stateful or {}).items() if not isinstance(value, Generator)}
        _require_state("loaders", as_list(loaders))
        _require_state("stateful", list(further.values()))
        return cls(model, as_list(optimizers), as_list(schedulers), as_list(loaders), further, generators)

    @property
    def module(self) -> nn.Module:
        """The model without what is around it; an empty one where none was given."""
        return nn.Module() if self.model is None else unwrap(self.model)

    @property
    def parameter_names(self) -> dict[int, str]:
        """The name in the model of each of its parameters, by ``id``."""
        return {} if self.model is None else parameter_names(self.model)

    @property
    def beside_model(self) -> list[Any]:
        """Whatever else has a state."""
        return [*self.optimizers, *self.schedulers, *self.loaders, *self.further.values()]

    @property
    def own_loaders(self) -> dict[int, Any]:
        """Those of this package's classes, by their number among all."""
        return {number: loader for number, loader in enumerate(self.loaders) if has_position(loader)}

    @property
    def with_settings(self) -> list[Any]:
        """Schedulers, and optimizers that can be followed, whose settings a loop may change between two batches."""
        return [*self.schedulers, *filter(is_optimizer, self.optimizers)]

    @property
    def by_number(self) -> dict[str, Any]:
        """Optimizers and schedulers by names such as ``optimizers.0``."""
        return by_number(optimizers=self.optimizers, schedulers=self.schedulers)


def as_list(one_or_several: T | Sequence[T] | None) -> list[T]:
    """A list of what was given, be it one object, a sequence or nothing."""
    if one_or_several is None:
        return []
    return list(one_or_several) if isinstance(one_or_several, Sequence) else [one_or_several]


def _require_state(kind: str, objects: Sequence[Any]) -> None:
    """Refuse what has none, such as a stock ``DataLoader``."""
    for item in objects:
        if not (hasattr(item, "state_dict") and hasattr(item, "load_state_dict")):
            raise TypeError(
                f"{kind}: expected objects with state_dict and load_state_dict, found a {type(item).__qualname__}. "
                "Wrap a DataLoader in resumable(loader); of a wrapper, such as Fabric's, give the loader inside."
            )
