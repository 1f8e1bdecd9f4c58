"""The fork server of the tests, with the programs of the peers imported, and their cells."""

from __future__ import annotations

from tests.exactness import child, fork_server
from tests.exactness.cells import CELLS_BY_NAME

from .columns import PROGRAMS, all_cells

if __name__ == "__main__":
    child.PROGRAMS.update({name: program.run for name, program in PROGRAMS.items()})
    CELLS_BY_NAME.update({cell.name: cell for cell in all_cells()})
    fork_server.serve()
