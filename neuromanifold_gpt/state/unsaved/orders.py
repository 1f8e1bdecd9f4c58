"""Lists that are an order: of indices, names or examples that a loop shuffles for each epoch and goes through itself.

Other lists of numbers are mostly records, or set by what the checkpoint has. One that holds the same as at the save in
another order, in the first step behind a restore, is neither. Later it may be that of another epoch.
"""

from __future__ import annotations

from itertools import islice, pairwise
from typing import Any

import xxhash

from neuromanifold_gpt.state.inspection.plain_reading import values_in

_ORDER = "an order of "
_FEWEST = 3
_LOOKED_AT = 1000  # to know one
_SHOWN = 10_000  # of its items
_LONGEST_TEXT = 100
_PLAIN = (bool, int, float, str, type(None))
_LONGEST_ITEM = 100
_DEPTH = 3  # of an example, such as a text and its labels


def is_order(value: Any) -> bool:
    """Whether it is a list of whole numbers, of texts, or of tuples or lists of plain values; not sorted, and each is
    there once.
    """
    if not issubclass(type(value), list) or len(value) < _FEWEST:
        return False
    few = [*islice(values_in(value), _LOOKED_AT)]
    if len({*map(type, few)}) > 1 or type(few[0]) not in (int, str, tuple, list) or not all(map(_is_plain, few)):
        return False
    if len({*map(_text, few)}) < len(few):
        return False
    try:
        return any(first > second for first, second in pairwise(few))
    except TypeError:  # numbers and texts in one place
        return True


def _is_plain(item: Any, depth: int = 0) -> bool:
    if type(item) in (tuple, list):
        return depth < _DEPTH and len(item) <= _LONGEST_ITEM and all(_is_plain(part, depth + 1) for part in item)
    return type(item) in _PLAIN


def _text(item: Any) -> str:
    return repr(_shortened(item))


def _shortened(item: Any) -> Any:
    """Documents are long."""
    if type(item) in (tuple, list):
        return [*map(_shortened, item)]
    return item[:_LONGEST_TEXT] if type(item) is str else item


def shown_order(value: Any) -> str:
    """Of one of :func:`is_order` a text that shows what it is an order of, as far as that is seen, and which."""
    texts = [*map(_text, islice(values_in(value), _SHOWN))]
    ends = (min(texts), max(texts)) if len(value) <= _SHOWN else ()
    return f"{_ORDER}{_digest(len(value), *ends)} {_digest(*texts)}"


def _digest(*things: Any) -> str:
    return xxhash.xxh3_64_hexdigest(repr(things).encode())


def is_shown_order(shown: str) -> bool:
    """Whether it is from :func:`shown_order`."""
    return shown.startswith(_ORDER)


def are_of_the_same(before: str, now: str) -> bool:
    """Whether two of :func:`shown_order` are orders of the same things."""
    return before.rpartition(" ")[0] == now.rpartition(" ")[0]
