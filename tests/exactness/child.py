"""What one real process of a run does. The fork server calls it, or a fresh interpreter: ``python -m ...child JOB``."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import lightning_program, loop_program, train_program
from .cell import Cell
from .environments import simulate
from .ingredients import variables  # noqa: F401 - adds to the tables of the others
from .phase import Phase
from .sabotage import SABOTAGES
from .trace import Trace, record_warnings


def _load_cells() -> Callable[[str], Cell]:
    """Gives cells by name. In variables, a thousand of them would be looked at in each save, as users' values are."""
    cells = importlib.import_module(f"{__package__}.cells").CELLS_BY_NAME
    for name in [name for name in sys.modules if name.startswith((f"{__package__}.cells", f"{__package__}.table"))]:
        del sys.modules[name]
    return lambda name: cells[name]


cell_of = _load_cells()
PROGRAMS: dict[str, Callable[..., None]] = {
    "lightning": lightning_program.run,
    "loop": loop_program.run,
    "train.py": train_program.run,
}


def run_phases(phases: list[dict[str, Any]]) -> int:
    """Run the phases of one process; return its exit code."""
    try:
        for number, fields in enumerate(phases):
            phase = Phase(**fields)
            cell = cell_of(phase.cell)
            if cell.ending == "same trainer" and phase.interrupted:
                _run_on_one_trainer([Phase(**fields) for fields in phases])
                break
            _run_phase(phase, first_of_process=number == 0)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the runner wants to know
        _record(error, phase)
        return 1
    return 0


def _run_phase(phase: Phase, first_of_process: bool) -> None:
    cell = cell_of(phase.cell)
    if not phase.first:
        cell = cell.resumed
        if first_of_process and phase.interrupted and cell.environment is not None:
            simulate(cell.environment)
        if phase.sabotage is not None:
            SABOTAGES[phase.sabotage]()
    trace = _trace(phase)
    if phase.stop is not None and cell.ending == "kill while saving":
        phase.kill_while_saving(trace)
    PROGRAMS[cell.driver](phase, cell, trace)


def _run_on_one_trainer(phases: list[Phase]) -> None:
    first, *later = phases
    cell = cell_of(first.cell)
    lightning_program.run_again([(phase, _trace(phase)) for phase in [first, *later]], cell)


def _trace(phase: Phase) -> Trace:
    directory = Path(phase.directory)
    trace = Trace(directory, phase.process, phase.rank)
    record_warnings(directory / f"warnings-{phase.process}-{phase.rank}.jsonl", trace)
    return trace


def _record(error: BaseException, phase: Phase) -> None:
    traceback.print_exc()
    classes = [base.__name__ for base in type(error).__mro__]
    path = Path(phase.directory) / f"error-{phase.process}-{phase.rank}.json"
    ours = any(base.__module__.startswith("neuromanifold_gpt.") for base in type(error).__mro__)
    path.write_text(json.dumps({"classes": classes, "message": str(error), "ours": ours}))


if __name__ == "__main__":
    code = run_phases(json.loads(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
