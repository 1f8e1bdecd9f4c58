"""The order of the samples of an epoch, as a pure function of (seed, epoch, position).

A shuffled order is a pseudo-random permutation that can be evaluated at any position without building it: a Feistel
network over the smallest power of four that holds the data, with cycle walking for the rest (Black and Rogaway,
"Ciphers with Arbitrary Finite Domains", CT-RSA 2002). So resuming costs nothing, however far the epoch has come and
however large the data set is, and the order depends neither on torch's version nor on the number of workers or ranks.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 8
_MINIMUM_HALF_BITS = 3  # smaller networks reach too few of the permutations
_GOLDEN = 0x9E3779B97F4A7C15
_FACTORS = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK_64 = (1 << 64) - 1


def permuted(positions: NDArray[np.int64], size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The sample ids at some positions of a shuffled epoch.

    Args:
        positions: int64, shape (N,), each in ``[0, size)``.
        size: number of samples.
        seed: any integer.
        epoch: counts from 0; each has an order of its own.

    Returns:
        int64, shape (N,): over all positions, every id in ``[0, size)`` exactly once.
    """
    half_bits = max(_MINIMUM_HALF_BITS, ((size - 1).bit_length() + 1) // 2)
    keys = _round_keys(seed, epoch)
    result = _network(positions.astype(np.uint64), half_bits, keys)
    while (outside := result >= size).any():
        result[outside] = _network(result[outside], half_bits, keys)
    return result.astype(np.int64)


def mixed(*values: int) -> int:
    """A 64-bit number that depends on all values and their order."""
    state = 0
    for value in values:  # :func:`_splitmix` of one number, which Python works out faster
        state = ((state ^ value) + _GOLDEN) & _MASK_64
        state = (state ^ state >> 30) * _FACTORS[0] & _MASK_64
        state = (state ^ state >> 27) * _FACTORS[1] & _MASK_64
        state ^= state >> 31
    return state


@functools.lru_cache(maxsize=16)
def _round_keys(seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(mixed(seed, epoch, round_number) for round_number in range(_ROUNDS))


def _network(values: NDArray[np.uint64], half_bits: int, keys: tuple[int, ...]) -> NDArray[np.uint64]:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_splitmix(right ^ np.uint64(key)) & mask)
    return (left << shift) | right


def _splitmix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of splitmix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    values = values + np.uint64(_GOLDEN)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(_FACTORS[0])
    values = (values ^ (values >> np.uint64(27))) * np.uint64(_FACTORS[1])
    return values ^ (values >> np.uint64(31))
