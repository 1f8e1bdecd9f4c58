"""Certify the little programs of this folder; the two undisturbed runs of each command are made once a session."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from neuromanifold_gpt.certify.certificate import Certificate, Observer, Settings
from neuromanifold_gpt.certify.command import Command
from neuromanifold_gpt.certify.interruptions import Plan
from neuromanifold_gpt.certify.run import Certification

HERE = Path(__file__).parent
NUMPY = [sys.executable, str(HERE / "numpy_program.py"), "{out}"]


class KnownPrograms:
    """Remembers what undisturbed runs of a command showed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._known: dict[tuple[str, ...], Certificate] = {}
        self._count = 0

    def certify(
        self, command: list[str], resume: list[str] | None = None, plan: Plan | None = None, **settings: Any
    ) -> Certificate:
        """Like ``certify``, without repeating the undisturbed runs of a command that is known."""
        self._count += 1
        settings = {"second_look": False, "stall_sec": 20.0, **settings}
        asked = Settings(
            Command.parse(command, resume), plan or Plan(at_steps=(22,)), self._directory / str(self._count), **settings
        )
        certification = Certification(asked, Observer(), known=self._known.get(tuple(command)))
        certificate = certification.certify()
        self._known[tuple(command)] = certificate
        return certificate
