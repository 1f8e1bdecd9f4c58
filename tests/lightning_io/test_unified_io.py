"""Unified files are whole or not there, wherever TMPDIR lies, and say so when the disk is full."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from neuromanifold_gpt.checkpoint.errors import CheckpointWriteError
from neuromanifold_gpt.lightning_io.unified_io import DurableUnifiedIO

CONTENT = {"state_dict": {"w": torch.arange(50_000.0)}}


@pytest.fixture
def small_files() -> Iterator[None]:
    """The kernel refuses files of more than 100 kB."""
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_file_gets_its_name_when_it_is_durable_and_tmpdir_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_durable: list[str]
):
    monkeypatch.setenv("TMPDIR", "/proc")
    DurableUnifiedIO().save_checkpoint(CONTENT, tmp_path / "a.ckpt")
    assert made_durable == ["fsync a.ckpt.nm-incomplete", "rename to a.ckpt", f"fsync {tmp_path.name}"]
    assert torch.load(tmp_path / "a.ckpt")["state_dict"]["w"].equal(CONTENT["state_dict"]["w"])


def test_a_refused_write_is_typed_and_the_older_file_stays(tmp_path: Path, small_files: None):
    torch.save({"old": 1}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointWriteError, match=rf"{tmp_path / 'a.ckpt'}: saving failed"):
        DurableUnifiedIO().save_checkpoint(CONTENT, tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt") == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]
