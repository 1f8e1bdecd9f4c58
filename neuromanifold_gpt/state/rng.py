"""The states of all random number generators: Python, NumPy, torch CPU and every accelerator.

Capture after a step; restore after everything that runs before the next one. Creating an iterator of a stock
``DataLoader`` draws from torch's global generator, and so may sanity checks, so restore behind them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed

from neuromanifold_gpt.checkpoint.errors import CheckpointWarning
from neuromanifold_gpt.checkpoint.user_warnings import warn_user

T = TypeVar("T")


class RandomStateWarning(CheckpointWarning):
    """A random number generator could not continue where it stopped."""


def capture_cpu_rng_state() -> dict[str, Any]:
    """The CPU generators of this process, as plain values and uint8 or int64 tensors."""
    version, internal, gauss = random.getstate()
    name, key, position, has_gauss, cached_gaussian = np.random.get_state()
    return {
        "python": [version, torch.from_numpy(np.array(internal, dtype=np.int64)), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(key, dtype=np.int64)), position, has_gauss, cached_gaussian],
        "torch": torch.get_rng_state(),
    }


def restore_cpu_rng_state(state: dict[str, Any]) -> None:
    """Put back :func:`capture_cpu_rng_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss))
    name, key, position, has_gauss, cached_gaussian = state["numpy"]
    np.random.set_state((name, key.numpy().astype(np.uint32), position, has_gauss, cached_gaussian))
    torch.set_rng_state(state["torch"])


def capture_rng_state() -> dict[str, Any]:
    """:func:`capture_cpu_rng_state`, and the generators of accelerators, as CPU tensors."""
    state = capture_cpu_rng_state()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    if torch.xpu.is_available():
        state["xpu"] = torch.xpu.get_rng_state_all()
    return state


def restore_rng_state(state: dict[str, Any]) -> None:
    """Put the generators of this process into a captured state."""
    restore_cpu_rng_state(state)
    for kind, backend in (("cuda", torch.cuda), ("xpu", torch.xpu)):
        saved = state.get(kind, [])
        if len(saved) > (backend.device_count() if backend.is_available() else 0):
            warn_user(
                f"{len(saved)} {kind} generators were saved, {backend.device_count()} devices are here: random "
                "numbers drawn on the missing ones cannot continue.",
                RandomStateWarning,
            )
        elif saved:
            backend.set_rng_state_all(saved)
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


def cpu_generator_states() -> tuple[Any, Any, torch.Tensor]:
    """Of ``random``, ``numpy.random`` and torch's default generator, as they describe themselves."""
    return random.getstate(), np.random.get_state(), torch.default_generator.get_state()


def gather_across_ranks(mine: dict[str, Any]) -> list[dict[str, Any]]:
    """The states of every rank, by rank. Collective: with torch.distributed, every rank must call it."""
    if not distributed():
        return [mine]
    states: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, mine)
    return states


def own_state(states: Sequence[T]) -> T:
    """This rank's state of those that :func:`gather_across_ranks` returned; that of rank 0 where it has none."""
    rank, _ = rank_and_world_size()
    return states[rank] if rank < len(states) else states[0]


def restore_own_rng_state(states: list[dict[str, Any]]) -> None:
    """Restore this rank's state of those that :func:`gather_across_ranks` returned.

    On a number of ranks other than at the save, a rank that has no state of its own starts from that of rank 0,
    advanced by a jump that depends on the rank only, and a warning says so.
    """
    rank, world_size = rank_and_world_size()
    if world_size != len(states):
        warn_user(
            f"random number generators of {len(states)} ranks were saved, {world_size} ranks are here: dropout and "
            "other random numbers of the model cannot continue exactly. The order of samples is not affected.",
            RandomStateWarning,
        )
    restore_rng_state(own_state(states))
    if rank < len(states):
        return
    seed = int(torch.randint(2**31, (rank + 1,))[rank])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def distributed() -> bool:
    """Whether this process is one rank of several."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def rank_and_world_size() -> tuple[int, int]:
    """Rank of this process and number of ranks; 0 and 1 without ``torch.distributed``."""
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed() else (0, 1)
