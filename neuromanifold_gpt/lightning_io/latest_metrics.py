"""The last values of what was logged, which programs and callbacks read: ``trainer.callback_metrics``, and
``trainer.logged_metrics``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer

_KINDS = ("callback_metrics", "logged_metrics")


def latest_metrics(trainer: Trainer) -> dict[str, dict[str, Any]]:
    """Both, as they are now."""
    return {kind: dict(getattr(trainer, kind)) for kind in _KINDS}


def with_those_before(latest: Mapping[str, dict[str, Any]], loaded: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Sorted by name, and with those of a checkpoint that is loaded, but not in place before the first step."""
    return {kind: dict(sorted({**loaded.get(kind, {}), **latest[kind]}.items())) for kind in _KINDS}


def restore_latest_metrics(trainer: Trainer, loaded: Mapping[str, Any]) -> None:
    """Put back what :func:`latest_metrics` gave."""
    connector = trainer._logger_connector
    connector._callback_metrics.update(loaded["callback_metrics"])
    connector._logged_metrics.update(loaded["logged_metrics"])
