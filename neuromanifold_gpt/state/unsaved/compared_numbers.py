"""What was shown of a loop's numbers at a save, compared with what is shown behind the restore."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

KEYS = " keys"  # behind how many a dict has
ENTRIES = " entries"  # of one around a function, where that may remember what it would come to again
OBJECT = " object"  # behind the class of one
_FELL = " (fell)"
# The step of some event: not raised by each round, and not what the checkpoint has, though it may be the same number.
_OF_AN_EVENT = re.compile(r"last|best|improv|prev|since|from|until", re.IGNORECASE)
_DIGEST = re.compile(r"[0-9a-f]{16}")


def goes_on(path: str, saved: str, now: str, counts: Collection[str]) -> bool:
    """Whether it is as at the save, or the next whole number: a count that is raised behind the save; or one that the
    checkpoint has, and a variable around the loop had not yet (``step = train_one_epoch(step)``).
    """
    if not (saved.isdecimal() and now.isdecimal()):
        return saved.removesuffix(_FELL) == now
    if _OF_AN_EVENT.search(path.rpartition(".")[2]):
        return saved == now
    return int(now) in (int(saved), int(saved) + 1) or (now in counts and int(saved) < int(now))


def marked(now: str, first: str) -> str:
    """Of a number that has fallen by one: where it begins anew, it is no count that was raised."""
    has_fallen = now.isdecimal() and first.isdecimal() and int(first) == int(now) + 1
    return now + _FELL if has_fallen else now


def is_memo(path: str, now: Mapping[str, str], changed: Collection[str]) -> bool:
    """Whether it shows how many items a dict of the script, or around a function, has, of which none has changed:
    functions may remember there what they would come to again.
    """
    may_be = now[path].endswith(ENTRIES) or (path.startswith("__main__.") and now[path].endswith(KEYS))
    return may_be and not any(other.startswith(f"{path}.") for other in changed)


def is_made_or_dropped(now: str, first: str) -> bool:
    """Of an object only the exchange for one of another class counts; it may be made when it is first needed."""
    return "None" in (now, first) and (now + first).removesuffix("None").endswith(OBJECT)


def described(path: str, saved: str, now: str) -> str:
    """For a message, with both values, unless these are digests."""
    saved = saved.removesuffix(_FELL)
    is_readable = saved.endswith((KEYS, ENTRIES, OBJECT))
    is_digest = (" " in saved and not is_readable) or (_DIGEST.fullmatch(saved) and _DIGEST.fullmatch(now))
    return path if is_digest else f"{path} (then {saved}, now {now})"
