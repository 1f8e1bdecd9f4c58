"""One runner for all cells of a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .runner import Runner


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    runner = Runner(tmp_path_factory.mktemp("exactness"))
    yield runner
    runner.close()
