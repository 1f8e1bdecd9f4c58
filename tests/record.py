"""What a test looks at afterwards, kept in a module that trains."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any


class EmptyFile(io.IOBase):
    """An open file, as far as its class tells; it can be copied."""

    def __reduce__(self) -> tuple[type[EmptyFile], tuple[()]]:
        return EmptyFile, ()


class Record(SimpleNamespace):
    """With a file, as records have; of a list the package would say that no checkpoint has it."""

    def __init__(self, **kept: Any) -> None:
        super().__init__(file=EmptyFile(), **kept)
