"""What can keep ``certify`` from giving a verdict at all."""

from __future__ import annotations

from neuromanifold_gpt.checkpoint.errors import CheckpointError


class CertifyError(CheckpointError):
    """Base of the errors below; nothing was certified."""


class PlanError(CertifyError):
    """The options or the command cannot be used: what was asked for cannot be done."""


class CommandFailedError(CertifyError):
    """The command does not end with exit code 0 when nobody interrupts it."""


class UnreadableError(CertifyError):
    """A file whose content cannot be compared: torn, or of a form that is not known."""
