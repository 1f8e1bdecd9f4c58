"""Make a tree of training state ready to be written: checked, canonical, tensors set apart.

Staging is the hand-over between capturing state (``state/``) and writing it (``archive.py``). It copies no tensor
data: a :class:`StagedTree` refers to the live tensors, and whoever holds them still while writing (a synchronous
save) or copies :attr:`StagedTree.storages` first (an asynchronous one) decides what is written.

Canonical means that equal state gives equal bytes. What stands in the way, and what is done about it:

- a pickle depends on which equal strings and tuples are one object: the pickler keeps no memo (see ``archive.py``);
- sets have no order: they are written sorted;
- a tensor may be a view into a larger storage, or lie on any device: each is written densely, as a CPU tensor, and
  only weights that cover exactly the same memory (tied weights) share a record.
"""

from __future__ import annotations

import codecs
import copyreg
import math
from collections import Counter, OrderedDict
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor

from neuromanifold_gpt.checkpoint.errors import UnsupportedObjectError

_PLAIN_TYPES = frozenset(
    {type(None), bool, int, float, complex, str, bytes, bytearray, torch.dtype, torch.device, torch.Size}
)
_MAXIMUM_INT_BYTES = 255  # a longer one is pickled by an opcode that the weights-only reader does not know
_NEW_OBJECT = copyreg.__newobj__  # type: ignore[attr-defined]


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
    """Stands in the tree for a ``set``; ``archive.py`` sorts it by the pickles of its items."""

    items: tuple[Any, ...]


