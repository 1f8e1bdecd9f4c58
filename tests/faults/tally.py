"""What the sweeps of this folder tried, and what was lost: counted as it happens, printed when pytest ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

_SHOWN_LOSSES = 20


@dataclass
class Tally:
    """Trials by kind; a loss is a trial after which something that was promised does not hold."""

    trials: Counter[str] = field(default_factory=Counter)
    losses: list[str] = field(default_factory=list)

    @contextmanager
    def trial(self, kind: str, what: object) -> Iterator[None]:
        """One trial; an exception inside is a loss, and the sweep goes on."""
        self.trials[kind] += 1
        try:
            yield
        except Exception as error:  # noqa: BLE001 it is reported at the end of the sweep, and by pytest's exit code
            self.losses.append(f"{kind}: {what}: {type(error).__name__}: {error}")

    @contextmanager
    def sweep(self) -> Iterator[None]:
        """Many trials; the test fails at the end if one of them was a loss."""
        before = len(self.losses)
        yield
        lost = self.losses[before:]
        assert not lost, f"{len(lost)} losses:\n" + "\n".join(lost[:_SHOWN_LOSSES])

    def add(self, trials: Mapping[str, int], losses: list[str]) -> None:
        """What another process counted."""
        self.trials.update(trials)
        self.losses += losses

    def write(self, line: Callable[[str], object]) -> None:
        """A line for each kind, and one for the losses."""
        for kind, count in sorted(self.trials.items()):
            line(f"{count:9,d} {kind}")
        line(f"{len(self.losses):9,d} losses")


TALLY = Tally()
