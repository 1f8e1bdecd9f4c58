"""What a cell of the matrix is: a training scenario as plain data.

Run A trains ``steps`` steps. Run B does the same in several processes: it is ended at each of ``stops``, and a new
process goes on. Fields that name things (``dataset``, ``network``, ``schedule``, ...) are keys in ``ingredients/``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

# The default scenario: 26 samples in batches of 4 are 7 batches an epoch, the last one short; 20 steps end in the
# middle of the third epoch.
BATCHES_PER_EPOCH = 7

Driver = Literal["lightning", "loop", "train.py"]
Ending = Literal[
    "kill",  # SIGKILL, when the next batch is there
    "finish",  # max_steps is reached and the process exits
    "kill at any moment",  # some milliseconds after that, in a step, in a save, or between
    "kill while saving",  # at the first fsync of the save of that step
    "kill in validation",  # that follows the step
    "exception",  # an error in the user's code, when the next batch is there
    "sigterm",  # what a cluster sends; Lightning's own handler answers
    "should_stop",  # is set behind the step, and the process exits
    "same process",  # max_steps is reached, and new objects go on in the same process
    "same trainer",  # max_steps is raised, and fit is called again on the same objects
]


@dataclass(frozen=True)
class Expected:
    """What must come of a cell.

    Attributes:
        outcome: ``exact``: B equals A. ``warns``: a resume says ``says``. ``error``: a resume refuses with ``says``.
            ``exact or said``: B equals A, or a resume warns or refuses.
            ``exact or said at start``: B equals A, or the first process warns before its first step.
            ``not silent``: a resume warns, or refuses.
        says: name of the class of the warning or error, or of a base class of it.
        keeps: compare only this of the trace: ``"ids"``, ``"lr"``, ``"loss"``; ``"all"``: a warning, and exact.
        match: must be in the message.
        times: how often a resumed process gives the warning at most; ``None``: does not matter.
        by_anyone: the warning may be Lightning's.
    """

    outcome: Literal["exact", "warns", "error", "exact or said", "exact or said at start", "not silent"]
    says: str = ""
    keeps: tuple[str, ...] = ()
    match: str = ""
    times: int | None = None
    by_anyone: bool = False


EXACT = Expected("exact", "InexactResumeWarning")  # a false alarm would be shown
SAME_COURSE = Expected("exact", keeps=("ids", "lr", "loss"))  # the final states have other parts
EXACT_OR_SAID = Expected("exact or said", "Exception")
NOT_SILENT = Expected("not silent", "Exception")
EXACT_OR_SAID_AT_START = Expected("exact or said at start", "UserWarning")


def warns(says: str, match: str = "", *, keeps: tuple[str, ...] = (), times: int | None = None) -> Expected:
    """A resume must say so."""
    return Expected("warns", says, keeps, match, times)


def refuses(says: str, match: str = "") -> Expected:
    """A resume must be an error."""
    return Expected("error", says, match=match)


@dataclass(frozen=True)
class Cell:
    """One training scenario, one way of interrupting it, and what must come of it.

    Attributes, where the name does not say it:
        driver: the program that trains; see ``*_program.py``.
        loader: ``ResumableDataLoader``, ``resumable(DataLoader)``, a stock ``DataLoader``, or the dataset itself.
        module: hooks of a Lightning module. loop: what a plain loop does beside the usual.
        save: options of ``SeparatedCheckpoint``; a plain loop takes ``every_n_train_steps``.
        stops: B is ended after each of these steps, counted from the beginning of training.
        save_in_hook: B saves by hand in that hook, and ends there.
        starts_over: B has nothing to resume from.
        same_place: A and B write to the same path, one after the other; stock callbacks store absolute paths.
        clocks: keys in checkpoints that hold times, and so are never equal.
        changes: fields that are different in the processes after the first.
        environment: that they find; see ``environments.py``.
        fresh_interpreter: real interpreters rather than forks, to show that forking does not flatter.
    """

    group: str
    varies: str
    driver: Driver
    # data
    dataset: str = "augmented"
    samples: int = 26
    batch_size: int | None = 4
    loader: Literal["own", "resumable", "plain", "bare"] = "own"
    sampler: str = "shuffle"
    drop_last: bool = False
    workers: int = 0
    persistent_workers: bool = False
    collate: str | None = None
    loader_options: Mapping[str, Any] = field(default_factory=dict)
    loader_seed: int | None = 5
    combined: str | None = None
    data_module: str | None = None
    # model and optimization
    network: str = "plain"
    module: str = "plain"
    optimizer: str = "AdamW"
    optimizer_options: Mapping[str, Any] = field(default_factory=lambda: {"lr": 0.01})
    schedule: str | None = "warm-up"
    accumulate: int = 1
    precision: str | None = None
    clip: float | None = None
    average: str | None = None
    compile_backend: str | None = None
    # the run
    steps: int = 20
    validate: bool = True
    trainer: Mapping[str, Any] = field(default_factory=dict)
    callbacks: tuple[str, ...] = ()
    loop: frozenset[str] = frozenset()
    save: Mapping[str, Any] = field(default_factory=lambda: {"every_n_train_steps": 1, "save_top_k": -1})
    ranks: int = 1
    flags: Mapping[str, Any] = field(default_factory=dict)
    # the interruption
    stops: tuple[int, ...] = (10,)
    ending: Ending = "kill"
    save_in_hook: str | None = None
    starts_over: bool = False
    same_place: bool = False
    clocks: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = True
    environment: str | None = None
    expected: Expected = EXACT
    fresh_interpreter: bool = False

    @property
    def name(self) -> str:
        """Unique in the matrix."""
        return f"{self.driver}: {self.group}: {self.varies}"

    @property
    def resumed(self) -> Cell:
        """The scenario as the processes after the first see it."""
        return replace(self, **self.changes)

    @property
    def uninterrupted(self) -> str:
        """Equal for cells that share run A."""
        same = replace(
            self,
            group="",
            varies="",
            stops=(),
            ending="kill",
            save_in_hook=None,
            starts_over=False,
            changes={},
            strict=True,
            environment=None,
            expected=EXACT,
            fresh_interpreter=False,
        )
        return repr(same)


def both(group: str, varies: str, **fields: Any) -> list[Cell]:
    """The same scenario for both drivers."""
    return [Cell(group, varies, driver, **fields) for driver in ("lightning", "loop")]


def lightning(group: str, varies: str, **fields: Any) -> Cell:
    """A scenario of Lightning's."""
    return Cell(group, varies, "lightning", **fields)


def loop(group: str, varies: str, **fields: Any) -> Cell:
    """A scenario of a plain loop."""
    return Cell(group, varies, "loop", **fields)


def train_py(group: str, varies: str, **fields: Any) -> Cell:
    """A scenario of ``train.py``, told by flags."""
    return Cell(group, varies, "train.py", **fields)
