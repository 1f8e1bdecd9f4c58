"""What several files of these tests share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import pytest

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.state.unsaved.loop_numbers import LOOP_NUMBERS, LoopNumbers


def as_in_a_new_process() -> None:
    """While a loader of earlier training is alive, of another test too, a loop would go on with that training."""
    vars(LOOP_NUMBERS).update(vars(LoopNumbers()))


@pytest.fixture(autouse=True)
def _each_test_trains_anew() -> None:
    as_in_a_new_process()


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
