"""The scenarios of the comparison: cells of ``tests/exactness``, each reduced to one difficulty.

The tests put everything into every cell: dropout, augmentation that draws from three generators, a validation that
draws as well. A program that cannot restore one of them would fail everywhere. So these are left out here, but in the
groups that are about them, and in the last one; and from "model" on, the order of the data is fixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tests.exactness.cell import Cell
from tests.exactness.cells import CELLS_BY_NAME

from .calm import without_dropout

_PLAIN: Mapping[str, Any] = {"dataset": "still", "validate": False}
_FIXED_ORDER: Mapping[str, Any] = {**_PLAIN, "sampler": "sequential"}
_AUGMENTED: Mapping[str, Any] = {"validate": False}
_VALIDATED: Mapping[str, Any] = {"dataset": "still", "sampler": "sequential"}
_DRIVERS = ("lightning", "loop")
# The tests interrupt these in the middle of an epoch as well.
_ENDS: dict[tuple[int, ...], tuple[int, ...]] = {(7, 16): (7,), (5, 14): (14,)}
_OF_DATA = "in the middle", "at an epoch's end and again"


@dataclass(frozen=True)
class Scenario:
    """One row of the table.

    Attributes:
        cells: by driver: Lightning's way of training, and a plain loop's.
    """

    group: str
    varies: str
    cells: Mapping[str, Cell] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Unique in the table."""
        return f"{self.group}: {self.varies}"


def _pick(
    group: str,
    table: str,
    names: Iterable[str],
    changes: Mapping[str, Any] = _PLAIN,
    *,
    dropout: bool = False,
) -> list[Scenario]:
    """Cells of one group of the tests' table, for whichever drivers it has them."""
    found = []
    for varies in names:
        cells = {}
        for driver in _DRIVERS:
            cell = CELLS_BY_NAME.get(f"{driver}: {table}: {varies}")
            if cell is not None:
                cell = replace(cell, group=group, **changes)
                cells[driver] = cell if dropout else _with_one_difficulty(cell)
        assert cells, f"{table}: {varies} is not in the table"
        found.append(Scenario(group, varies.removesuffix(" and again"), cells))
    return found


def _with_one_difficulty(cell: Cell) -> Cell:
    return replace(without_dropout(cell), stops=_ENDS.get(cell.stops, cell.stops))


def _each(names: Iterable[str], places: Iterable[str]) -> list[str]:
    places = list(places)
    return [f"{name}, {place}" for name in names for place in places]


SCENARIOS: list[Scenario] = [
    *_pick(
        "interruption",
        "interruption",
        [
            "at an epoch's end",
            "after an epoch's first batch",
            "in the middle of an epoch",
            "one batch before an epoch's end, whose last batch is short",
            "after the first step of all",
            "twice",
            "immediately after a resume, before the first new step",
            "in the same process",
            "max_steps reached at an epoch's end",
            "an error in the user's code",
            "steps were lost since the last save",
            "killed before the first save",
        ],
    ),
    *_pick(
        "order of the data",
        "data, resumable()",
        _each(
            (
                "sequential, 0 workers",
                "shuffle, own generator, 0 workers",
                "with replacement, 0 workers",
                "weighted, 0 workers",
                "own, random state, 0 workers",
                "own, global random, 0 workers",
                "own, set_epoch, 0 workers",
                "own, stateful, 0 workers",
            ),
            _OF_DATA,
        ),
    ),
    *_pick(
        "workers",
        "data, resumable()",
        [
            *_each(("shuffle, 2 workers",), _OF_DATA),
            "prefetching persistent workers, in the middle",
            "0 workers, then 2",
            "2 workers, then 0",
        ],
    ),
    *_pick(
        "augmentation",
        "data, resumable()",
        [*_each(("shuffle, 0 workers", "shuffle, 2 workers"), _OF_DATA), "collate that draws, in the middle"],
        _AUGMENTED,
    ),
    *_pick(
        "streams",
        "data, streams",
        _each(("stateful stream, 0 workers", "stateful stream, 2 workers", "still stream, 0 workers"), _OF_DATA),
        {"validate": False},
    ),
    *_pick("two augmented loaders", "data, CombinedLoader", ["max_size_cycle of resumable, stopped at 10"]),
    *_pick(
        "model",
        "model",
        ["dropout", "recurrent", "random activation"],
        _FIXED_ORDER,
        dropout=True,
    ),
    *_pick(
        "model",
        "model",
        [
            "batch norm",
            "tied",
            "buffers",
            "frozen",
            "spectral norm",
            "layers declared in another order",
        ],
        _FIXED_ORDER,
    ),
    *_pick("model", "torch.compile", ["eager"], _FIXED_ORDER),
    *_pick(
        "freezing",
        "freezing",
        [
            "unfreeze later, stopped at 3",
            "unfreeze later, stopped at 7",
            "BackboneFinetuning, stopped at 7",
            "unfrozen from a step on",
        ],
        _FIXED_ORDER,
    ),
    *_pick(
        "accumulation",
        "accumulation",
        [
            "4, stopped at 1",
            "4, stopped at 2",
            "4, stopped at 3",
            "by a schedule, stopped at 4",
        ],
        _FIXED_ORDER,
    ),
    *_pick(
        "precision",
        "precision",
        ["bf16-mixed", "64-true", "fp16 with GradScaler"],
        _FIXED_ORDER,
    ),
    *_pick(
        "averages",
        "averages",
        ["EMA, stopped at 7", "EMA, stopped at 10", "SWA, stopped at 7", "SWA, stopped at 10"],
        _FIXED_ORDER,
    ),
    *_pick(
        "optimizer",
        "optimizer",
        [
            "AdamW",
            "AdamW, fused",
            "SGD",
            "Muon",
            "LBFGS",
            "Muon and AdamW",
            "Muon and AdamW, by hand",
            "GAN, two by hand",
        ],
        _FIXED_ORDER,
    ),
    *_pick(
        "scheduler",
        "scheduler",
        _each(("one cycle", "warm-up by epoch"), ("in the middle", "at an epoch's end")),
        _FIXED_ORDER,
    ),
    *_pick(
        "scheduler",
        "scheduler",
        _each(("plateau, validation loss",), ("in the middle", "at an epoch's end")),
        _VALIDATED,
    ),
    *_pick(
        "validation",
        "loop",
        [
            *_each(("validation every third batch",), ("in the middle", "at an epoch's end")),
            "no sanity check, in the middle",
        ],
        _VALIDATED,
    ),
    *_pick("callbacks", "callbacks", [f"EarlyStopping, stopped at {stop}" for stop in (3, 6, 7)], _VALIDATED),
    *_pick("callbacks", "callbacks", ["counts hooks, at an epoch's end"], _FIXED_ORDER),
    *_pick("save policy", "save policy", ["every epoch, no validation", "by time"], _FIXED_ORDER),
    *_pick("save policy", "loop", ["max_steps with every_n_epochs=1, no validation"], _FIXED_ORDER),
    *_pick("2 processes", "ranks", ["2, one killed in the middle", "2, one killed at an epoch's end"]),
    *_pick(
        "all at once",
        "interruption",
        [
            "at an epoch's end",
            "in the middle of an epoch",
            "one batch before an epoch's end, whose last batch is short",
        ],
        {},
        dropout=True,
    ),
]
assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS), "two scenarios have the same name"
