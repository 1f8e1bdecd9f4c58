"""What stays as it is while training runs, is in no checkpoint, and may be another thing after a resume.

The weights that a penalty pulls to, copied when training begins; a scale that the first batch sets; a setting that was
changed. The saving process cannot tell, as nothing changes in it; the resumed one compares.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.state.modules import listed


class Constants:
    """Follows values that are shown by texts.

    Args:
        shown: gives them, by path.
    """

    def __init__(self, shown: Callable[[], dict[str, str]]) -> None:
        self._shown = shown
        self._before = shown()
        self._passed_over: set[str] = set()  # also what changes, which is said elsewhere
        self._saved: Mapping[str, str] = {}  # that are still to be compared

    def pass_over(self, paths: Iterable[str]) -> None:
        """These do not count, such as settings that the program gives."""
        self._passed_over.update(paths)

    def current(self) -> dict[str, str]:
        """Those that have not changed since they were first seen; what is new begins as it is.

        Warns:
            InexactResumeWarning: see :meth:`restored`.
        """
        now = self._shown()
        self._passed_over.update(path for path in now if self._before.setdefault(path, now[path]) != now[path])
        constant = {path: shown for path, shown in now.items() if path not in self._passed_over}
        others = sorted(path for path in constant.keys() & self._saved.keys() if constant[path] != self._saved[path])
        self._saved = {path: shown for path, shown in self._saved.items() if path not in constant}
        if others:
            warnings.warn(
                "values that no checkpoint has, and that training does not change, were others at the save: "
                f"{listed(others)}. Those of now are used. What a first batch sets, or is taken from the weights when "
                "training begins, has to be saved: in a module by buffers or get_extra_state, in others by a "
                "state_dict.",
                InexactResumeWarning,
                stacklevel=2,
            )
        return constant

    def restored(self, saved: Mapping[str, str]) -> None:
        """Compare with :meth:`current` of the save; of what is not there yet, when it is.

        Args:
            saved: that, of the first rank; where this is another one, nothing.

        Warns:
            InexactResumeWarning: names what was otherwise at the save.
        """
        self._saved = saved
        self.current()
