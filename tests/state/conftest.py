"""What several files of these tests share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import pytest

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning


@pytest.fixture
def said() -> Iterator[Callable[[], str]]:
    """What was said since it was asked last."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        def text() -> str:
            found = [str(warning.message) for warning in caught if warning.category is InexactResumeWarning]
            caught.clear()
            return "\n".join(found)

        yield text
