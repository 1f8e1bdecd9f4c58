"""Another environment on resume, simulated."""

from __future__ import annotations

import torch


def simulate(environment: str) -> None:
    """Change what the process sees of its environment."""
    if environment == "another torch":
        torch.__version__ = torch.torch_version.TorchVersion("2.99.0")  # type: ignore[misc]
    elif environment == "another number of threads":
        torch.set_num_threads(2)
    elif environment == "deterministic algorithms":
        torch.use_deterministic_algorithms(True)
    else:
        raise ValueError(f"environment: {environment!r} is not known.")
