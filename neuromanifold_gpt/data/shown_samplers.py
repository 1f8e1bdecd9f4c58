"""What a loader shows as its sampler and batch sampler, to those who set epochs there, and what else they set there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data.distributed import DistributedSampler

from neuromanifold_gpt.data.position import Position

_LIGHTNING = ("lightning.", "lightning_fabric.", "pytorch_lightning.")  # where it counts, its own counters are restored
_FABRIC_WRAPPERS = ("lightning.fabric.wrappers", "lightning_fabric.wrappers")


class EpochSetter(DistributedSampler[Any]):
    """Passes ``set_epoch`` on.

    Lightning calls it, and would replace a sampler that it does not take for a distributed one.
    """

    _position: Position

    def set_epoch(self, epoch: int) -> None:
        """See :meth:`Position.set_epoch`; Fabric begins to count at 0 in each process, however far training is."""
        asking = sys._getframe(2).f_globals.get("__name__")  # it calls a function that it shares with the Trainer
        if asking in _FABRIC_WRAPPERS:
            self._position.set_counted_epoch(epoch)
        else:
            if not str(sys._getframe(1).f_globals.get("__name__")).startswith(_LIGHTNING):
                self._position.warn_if_left_for(epoch)
            self._position.set_epoch(epoch)


class ShownSampler(EpochSetter):
    """A sampler or batch sampler of the user: what is read, called and set here reaches it, but for the epoch."""

    def __init__(self, position: Position, sampler: Any) -> None:  # not super(): that one wants a process group
        vars(self).update(_position=position, _sampler=sampler)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copies and pickles ask for these, also before there is a sampler
            raise AttributeError(name)
        value = getattr(self._sampler, name)
        is_asked_too = name == "sampler" and hasattr(value, "set_epoch")  # by Lightning
        return ShownSampler(self._position, value) if is_asked_too else value

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._sampler, name, value)

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._sampler)

    def __getitem__(self, index: Any) -> Any:
        return self._sampler[index]


class ShownOrder(EpochSetter):
    """An order that is the loader's own: it can be read, and nothing of it can be set.

    Args:
        position: of the loader.
        remedy: what to do instead.
        length: gives what ``len()`` gives.
        attributes: what else can be read.
    """

    _remedy: str
    _length: Callable[[], int] | None

    def __init__(
        self, position: Position, remedy: str, length: Callable[[], int] | None = None, **attributes: Any
    ) -> None:
        vars(self).update(_position=position, _remedy=remedy, _length=length, **attributes)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            f"{name} cannot be set: the order is the loader's own, and would not change. {self._remedy}"
        )

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError("the order of a stream has no length.")
        return self._length()

    def __iter__(self) -> Iterator[Any]:
        raise TypeError("the order is the loader's own: iterate over the loader.")
