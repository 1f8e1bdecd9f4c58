"""Draws, steps of schedulers and settings of optimizers, between a save, or a restore, and the next batch, that only
one of two runs makes.

A run that goes on does what stands between its save and the next batch; one that resumes does what stands between
``restore()`` and its first batch. Inside a ``for`` over the loader the two have nothing in common. Elsewhere, before a
new pass or around ``next(iterator)``, both may do the same, such as seeding at each epoch's start: there, draws of the
one are told only if the other is known to have none. And draws matter only if training draws, which the step behind
them shows.
"""

from __future__ import annotations

import inspect
import types
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from opcode import opname
from typing import Any, Literal

import torch

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.state.inspection.flat_values import equal
from neuromanifold_gpt.state.inspection.users_objects import has_position
from neuromanifold_gpt.state.rng import cpu_generator_states
from neuromanifold_gpt.state.unsaved.loop_numbers import LOOP_NUMBERS
from neuromanifold_gpt.state.unsaved.saved_things import is_optimizer
from neuromanifold_gpt.state.unsaved.shown_values import shown_value

Beginning = Literal["creation", "save", "restore"]
_ITERATING = {"FOR_ITER", "SEND"}
_SCHEDULERS, _OPTIMIZERS = "schedulers", "optimizers"
_BY_OBJECTS = frozenset({_SCHEDULERS, _OPTIMIZERS})
_ALL = _BY_OBJECTS | {"random", "numpy.random", "torch"}
_OF_OBJECTS = {
    _SCHEDULERS + "save": (
        "a scheduler was stepped between save_checkpoint and the next batch, which a run that resumes from there does "
        "not do: its learning rates come a step later. Save behind scheduler.step()."
    ),
    _SCHEDULERS + "restore": (
        "a scheduler was stepped between restore() and the first batch, which the run that was saved did not do there: "
        "its learning rates come a step too early. Restore behind it; step by epochs only where "
        "loader.batches_consumed is 0."
    ),
    _OPTIMIZERS + "save": (
        "settings of an optimizer, such as its learning rate, were changed between save_checkpoint and the next batch: "
        "a run that resumes from there does not do that. Save behind it."
    ),
    _OPTIMIZERS + "restore": (
        "settings of an optimizer, such as its learning rate, were changed between restore() and the first batch: the "
        "run that was saved did not do that there. Unless training is to go on with others now, restore behind it; "
        "change them by epochs only where loader.batches_consumed is 0."
    ),
}
_OF_GENERATORS = {
    "save": (
        "random numbers were drawn, or generators seeded ({names}), between save_checkpoint and the next batch: a run "
        "that resumes from there does not do that, and goes on with other random numbers. Save behind it, as the last "
        "thing before the next batch."
    ),
    "restore": (
        "random numbers were drawn, or generators seeded ({names}), between restore() and the first batch: the run "
        "that was saved did not do that there, so this one goes on with other random numbers. Restore as the last "
        "thing before the first batch; do what begins an epoch only where loader.batches_consumed is 0."
    ),
}


def _generator_states() -> dict[str, Any]:
    return dict(zip(("random", "numpy.random", "torch"), cpu_generator_states(), strict=True))


def _moved(before: dict[str, Any], now: dict[str, Any]) -> frozenset[str]:
    return frozenset(name for name, state in now.items() if not equal(state, before[name]))


def _kind_of(thing: Any) -> str:
    return _OPTIMIZERS if is_optimizer(thing) else _SCHEDULERS


def _shown_state(thing: Any) -> str | None:
    if is_optimizer(thing):
        groups = thing.param_groups
        return shown_value([{key: value for key, value in group.items() if key != "params"} for group in groups])
    return shown_value(thing.state_dict())


@dataclass
class Gap:
    """Up to the next batch from one of some loaders. What is drawn behind that is training's affair."""

    beginning: Beginning
    objects: Sequence[Any] = ()  # schedulers and optimizers
    loop_numbers: Mapping[str, str] = field(default_factory=dict)  # at the save
    counts: frozenset[str] = frozenset()  # of the checkpoint
    at_first_batch: Sequence[Callable[[], None]] = ()
    is_over: bool = False

    def __post_init__(self) -> None:
        self._generators = _generator_states()
        # Not themselves: schedulers hold optimizers, and these the weights.
        self._shown = [(weakref.ref(thing), _shown_state(thing)) for thing in self.objects]
        self.objects = ()

    def moved(self) -> frozenset[str]:
        """What is not as it was; of optimizers only if no scheduler has set it."""
        generators = _moved(self._generators, _generator_states())
        things = [(reference(), shown) for reference, shown in self._shown]
        others = {_kind_of(thing) for thing, shown in things if thing is not None and _shown_state(thing) != shown}
        return generators | (others - {_OPTIMIZERS} if _SCHEDULERS in others else others)


@dataclass
class _Step:
    """The one behind a gap in which generators have moved."""

    beginning: Beginning
    moved: frozenset[str]
    is_told: bool
    seed: int = field(default_factory=torch.initial_seed)
    states: dict[str, Any] | None = None  # when its batch was handed out

    def used(self) -> frozenset[str]:
        """Which of them have a say in it: generators that it has drawn from, as they were left, and schedulers."""
        if self.states is None or torch.initial_seed() != self.seed:
            return self.moved & _BY_OBJECTS
        return self.moved & {*_moved(self.states, _generator_states()), *_BY_OBJECTS}


