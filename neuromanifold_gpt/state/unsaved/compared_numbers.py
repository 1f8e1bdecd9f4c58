"""What was shown of a loop's numbers at a save, compared with what is shown behind the restore."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.state.modules import listed

KEYS = " keys"  # behind how many a dict has
ENTRIES = " entries"  # of one around a function, where that may remember what it would come to again
OBJECT = " object"  # behind the class of one
_FLAGS = ("True", "False")  # the next round may have turned them
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


def begun_again(
    saved: Mapping[str, str], first: Mapping[str, str], now: Mapping[str, str]
) -> dict[str, tuple[str, str]]:
    """What was saved, and is now, of those that are as they were when training began at first."""
    again = (path for path in saved.keys() & first.keys() if now.get(path) == first[path] not in _FLAGS)
    return {path: (saved[path], now[path]) for path in again}


def warn_of_other_numbers(others: Mapping[str, tuple[str, str]]) -> None:
    """Say them.

    Args:
        others: what was shown of them at the save, and is now, by path.

    Warns:
        InexactResumeWarning: names them.
    """
    if others:
        warn_user(
            "numbers that the loop carries from round to round were others at the save: "
            f"{listed([described(path, *others[path]) for path in sorted(others)])}. If training, or what it writes, "
            "depends on them, keep them in an object with state_dict and load_state_dict, and give it to stateful=.",
            InexactResumeWarning,
        )
