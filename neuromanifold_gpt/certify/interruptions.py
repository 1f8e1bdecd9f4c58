"""Plan where to interrupt: at steps, at random, in the middle of a save, at every step, several times in one run."""

from __future__ import annotations

import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace

from neuromanifold_gpt.certify.errors import PlanError

SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM}


@dataclass(frozen=True)
class Trigger:
    """When to interrupt one attempt.

    Attributes:
        step: when this step has been noticed; ``None`` otherwise.
        after_sec: when so much time has passed since the start; ``None`` otherwise.
        during_save: when a half-written file has been noticed while an earlier checkpoint is whole.
        patience: for saves: 0 takes some half-written moment, 1 the first one, 2 any moment of a save.
    """

    step: int | None = None
    after_sec: float | None = None
    during_save: bool = False
    patience: int = 0

    def __str__(self) -> str:
        if self.during_save:
            return "during a save"
        return f"at step {self.step}" if self.step is not None else f"after {self.after_sec:.2f} s"

    def eager(self, tries: int) -> Trigger:
        """The same a little earlier, for a program that ended before it could be interrupted."""
        if self.during_save:
            return replace(self, patience=min(tries, 2))
        if self.step is not None:
            return replace(self, step=max(1, int(self.step * (0.8, 0.5)[min(tries, 2) - 1])))
        return replace(self, after_sec=(self.after_sec or 0.0) * 0.7)

    def later(self) -> Trigger:
        """A little later, where the program was hit at a moment from which it does not recover."""
        return self if self.step is None else replace(self, step=self.step + 3)


@dataclass(frozen=True)
class Interruption:
    """One run to be interrupted: a trigger for each attempt that is to be ended, and by which signal."""

    triggers: tuple[Trigger, ...]
    signal_name: str

    def __str__(self) -> str:
        return f"SIG{self.signal_name} {', then '.join(map(str, self.triggers))}"


@dataclass(frozen=True)
class Plan:
    """What to do to the program.

    Attributes:
        at_steps: interrupt when these steps are reached.
        at_random: further interruptions at so many random steps.
        during_save: so many further interruptions in the middle of a save.
        every_step: interrupt at every step that the undisturbed run logged.
        times: interruptions in one run.
        signal_names: ``KILL`` and ``TERM``; every interruption is done with each.
        seed: of the random choices.
    """

    at_steps: tuple[int, ...] = ()
    at_random: int = 0
    during_save: int = 0
    every_step: bool = False
    times: int = 1
    signal_names: tuple[str, ...] = ("KILL",)
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.signal_names if name not in SIGNALS]
        if unknown or not self.signal_names:
            raise PlanError(f"signal: expected KILL or TERM, found {', '.join(unknown) or 'nothing'}.")
        if min(self.at_steps, default=1) < 1 or min(self.at_random, self.during_save) < 0 or self.times < 1:
            raise PlanError(
                f"interruptions: expected positive numbers, found at_steps={self.at_steps}, "
                f"at_random={self.at_random}, during_save={self.during_save}, times={self.times}."
            )

    @property
    def is_empty(self) -> bool:
        """Whether nothing was asked for."""
        return not (self.at_steps or self.at_random or self.during_save or self.every_step)

    def interruptions(
        self, steps: Sequence[int], first_save: int | None, window_sec: tuple[float, float]
    ) -> list[Interruption]:
        """The runs to interrupt.

        Args:
            steps: the steps that could be noticed while the undisturbed run ran, in order; empty if none could.
            first_save: the step at which its first checkpoint was there; random steps lie behind it.
            window_sec: from when on it was saving, and until when it ran, for programs whose steps cannot be noticed.
        """
        choice = random.Random(self.seed)
        planned: list[tuple[Trigger, ...]] = [
            (Trigger(step=step),) * self.times if steps else self._random(choice, steps, None, window_sec)
            for step in self.at_steps
        ]
        if self.every_step:
            planned += [(Trigger(step=step),) * self.times for step in steps[:-1]]
        planned += [self._random(choice, steps, first_save, window_sec) for _ in range(self.at_random)]
        planned += [(Trigger(during_save=True),) * self.times for _ in range(self.during_save)]
        return [Interruption(triggers, name) for triggers in planned for name in self.signal_names]

    def _random(
        self, choice: random.Random, steps: Sequence[int], first_save: int | None, window_sec: tuple[float, float]
    ) -> tuple[Trigger, ...]:
        late = [step for step in steps[:-1] if first_save is None or step > first_save] or list(steps[:-1])
        if not late:
            begin, end = window_sec
            times = [begin + choice.uniform(0.1, 0.8) * (end - begin) for _ in range(self.times)]
            return tuple(Trigger(after_sec=time) for time in times)
        return tuple(Trigger(step=step) for step in sorted(choice.choices(late, k=self.times)))
