"""Numbers and arrays of ``multiprocessing``, which a process and its data workers share.

They are read and set without their lock: a worker that was ended may hold it.
"""

from __future__ import annotations

import ctypes
from multiprocessing.sharedctypes import Synchronized, SynchronizedArray
from typing import Any

import numpy as np

_NUMBERS = (Synchronized, ctypes._SimpleCData)
_ARRAYS = (SynchronizedArray, ctypes.Array)


def is_shared_number(thing: Any) -> bool:
    """Whether it is what ``multiprocessing.Value`` gives."""
    return issubclass(type(thing), _NUMBERS)  # isinstance() would ask proxies


def number_in(thing: Any) -> Any:
    """The value of a shared number."""
    return _without_lock(thing).value


def set_number(thing: Any, value: Any) -> None:
    """Set a shared number, for all processes."""
    _without_lock(thing).value = value


def array_in(thing: Any) -> np.ndarray[Any, Any] | None:
    """The bytes of what ``multiprocessing.Array`` gives; ``None`` of anything else."""
    if not issubclass(type(thing), _ARRAYS):
        return None
    return np.frombuffer(memoryview(_without_lock(thing)).cast("B"), dtype=np.uint8)


def _without_lock(thing: Any) -> Any:
    return thing if isinstance(thing, ctypes._SimpleCData | ctypes.Array) else thing.get_obj()
