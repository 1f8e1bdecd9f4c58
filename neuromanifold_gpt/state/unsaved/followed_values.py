"""Values that no checkpoint has, by the texts that show them: which change while training runs, and which are others
after a resume than they were at the save."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.state.modules import listed
from neuromanifold_gpt.state.unsaved.orders import is_shown_order
from neuromanifold_gpt.state.unsaved.shown_code import NONE, WITH_TENSORS, code_in
from neuromanifold_gpt.state.unsaved.shown_values import RESULT

_REMEDY = (
    "If training depends on them, save them: in a module by persistent buffers or get_extra_state, in other objects by "
    "a state_dict that Lightning calls or that you give to stateful=."
)
_REMEDY_FOR_CODE = " Which function or layer is used, let a number decide that is saved."


class FollowedValues:
    """Compares what is shown with what was shown first.

    Attributes:
        passed_over: names of those that are known to change: they were said to, or are results of each step.
    """

    def __init__(self, before: Mapping[str, str]) -> None:
        self._before: dict[str, str] = {}
        self.passed_over: set[str] = set()
        self.look(before)

    def look(self, now: Mapping[str, str]) -> None:
        """What was not there before, such as a table that is built when it is first needed, begins as it is now.

        So does what was ``None``, but for functions and the like, a layer that gets its first tensors, and an order.
        """
        begun = {path: shown for path, shown in self._before.items() if not _begins(shown, now.get(path, shown))}
        self._before = {**now, **begun}
        self.passed_over.update(path for path, shown in now.items() if shown == RESULT)

    def set_up(self, now: Mapping[str, str], *, only_none: bool) -> None:
        """Functions and the like begin as they are now, since hooks set them until the first step.

        Args:
            now: what is shown.
            only_none: only those that were ``None``, as is what the first step makes.
        """
        before = self._before
        of_code = {path for path in now.keys() & before.keys() if code_in(now[path]) != code_in(before[path])}
        self._before = {
            path: shown for path, shown in before.items() if path not in of_code or (only_none and shown != NONE)
        }
        self.look(now)

    def pass_over(self, paths: Iterable[str]) -> None:
        """These do not count, such as settings that the program gives."""
        self.passed_over.update(paths)

    def first(self, path: str) -> str:
        """What was shown of it first."""
        return self._before[path]

    def changed(self, now: Mapping[str, str]) -> list[str]:
        """Which are other than at the beginning, and are not passed over."""
        self.look(now)
        return sorted(path for path in now.keys() - self.passed_over if _is_a_change(self._before[path], now[path]))

    def warn_if_changed(self, now: Mapping[str, str]) -> None:
        """Say which have changed.

        Warns:
            InexactResumeWarning: names those that it did not name before.
        """
        if new := self.changed(now):
            is_code = any(code_in(self._before[path]) != code_in(now[path]) for path in new)
            warn_user(
                f"values change in training that no checkpoint has: {listed(new)}. {_REMEDY}"
                f"{_REMEDY_FOR_CODE if is_code else ''}",
                InexactResumeWarning,
            )
        self.pass_over(new)


def _begins(before: str, now: str) -> bool:
    if WITH_TENSORS in (before[: len(WITH_TENSORS)], now[: len(WITH_TENSORS)]):
        return not (before.startswith(WITH_TENSORS) and now.startswith(WITH_TENSORS))
    return is_shown_order(before) or (before == NONE and not code_in(now))


def _is_a_change(before: str, now: str) -> bool:
    if NONE in (before, now):
        return bool(code_in(before) or code_in(now))
    return before != now


class SavedValues:
    """Compares what was shown at a save with what is there behind a resume, or appears later.

    The weights that a penalty pulls to, copied when training begins; a scale that the first batch sets; a setting that
    was changed: the saving process cannot tell, as nothing changes in it.
    """

    def __init__(self, saved: Mapping[str, str]) -> None:
        self._left = dict(saved)
        self._were_there: set[str] = set()

    def note_there(self, paths: Iterable[str]) -> None:
        """These are there now, if not for good."""
        self._were_there.update(paths)

    def missing(self, now: Iterable[str]) -> set[str]:
        """Which have not been there yet."""
        return self._left.keys() - self._were_there - {*now}

    def others(self, now: Mapping[str, str]) -> list[str]:
        """Which are not as they were."""
        return sorted(path for path in now.keys() & self._left.keys() if RESULT != now[path] != self._left[path])

    def warn_of_missing(self, paths: Collection[str]) -> None:
        """Say, once, that some of :meth:`missing` will not come: a hook has set them at a time that is over.

        Warns:
            InexactResumeWarning: names them.
        """
        missing = sorted(self._left.keys() & paths)
        self._left = {path: shown for path, shown in self._left.items() if path not in missing}
        if missing:
            warn_user(
                f"values that no checkpoint has were there at the save, and are not here: {listed(missing)}. {_REMEDY}",
                InexactResumeWarning,
            )

    def warn_of_others(self, now: Mapping[str, str]) -> None:
        """Say which are not as they were; each is compared once.

        Warns:
            InexactResumeWarning: names them.
        """
        others = self.others(now)
        self._left = {path: shown for path, shown in self._left.items() if path not in now}
        if others:
            warn_user(
                "values that no checkpoint has were others at the save, and stay as they are now: "
                f"{listed(others)}. {_REMEDY}",
                InexactResumeWarning,
            )
