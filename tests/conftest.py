"""What holds for every test."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


def pytest_collection_finish() -> None:
    """Leave what was imported out of all later collections: going through it takes most of their time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def torch_is_as_it_was() -> Iterator[None]:
    """A Trainer sets torch's global switches and leaves them; the test after it must not depend on that."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, default_dtype = torch.backends.cudnn.benchmark, torch.get_default_dtype()
    yield
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.backends.cudnn.benchmark = benchmark
    torch.set_default_dtype(default_dtype)


@pytest.fixture
def made_durable(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synced and renamed, in the order in which it happens."""
    happened: list[str] = []
    fsync, rename = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        happened.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def noted_rename(source: Path, target: Path) -> None:
        happened.append(f"rename to {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_rename)
    return happened
