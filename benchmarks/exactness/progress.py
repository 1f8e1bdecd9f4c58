"""How far a run of a peer has been saved, by the names that the peers give to their checkpoints."""

from __future__ import annotations

import re
from pathlib import Path

# Lightning: epoch=1-step=10.ckpt, and -v1 behind it; HF Trainer: checkpoint-10; the accelerate program: step-10
_NAME = re.compile(r".*(?:step=|checkpoint-|step-)(\d+)(?:-v\d+)?(?:\.ckpt)?")


def newest_step(directory: Path) -> int:
    """Optimizer steps in the newest checkpoint; 0 if there is none."""
    return max(_steps(directory), default=0)


def newest_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint: of the most steps, and of those the one written last."""
    steps = _steps(directory)
    if not steps:
        return None
    return max((path for path, step in _named(directory) if step == max(steps)), key=lambda p: p.stat().st_mtime_ns)


def _steps(directory: Path) -> list[int]:
    return [step for _, step in _named(directory)]


def _named(directory: Path) -> list[tuple[Path, int]]:
    found = [(path, _NAME.fullmatch(path.name)) for path in directory.glob("*")]
    return [(path, int(match[1])) for path, match in found if match]
