"""The fork server of the tests, with the programs of the peers imported, and their cells."""

from __future__ import annotations

from tests.exactness import child, fork_server

from .columns import PROGRAMS, all_cells


def main() -> None:
    """Serve the cells of all columns."""
    cells = {cell.name: cell for cell in all_cells()}
    child.cell_of = cells.__getitem__
    child.PROGRAMS.update({name: program.run for name, program in PROGRAMS.items()})
    fork_server.serve()


if __name__ == "__main__":
    main()
