"""Make a tree of training state ready to be written: checked, canonical, tensors set apart.

Staging is the hand-over between capturing state (``state/``) and writing it (``archive.py``). It copies no tensor
data: a :class:`StagedTree` refers to the live tensors, and whoever holds them still while writing (a synchronous
save) or copies :attr:`StagedTree.storages` first (an asynchronous one) decides what is written.

Canonical means that equal state gives equal bytes. What stands in the way, and what is done about it:

- a pickle depends on which equal strings and tuples are one object: the pickler keeps no memo (see ``archive.py``);
- sets have no order: they are written sorted;
- a tensor may be a view into a larger storage, or lie on any device: each is written densely, as a CPU tensor, and
  only tensors that cover exactly the same memory (tied weights) share a record.
"""

from __future__ import annotations

import math
import pickle
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor

from neuromanifold_gpt.checkpoint.errors import UnsupportedObjectError

_PLAIN_TYPES = frozenset(
    {type(None), bool, int, float, complex, str, bytes, bytearray, torch.dtype, torch.device, torch.Size}
)


@dataclass(frozen=True)
class StorageRef:
    """One ``data/<key>`` record: the dense memory of ``tensor``."""

    key: str
    tensor: Tensor

    @property
    def size_bytes(self) -> int:
        """Bytes of the record."""
        return self.tensor.numel() * self.tensor.element_size()


@dataclass(frozen=True)
class TensorRef:
    """Stands in the tree where the tensor at ``path`` stood."""

    path: str
    storage: StorageRef
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool
    is_parameter: bool


@dataclass(frozen=True)
class SortedSet:
    """Stands in the tree for a ``set``."""

    items: tuple[Any, ...]


@dataclass(frozen=True)
class Reduced:
    """Stands in the tree for an object of a class given to ``torch.serialization.add_safe_globals``."""

    parts: tuple[Any, ...]


@dataclass
class StagedTree:
    """A tree with :class:`TensorRef` in place of tensors, the tensors in order, and their storages in order."""

    tree: Any
    tensors: list[TensorRef] = field(default_factory=list)
    storages: list[StorageRef] = field(default_factory=list)


def stage(payload: dict[str, Any]) -> StagedTree:
    """Check ``payload`` and set its tensors apart.

    Raises:
        UnsupportedObjectError: something in it could not be read back with ``torch.load(weights_only=True)``.
    """
    staged = StagedTree(tree=None)
    staged.tree = _Stager(staged).walk(payload, ())
    return staged


class _Stager:
    def __init__(self, staged: StagedTree) -> None:
        self._staged = staged
        self._storage_of_memory: dict[tuple[Any, ...], StorageRef] = {}
        self._open_containers: set[int] = set()
        self._safe_classes = {entry for entry in torch.serialization.get_safe_globals() if isinstance(entry, type)}

    def walk(self, value: Any, path: tuple[str, ...]) -> Any:
        kind = type(value)
        if kind in _PLAIN_TYPES:
            return value
        if isinstance(value, Tensor):
            return self._tensor(value, path)
        if id(value) in self._open_containers:
            _refuse(path, value, "contains itself", "break the cycle")
        self._open_containers.add(id(value))
        try:
            return self._container(value, kind, path)
        finally:
            self._open_containers.discard(id(value))

    def _container(self, value: Any, kind: type, path: tuple[str, ...]) -> Any:
        if kind is list:
            return [self.walk(item, (*path, str(i))) for i, item in enumerate(value)]
        if kind is tuple:
            return tuple(self.walk(item, (*path, str(i))) for i, item in enumerate(value))
        if kind is set:
            items = [self.walk(item, (*path, "{item}")) for item in value]
            return SortedSet(tuple(sorted(items, key=lambda item: pickle.dumps(item, protocol=2))))
        if kind in (dict, OrderedDict, Counter):
            return self._mapping(value, kind, path)
        if kind in self._safe_classes:
            parts = value.__reduce_ex__(2)
            if isinstance(parts, tuple):
                # Items come as iterators; lists are what can be walked and pickled again.
                listed = (list(part) if isinstance(part, Iterable) and i >= 3 else part for i, part in enumerate(parts))
                return Reduced(tuple(self._reduced_part(part, path) for part in listed))
        module, name = kind.__module__, kind.__qualname__
        return _refuse(
            path,
            value,
            "could not be read back by torch.load(weights_only=True)",
            "store plain Python values and tensors instead (numpy: .item() or torch.from_numpy; paths: str), or, if "
            f"every reader may be told to trust the class, torch.serialization.add_safe_globals([{module}.{name}])",
        )

    def _mapping(self, value: Any, kind: type, path: tuple[str, ...]) -> Any:
        result = kind()
        for key, item in value.items():
            result[self.walk(key, (*path, f"key {key!r}"))] = self.walk(item, (*path, str(key)))
        if getattr(value, "__dict__", None):  # the _metadata of a module's state dict
            result.__dict__.update(self.walk(dict(value.__dict__), (*path, "__dict__")))
        return result

    def _reduced_part(self, part: Any, path: tuple[str, ...]) -> Any:
        # The callable and the class are globals: pickled by name, checked by the unpickler's allow-list.
        if isinstance(part, tuple):
            return tuple(self._reduced_part(item, path) for item in part)
        return part if callable(part) else self.walk(part, path)

    def _tensor(self, tensor: Tensor, path: tuple[str, ...]) -> TensorRef:
        if type(tensor) not in (Tensor, torch.nn.Parameter):
            _refuse(path, tensor, "is a tensor subclass", "store a plain tensor (DTensor: .full_tensor())")
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
            _refuse(path, tensor, f"has layout {tensor.layout}", "store its dense parts")
        if tensor.device.type == "meta":
            _refuse(path, tensor, "has no data (meta device)", "materialize it first")
        dense = _dense(tensor.detach())
        reference = TensorRef(
            path="/".join(path),
            storage=self._storage(dense),
            shape=tuple(dense.shape),
            stride=dense.stride() if not dense.is_contiguous() else _contiguous_stride(dense.shape),
            requires_grad=tensor.requires_grad,
            is_parameter=type(tensor) is torch.nn.Parameter,
        )
        self._staged.tensors.append(reference)
        return reference

    def _storage(self, dense: Tensor) -> StorageRef:
        memory = (dense.device, dense.data_ptr(), dense.dtype, dense.numel())
        known = self._storage_of_memory.get(memory)
        if known is not None and dense.numel() > 0:
            return known
        storage = StorageRef(key=str(len(self._staged.storages)), tensor=dense)
        self._staged.storages.append(storage)
        self._storage_of_memory[memory] = storage
        return storage


def _dense(tensor: Tensor) -> Tensor:
    """``tensor`` itself if its elements fill a block of memory without gap or overlap, else a contiguous copy."""
    tensor = tensor.resolve_conj().resolve_neg()
    if tensor.is_contiguous():
        return tensor
    # Memory formats such as channels_last are dense and kept, since kernels may round differently by format.
    if torch.empty_like(tensor, device="meta").stride() == tensor.stride():
        return tensor
    return tensor.contiguous()


def _contiguous_stride(shape: torch.Size) -> tuple[int, ...]:
    """Row-major strides; ``Tensor.stride`` is arbitrary where a dimension has one element."""
    return tuple(math.prod(max(size, 1) for size in shape[i + 1 :]) for i in range(len(shape)))


def _refuse(path: tuple[str, ...], value: Any, problem: str, remedy: str) -> NoReturn:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise UnsupportedObjectError(
        f"cannot save {'/'.join(path) or 'the state'}: the {kind} there {problem}. To save it, {remedy}."
    )