@dataclass(frozen=True)
class Reduced:
    """Stands in the tree for an object that is pickled as a call: what its ``__reduce_ex__`` returned, staged."""

    parts: tuple[Any, ...]

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The class that ``parts`` make an object of: the pickler asks, and refuses to write one of another class."""
        return self.parts[1][0] if self.parts[0] is _NEW_OBJECT else Reduced


@dataclass
class StagedTree:
    """A tree with :class:`TensorRef` in place of tensors, the tensors in order, and their storages in order."""

    tree: Any
    tensors: list[TensorRef] = field(default_factory=list)
    storages: list[StorageRef] = field(default_factory=list)


def stage(payload: dict[str, Any], *, tied_parts: Container[str] | None = None) -> StagedTree:
    """Check ``payload`` and set its tensors apart.

    Args:
        payload: the content of a data file.
        tied_parts: top-level keys under which tensors over the same memory stay tied; ``None`` is everywhere. Weights
            are tied by the model's author. Elsewhere one tensor may happen to stand in two places (a metric that is
            also somebody's best score) until a resume makes two of it, so there it must not show in the bytes.

    Raises:
        UnsupportedObjectError: something in it could not be read back with ``torch.load(weights_only=True)``.
    """
    staged = StagedTree(tree=None)
    try:
        staged.tree = _Stager(staged, tied_parts).walk(payload, ())
    except RecursionError:
        raise UnsupportedObjectError(
            "cannot save the state: it is nested more deeply than Python's recursion limit. To save it, flatten it."
        ) from None
    return staged


class _Stager:
    def __init__(self, staged: StagedTree, tied_parts: Container[str] | None) -> None:
        self._staged = staged
        self._tied_parts = tied_parts
        self._storage_of_memory: dict[tuple[Any, ...], StorageRef] = {}
        self._open_containers: set[int] = set()
        self._safe_classes = {entry for entry in torch.serialization.get_safe_globals() if isinstance(entry, type)}
        known_to_readers = torch._weights_only_unpickler._get_allowed_globals().values()
        self._safe_globals = [*known_to_readers, *torch.serialization.get_safe_globals()]

    def walk(self, value: Any, path: tuple[str, ...]) -> Any:
        kind = type(value)
        if kind in _PLAIN_TYPES:
            return _plain(value, kind, path)
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
            tensors_outside = len(self._staged.tensors)
            items = tuple(self.walk(item, (*path, "{item}")) for item in value)
            if len(self._staged.tensors) > tensors_outside:
                _refuse(path, value, "holds tensors, which no order can be given", "use a list")
            return SortedSet(items)
        if kind in (dict, OrderedDict, Counter):
            return self._mapping(value, kind, path)
        if kind in self._safe_classes:
            return self._reduced(value, path)
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
            staged_key = self.walk(key, (*path, f"key {key!r}"))  # first, as in the pickle: see _reduced
            result[staged_key] = self.walk(item, (*path, str(key)))
        if getattr(value, "__dict__", None):  # the _metadata of a module's state dict
            result.__dict__.update(self.walk(dict(value.__dict__), (*path, "__dict__")))
        return result

    def _reduced(self, value: Any, path: tuple[str, ...]) -> Reduced:
        parts = value.__reduce_ex__(2)
        if not isinstance(parts, tuple):
            _refuse(path, value, "pickles as the name of a global", "store what it stands for")
        make, arguments, state, list_items, dict_items = (*parts, None, None, None)[:5]
        if any(list(items or ()) for items in (list_items, dict_items)):
            _refuse(path, value, "has items, which the weights-only reader adds to a list or dict only", "make it one")
        # In the order of the pickle, so that tensors are numbered as a reader meets them.
        make = make if make is _NEW_OBJECT else self._reduced_part(make, path)
        return Reduced((make, self._reduced_part(arguments, path), self._reduced_part(state, path)))

    def _reduced_part(self, part: Any, path: tuple[str, ...]) -> Any:
        if type(part) is tuple:
            return tuple(self._reduced_part(item, path) for item in part)
        # Classes and functions are pickled by name, and read if they are on the reader's list.
        return part if any(part is known for known in self._safe_globals) else self.walk(part, path)

    def _tensor(self, tensor: Tensor, path: tuple[str, ...]) -> TensorRef:
        if type(tensor) not in (Tensor, torch.nn.Parameter):
            _refuse(path, tensor, "is a tensor subclass", "store a plain tensor (DTensor: .full_tensor())")
        if tensor.is_quantized or tensor.is_nested:
            _refuse(path, tensor, f"is {'quantized' if tensor.is_quantized else 'nested'}", "store its dense parts")
        if tensor.layout is not torch.strided:
            _refuse(path, tensor, f"has layout {tensor.layout}", "store its dense parts")
        if tensor.device.type == "meta":
            _refuse(path, tensor, "has no data (meta device)", "materialize it first")
        dense = _dense(tensor.detach())
        reference = TensorRef(
            path="/".join(path),
            storage=self._storage(dense, self._tied_parts is None or path[0] in self._tied_parts),
            shape=tuple(dense.shape),
            stride=dense.stride() if not dense.is_contiguous() else _contiguous_stride(dense.shape),
            requires_grad=tensor.requires_grad,
            is_parameter=type(tensor) is torch.nn.Parameter,
        )
        self._staged.tensors.append(reference)
        return reference

    def _storage(self, dense: Tensor, may_be_tied: bool) -> StorageRef:
        memory = (dense.device, dense.data_ptr(), dense.dtype, dense.numel())
        known = self._storage_of_memory.get(memory)
        if known is not None and dense.numel() > 0 and may_be_tied:
            return known
        storage = StorageRef(key=str(len(self._staged.storages)), tensor=dense)
        self._staged.storages.append(storage)
        if may_be_tied:
            self._storage_of_memory[memory] = storage
        return storage


def _plain(value: Any, kind: type, path: tuple[str, ...]) -> Any:
    if kind is int and value.bit_length() >= 8 * _MAXIMUM_INT_BYTES:
        _refuse(path, value, f"has more than {_MAXIMUM_INT_BYTES} bytes", "store it as a str")
    if kind is bytes and not value:  # pickled by torch.save as bytes(), which the weights-only reader refuses
        return Reduced((codecs.encode, ("", "latin1")))
    return value


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
