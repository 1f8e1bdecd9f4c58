"""A sampler on its way through an epoch."""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from neuromanifold_gpt.data.sample_seeds import OwnGenerators
from neuromanifold_gpt.state.inspection.flat_values import equal
from neuromanifold_gpt.state.inspection.stored_values import is_scalar, stored
from neuromanifold_gpt.state.owned_state import OwnedState

_DIGEST_BYTES = 8
_PASSED_OVER_AT_ONCE = 1024
_MOST_CHANGES = 10_000  # that are remembered of an epoch

# Numbers and texts that others have changed: when so many units had been drawn, to these values, by path.
Changes = list[tuple[int, dict[str, Any]]]


class RunningSampler:
    """A pass of a sampler, and what others change in it meanwhile.

    Args:
        owned: the sampler's state.
        began_with: its values at the beginning of the epoch, the very object that the position has.
        units: of the pass.
        ids: those of the units taken so far.
        taken: number of these.
        now: what :meth:`changes` gave before a resume.
    """

    def __init__(
        self,
        owned: OwnedState,
        began_with: Any,
        units: SamplerUnits,
        ids: CountedIds,
        taken: int,
        now: dict[str, Any],
    ) -> None:
        self.began_with = began_with
        self._owned, self._units, self._ids, self._taken = owned, units, ids, taken
        self._changed = {*now.get("values", ())}
        self._changes: Changes = list(now.get("changes", ()))
        self._values = owned.values(at_a_glance=True)

    def take(self, count: int) -> list[Any]:
        """The next units; what changes while they are taken, the sampler changes itself."""
        self._look()
        units = self._units.take(count)
        self._taken += len(units)
        self._values = self._owned.values(at_a_glance=True)
        return units

    def changes(self) -> dict[str, Any]:
        """What others have changed, and where the sampler is, which is ahead of the position if workers fetch ahead.

        Empty if it is nothing.
        """
        values = self._look()
        changed = {path: stored(values[path]) for path in sorted(self._changed) if path in values}
        if not changed:
            return {}
        ids_digest, is_over = self._ids.digest(), self._units.is_over
        return {
            "values": changed,
            "changes": list(self._changes),
            "units_taken": self._taken,
            "is_over": is_over,
            "ids_digest": ids_digest,
        }

    def _look(self) -> dict[str, Any]:
        values = self._owned.values(at_a_glance=True)
        changed = {path for path, value in values.items() if not equal(value, self._values.get(path, ...))}
        self._changed |= changed
        self._remember({path: stored(values[path]) for path in sorted(changed) if is_scalar(type(values[path]))})
        self._values = values
        return values

    def _remember(self, changed: dict[str, Any]) -> None:
        """When a sampler that looks at its numbers while it runs has had which."""
        if changed and self._changes and self._changes[-1][0] == self._units.drawn:
            changed = {**self._changes.pop()[1], **changed}
        if changed and len(self._changes) < _MOST_CHANGES:
            self._changes.append((self._units.drawn, changed))


class SamplerUnits:
    """The samples or batches of a sampler that runs with generators of its own.

    They are taken as many at a time as are needed: the sampler may depend on what training does meanwhile.

    Args:
        source: the sampler.
        generators: its own.
        changes: to make again on the way.
        change: makes one.
    """

    def __init__(
        self,
        source: Iterable[Any],
        generators: OwnGenerators,
        changes: Changes,
        change: Callable[[dict[str, Any]], None],
    ) -> None:
        self._generators = generators
        self.changes_left, self._change = deque(changes), change
        self._put_back: list[Any] = []
        self.drawn = 0
        self.is_over = False  # the sampler has come to its end
        with generators.in_place():
            self._iterator = iter(source)

    def take(self, count: int) -> list[Any]:
        """The next ones; fewer at the end."""
        taken, self._put_back = self._put_back[:count], self._put_back[count:]
        if len(taken) < count:
            with self._generators.in_place():
                taken += self._draw(count - len(taken))
            self.is_over = len(taken) < count
        return taken

    def _draw(self, count: int) -> list[Any]:
        units: list[Any] = []
        while len(units) < count:
            while self.changes_left and self.changes_left[0][0] <= self.drawn:
                self._change(self.changes_left.popleft()[1])
            wanted = count - len(units)
            if self.changes_left:
                wanted = min(wanted, self.changes_left[0][0] - self.drawn)
            found = list(itertools.islice(self._iterator, wanted))
            units += found
            self.drawn += len(found)
            if len(found) < wanted:
                break
        return units

    def put_back(self, units: list[Any]) -> None:
        """Let them be the next ones."""
        self._put_back = [*units, *self._put_back]

    def passed_over(self, count: int) -> Iterator[Any]:
        """The next ones, which nobody trains on."""
        while count > 0 and (taken := self.take(min(count, _PASSED_OVER_AT_ONCE))):
            count -= len(taken)
            yield from taken


class CountedIds:
    """How many sample ids there were, and a digest of them in their order."""

    def __init__(self) -> None:
        self.count = 0
        self._hash = hashlib.blake2b(digest_size=_DIGEST_BYTES)

    def add(self, sample_ids: Iterable[Any]) -> None:
        """The next ones."""
        for sample_id in sample_ids:
            self._hash.update(f"{sample_id!r},".encode())
            self.count += 1

    def copy(self) -> CountedIds:
        """That goes on by itself."""
        other = CountedIds()
        other.count, other._hash = self.count, self._hash.copy()
        return other

    def digest(self) -> str:
        """Of all so far."""
        return self._hash.hexdigest()
