"""Read a pickle without running anything that it names.

A pickle rebuilds objects by calling what it names. Here every name that is not plain data becomes an :class:`Inert`
object, which keeps what it was called with and does nothing. So settings and states of any class can be compared, and
no code of the file's author runs. It is the form that ``torch.load(pickle_module=...)`` asks for.
"""

from __future__ import annotations

import pickle
from reprlib import recursive_repr
from typing import Any, BinaryIO

_PLAIN = {
    "builtins": {"set", "frozenset", "bytearray", "complex", "slice", "range", "list", "dict", "tuple", "object"},
    "collections": {"OrderedDict", "defaultdict", "deque", "Counter"},
    "_codecs": {"encode"},
    "torch": {"Size", "device", "Tensor", "FloatStorage"},
    "torch.nn.parameter": {"Parameter"},
    "torch._utils": {"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"},
    "torch.storage": {"UntypedStorage", "TypedStorage", "_load_from_bytes"},
    "numpy": {"ndarray", "dtype"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.numeric": {"_frombuffer"},
}
_PLAIN["torch.storage"].discard("_load_from_bytes")  # it would start another, unguarded load


class Inert:
    """Stands for an object whose class was not used: what the class was called with, and the state it was given."""

    qualified_name = ""

    def __new__(cls, *arguments: Any, **named: Any) -> Inert:
        """Keep the arguments, whichever way the pickle makes the object."""
        made = super().__new__(cls)
        made.content = {"arguments": list(arguments), **named}
        return made

    content: dict[str, Any]

    def __init__(self, *arguments: Any, **named: Any) -> None: ...

    @recursive_repr()
    def __repr__(self) -> str:
        """By content, as an object may be the key of a dictionary, and has another address in every process."""
        return f"{self.qualified_name}({self.content!r})"

    def __setstate__(self, state: Any) -> None:
        self.content["state"] = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.content.setdefault("items", {})[key] = value

    def append(self, value: Any) -> None:
        """What a list-like object is filled with."""
        self.content.setdefault("elements", []).append(value)

    def extend(self, values: Any) -> None:
        """What a list-like object is filled with."""
        self.content.setdefault("elements", []).extend(values)


class Unpickler(pickle.Unpickler):
    """Finds plain data types, and inert stand-ins for all the rest."""

    def find_class(self, module: str, name: str) -> Any:
        """The named type if it is plain data; otherwise a class of its name that does nothing."""
        plain = name in _PLAIN.get(module, ()) or (module == "numpy.dtypes" and name.endswith("DType"))
        dtype = module == "torch" and not name.startswith("_") and _is_dtype(name)
        if plain or dtype:
            return super().find_class(module, name)
        return type(name.rpartition(".")[2], (Inert,), {"qualified_name": f"{module}.{name}"})


def _is_dtype(name: str) -> bool:
    import torch

    return isinstance(getattr(torch, name, None), torch.dtype)


def load(file: BinaryIO, **options: Any) -> Any:
    """Like ``pickle.load``, running nothing."""
    return Unpickler(file, **options).load()


UnpicklingError = pickle.UnpicklingError
