"""Dicts in which a dataset remembers the samples that it has made: they are no state, if samples draw nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from neuromanifold_gpt.data.sample_seeds import SeededSamples
from neuromanifold_gpt.state.owned_state import OwnedState
from neuromanifold_gpt.state.unsaved.shown_values import shown_value

_LOOKED_AT = 1000  # those that are there first: it grows at its end
_SHOWN = 100
MOST_OWNERS = 100  # they are looked at with each batch


class Memos:
    """Follows dicts that grow while samples are made, and only then, and keep what they have.

    Args:
        samples: that are made.
        owned: what the dataset holds.
    """

    def __init__(self, samples: SeededSamples | None = None, owned: OwnedState | None = None) -> None:
        self._samples, self._owned = samples, owned
        self._sizes: dict[str, int] = {}  # when the last batch was there
        self._grown: set[str] = set()  # while one was made
        self._others: set[str] = set()  # dicts that are no memos
        self._entries: dict[str, dict[Any, Any]] = {}  # at the last look

    def batch_is_asked_for(self) -> None:
        """Who has another size than when the last batch was there, is no memo."""
        now = self._dicts()
        self._others.update(path for path, size in self._sizes.items() if path not in now or len(now[path]) != size)

    def batch_is_there(self) -> None:
        """What is there now, its samples have needed."""
        dicts = self._dicts()
        for path in dicts.keys() - self._entries.keys():
            self._entries[path] = _entries(dicts[path])
        self._grown.update(path for path, value in dicts.items() if len(value) > self._sizes.get(path, len(value)))
        self._sizes = {path: len(value) for path, value in dicts.items()}

    def left_out(self, changed: Sequence[str]) -> list[str]:
        """Without those that are memos, as far as they have shown.

        None are where samples draw, or a number or text of the dataset has changed: the same sample, made later, could
        be another one.
        """
        if not changed or self._samples is None or self._owned is None:
            return [*changed]
        dicts = self._dicts()
        for path, value in dicts.items():
            now, before = _entries(value), self._entries.get(path, {})
            if any(now.get(key) != before[key] for key in before) or _is_numbering(value):
                self._others.add(path)
            self._entries[path] = now
        memos = set() if self._samples.draws or self._owned.changed_values() else self._grown - self._others
        return [path for path in changed if path not in memos]

    def _dicts(self) -> dict[str, Any]:
        if self._owned is None or self._samples is None or self._samples.draws:
            return {}
        if len(self._owned.owners()) > MOST_OWNERS:
            return {}
        return {path: value for path, value in self._owned.attributes() if type(value) is dict}


def _is_numbering(value: dict[Any, Any]) -> bool:
    """Whether it gives things numbers as they come, as a vocabulary does: others, where they come in another order."""
    some = dict(islice(value.items(), _LOOKED_AT))
    numbers = [*some.values()]
    if len(some) < 2 or any(type(number) is not int for number in numbers):
        return False
    are_functions_of_keys = all(type(key) is int for key in some) and len({key - some[key] for key in some}) == 1
    return numbers == [*range(numbers[0], numbers[0] + len(numbers))] and not are_functions_of_keys


def _entries(value: dict[Any, Any]) -> dict[Any, Any]:
    """By key, which one it is, and of some how they are."""
    entries = [*islice(value.items(), _LOOKED_AT)]
    return {key: (id(part), shown_value(part) if n < _SHOWN else None) for n, (key, part) in enumerate(entries)}
