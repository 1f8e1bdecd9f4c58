"""What a test looks at afterwards, kept in a module that trains."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class Record(SimpleNamespace):
    """By its ``state_dict``, the package takes it for saved; of a list it would say that no checkpoint has it."""

    def state_dict(self) -> dict[str, Any]:
        return {}