class BeforeNextBatch:
    """Follows the global generators, schedulers and optimizers, for one loader."""

    def __init__(self) -> None:
        self._gap: Gap | None = Gap("creation")
        self._step: _Step | None = None
        self._is_over_in_pass = False
        self._at_start: frozenset[str] = _ALL  # what may move before the first batch of a process
        self._not_told: frozenset[str] = frozenset()  # which of these training has used
        self._said: set[str] = set()
        self._at_first_batch: Sequence[Callable[[], None]] = ()

    def __reduce__(self) -> tuple[type[BeforeNextBatch], tuple[()]]:
        return BeforeNextBatch, ()  # a copy of the loader has begun nothing

    def begin(self, gap: Gap, *, is_over_in_pass: bool) -> None:
        """There was a save or a restore.

        Args:
            gap: from there on.
            is_over_in_pass: nothing was left of a pass that had not ended. Where that is resumed, the pass ends at
                once, and what stands behind it is done again.
        """
        self._end_step()
        self._gap, self._is_over_in_pass = gap, is_over_in_pass

    def batch_is_asked_for(self, asking: types.FrameType | None, *, goes_on: bool) -> None:
        """A batch, or the end of a pass.

        Args:
            asking: who asks.
            goes_on: in the pass in which the loader was, here or in the process that saved it.

        Warns:
            InexactResumeWarning: the step before has used what had moved before it.
        """
        if self._step is not None and self._step.states is not None:
            self._end_step()
        gap, self._gap = self._gap, None
        if gap is None or gap.is_over:
            LOOP_NUMBERS.training_is_under_way(self)
            return
        gap.is_over = True
        moved = gap.moved()
        is_certain = goes_on and _iterates(asking)
        if not is_certain:
            moved -= {_OPTIMIZERS}  # loops set the rate of a step before they ask for its batch
        if gap.beginning == "save":
            self._end_gap_of_save(moved, is_certain, goes_on)
        elif gap.beginning == "restore":
            LOOP_NUMBERS.training_goes_on(self, gap.loop_numbers, gap.counts)
            self._at_start, self._at_first_batch = moved, gap.at_first_batch
            self._follow_step("restore", moved, is_told=is_certain)
        else:
            LOOP_NUMBERS.training_begins(self)
            self._at_start = _ALL if moved else _BY_OBJECTS  # which nobody has named so far

    def batch_is_given(self) -> None:
        """The batch that was asked for."""
        at_first_batch, self._at_first_batch = self._at_first_batch, ()
        for call in at_first_batch:
            call()
        if self._step is not None and self._step.states is None:
            self._step.states = _generator_states()

    def _end_gap_of_save(self, moved: frozenset[str], is_certain: bool, goes_on: bool) -> None:
        if is_certain:
            self._follow_step("save", moved, is_told=True)
        elif goes_on or not self._is_over_in_pass:
            self._say("restore", self._not_told - moved)
            self._follow_step("save", moved - self._at_start, is_told=True)

    def _follow_step(self, beginning: Beginning, moved: frozenset[str], *, is_told: bool) -> None:
        self._step = _Step(beginning, moved, is_told) if moved else None

    def _end_step(self) -> None:
        step, self._step = self._step, None
        if step is not None and step.is_told:
            self._say(step.beginning, step.used())
        elif step is not None:
            self._not_told = step.used()

    def _say(self, beginning: Beginning, names: frozenset[str]) -> None:
        generators = ", ".join(sorted(names - _BY_OBJECTS))
        messages = [_OF_GENERATORS[beginning].format(names=generators)] if generators else []
        messages += [_OF_OBJECTS[kind + beginning] for kind in sorted(names & _BY_OBJECTS)]
        for message in messages:
            kind = message.partition(" ")[0] + beginning
            if kind not in self._said:
                self._said.add(kind)
                warn_user(message, InexactResumeWarning)


def follow_up_to_batch(
    beginning: Beginning,
    loaders: Iterable[Any],
    objects: Sequence[Any],
    loop_numbers: Mapping[str, str] | None = None,
    counts: Iterable[int | None] = (),
    at_first_batch: Sequence[Callable[[], None]] = (),
) -> None:
    """Up to the next batch of one of those that are this package's.

    Args:
        beginning: what there was.
        loaders: that were given to it.
        objects: schedulers and optimizers that were.
        loop_numbers: of the checkpoint, if it was a restore.
        counts: that it has, of steps and epochs.
        at_first_batch: to be called when it is there; at once, if no loader is asked for it.
    """
    own = list(filter(has_position, loaders))
    if not own:
        for call in at_first_batch:
            call()
        return
    gap = Gap(beginning, objects, loop_numbers or {}, frozenset(map(str, counts)), at_first_batch)
    for loader in own:
        loader.follow_up_to_batch(gap)


def _iterates(frame: types.FrameType | None) -> bool:
    """Whether a ``for`` asks, or a generator that is asked by one, so that nothing can be done before it asks."""
    while frame is not None and opname[frame.f_code.co_code[frame.f_lasti]] in _ITERATING:
        if not frame.f_code.co_flags & inspect.CO_GENERATOR:
            return True
        frame = frame.f_back
    return False
