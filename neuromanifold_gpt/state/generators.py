"""The states of random number generators that are objects: of ``random``, NumPy and torch."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Generator = random.Random | np.random.Generator | np.random.BitGenerator | np.random.RandomState | torch.Generator
_PYTHONS = "random.Random"
_SPAWNED = "n_children_spawned"


def seed_generator(generator: Generator, seed: int) -> None:
    """Seed it; ``seed`` is one of 64 bits."""
    if isinstance(generator, np.random.RandomState) and generator.get_state(legacy=False)["bit_generator"] == "MT19937":
        generator.seed([seed & 0xFFFFFFFF, seed >> 32])
    elif isinstance(generator, np.random.RandomState):
        fresh_bits: Callable[[int], np.random.BitGenerator] = type(generator._bit_generator)
        generator.set_state(np.random.RandomState(fresh_bits(seed)).get_state(legacy=False))
    elif isinstance(generator, np.random.Generator | np.random.BitGenerator):
        bits = _bits_of(generator)
        fresh: Callable[[int], np.random.BitGenerator] = type(bits)
        bits.state = fresh(seed).state
    elif isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    else:
        generator.seed(seed)


def generator_state(generator: Generator) -> Any:
    """As plain values and tensors; of NumPy's also how many others they have spawned, if any."""
    state = _plain(raw_state(generator))
    spawned = _spawned(generator)
    return {**state, _SPAWNED: spawned} if spawned else state


def set_generator_state(generator: Generator, state: Any) -> None:
    """Put back :func:`generator_state`.

    Raises:
        TypeError: it is that of another kind of generator, or of one that had spawned fewer others than this one.
    """
    spawned = state.get(_SPAWNED, 0) if isinstance(state, dict) else 0
    if (further := spawned - _spawned(generator)) < 0:
        raise TypeError(f"expected a {type(generator).__name__} that has spawned no more than {spawned} others")
    try:
        set_raw_state(generator, _unplain({k: v for k, v in state.items() if k != _SPAWNED} if spawned else state))
        if further:
            _bits_of(generator).seed_seq.spawn(further)  # type: ignore[arg-type, attr-defined]
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:  # what each kind says to another's state
        raise TypeError(f"expected the state of a {type(generator).__name__}") from error


def raw_state(generator: Generator) -> Any:
    """As it describes itself.

    Raises:
        NotImplementedError: it has none: ``random.SystemRandom``.
    """
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    if isinstance(generator, np.random.Generator | np.random.BitGenerator):
        return _bits_of(generator).state
    return generator.get_state() if isinstance(generator, torch.Generator) else generator.getstate()


def set_raw_state(generator: Generator, state: Any) -> None:
    """Put back :func:`raw_state`."""
    if isinstance(generator, np.random.Generator | np.random.BitGenerator):
        _bits_of(generator).state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


def _spawned(generator: Generator) -> int:
    """How many others it has spawned; it has no part in the state of the bits, and decides about those to come."""
    if not isinstance(generator, np.random.Generator | np.random.BitGenerator):
        return 0
    seeds = getattr(_bits_of(generator), "seed_seq", None)
    return seeds.n_children_spawned if isinstance(seeds, np.random.SeedSequence) else 0


def _bits_of(generator: np.random.Generator | np.random.BitGenerator) -> np.random.BitGenerator:
    return generator.bit_generator if isinstance(generator, np.random.Generator) else generator


def _plain(state: Any) -> Any:
    """The state of a generator, as plain values and tensors."""
    if isinstance(state, tuple):  # of random.Random
        version, internal, gauss = state
        return [_PYTHONS, version, torch.tensor(internal, dtype=torch.int64), gauss]
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    if isinstance(state, np.ndarray):  # of unsigned 32 or 64 bits
        return [str(state.dtype), torch.from_numpy(state.view(np.uint8).copy())]
    return state.item() if isinstance(state, np.generic) else state


def _unplain(state: Any) -> Any:
    """What :func:`_plain` was given."""
    if isinstance(state, dict):
        return {key: _unplain(value) for key, value in state.items()}
    if not isinstance(state, list):
        return state
    if state[0] == _PYTHONS:
        _, version, internal, gauss = state
        return version, tuple(internal.tolist()), gauss
    dtype, data = state
    return data.numpy().view(np.dtype(dtype))
