from __future__ import annotations

import pytest

from .running import KnownPrograms


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> KnownPrograms:
    """Certifies, and makes the undisturbed runs of each command once."""
    return KnownPrograms(tmp_path_factory.mktemp("certify"))
