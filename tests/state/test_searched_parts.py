"""What is searched of what users' objects refer to, and by which names."""

from __future__ import annotations

import random
from types import MappingProxyType
from typing import Any

import pytest

from neuromanifold_gpt.state.inspection.searched_parts import MAXIMUM_ITEMS, searched_parts


def _raise(*_: Any) -> Any:
    raise AssertionError("asked")


class Table(dict[str, int]):
    items = values = __iter__ = _raise


class Items(list[int]):
    __iter__ = _raise


@pytest.mark.parametrize("container", [Table(a=1), Items([1])])
def test_containers_are_not_asked(container: Any) -> None:
    assert [part for _, part in searched_parts(container)] == [1]


def test_long_ones_hold_data_if_not_generators() -> None:
    many = [*range(MAXIMUM_ITEMS + 1)]
    generators = [random.Random(number) for number in many]
    for values, is_searched in ((many, False), (many[:-1], True), (generators, True)):
        by_number = dict(enumerate(values))
        for container in (values, tuple(values), by_number, MappingProxyType(by_number)):
            assert [part for _, part in searched_parts(container)] == (values if is_searched else [])


def test_keys_that_are_no_plain_values_have_a_number() -> None:
    assert dict(searched_parts({"a": 1, 2: 3, (4,): 5})) == {"a": 1, "2": 3, "tuple 2": 5}
