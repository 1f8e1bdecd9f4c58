"""Where warnings point."""

from __future__ import annotations

import functools
import threading
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from neuromanifold_gpt.checkpoint.user_warnings import warn_user

Call = Callable[..., Any]


def of_this_package(call: Call) -> Call:
    """A function that calls it, and counts as one of the package."""

    def calls(*_: Any) -> None:
        called()  # type: ignore[name-defined]  # noqa: F821 - a global variable of the copy

    return types.FunctionType(calls.__code__, {"__name__": "neuromanifold_gpt.state.save", "called": call})


def called_directly(call: Call) -> None:
    of_this_package(of_this_package(call))()


def called_in_a_step(call: Call) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    optimizer.register_step_post_hook(of_this_package(call))
    optimizer.step()


@pytest.mark.parametrize("caller", [called_directly, called_in_a_step])
def test_at_the_line_of_the_program(caller: Callable[[Call], None]) -> None:
    with pytest.warns(UserWarning, match="^said$") as caught:
        caller(functools.partial(warn_user, "said", UserWarning))
    assert [warning.filename for warning in caught] == [__file__]
    assert caught[0].lineno in range(caller.__code__.co_firstlineno, caller.__code__.co_firstlineno + 5)


def test_in_a_thread_of_its_own_at_the_line_that_warns() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thread = threading.Thread(target=warn_user, args=("said", UserWarning))
        thread.start()
        thread.join()
    assert [warning.filename for warning in caught] == [threading.__file__]
