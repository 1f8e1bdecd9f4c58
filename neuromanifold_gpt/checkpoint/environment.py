"""What of the machine and the software can change the bits of a training step.

Kept in the manifest, never in the data files: the same state gives the same files wherever it was computed.
"""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping
from typing import Any

import torch

from neuromanifold_gpt.checkpoint.errors import EnvironmentChangedWarning
from neuromanifold_gpt.checkpoint.user_warnings import warn_user

_WHY = {
    "torch": "kernels change between releases",
    "device": "kernels differ between devices",
    "cuda": "kernels change between releases",
    "cudnn": "kernels change between releases",
    "num_threads": "the order of additions in CPU kernels depends on the number of threads",
    "cpu_capability": "vector width changes the order of additions",
    "deterministic_algorithms": "kernels that are not deterministic may be chosen",
    "cudnn_benchmark": "kernels are chosen by timing",
    "float32_matmul_precision": "matrix products are rounded differently",
    "world_size": "gradients are summed in another grouping",
    "machine": "kernels differ between processor types",
}


def current_environment(device: str = "cpu", world_size: int = 1) -> dict[str, Any]:
    """What can change bits, as plain JSON values. ``device`` is the type that trains, such as ``"cuda"``."""
    environment: dict[str, Any] = {
        "torch": torch.__version__,
        "device": device,
        "num_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "world_size": world_size,
    }
    if device == "cuda":
        environment["device"] = torch.cuda.get_device_name()
        environment["cuda"] = torch.version.cuda
        environment["cudnn"] = torch.backends.cudnn.version()
        environment["cudnn_benchmark"] = torch.backends.cudnn.benchmark
    return environment


def save_details() -> dict[str, Any]:
    """When and where a save took place: for people, not for comparison."""
    return {
        "saved_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
        "host": platform.node(),
        "python": platform.python_version(),
    }


def warn_if_changed(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Warn once, with a reason for each difference that can change bits."""
    changed = [
        f"{key} was {saved.get(key)!r} and is {current.get(key)!r} ({_WHY.get(key, 'it may change results')})"
        for key in sorted({*saved, *current})
        if saved.get(key) != current.get(key)
    ]
    if changed:
        warn_user(
            "resuming in another environment, so the continuation may differ in bits: " + "; ".join(changed),
            EnvironmentChangedWarning,
        )
