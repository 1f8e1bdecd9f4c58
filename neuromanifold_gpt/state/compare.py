"""Compare two checkpoints and name what differs, first things first.

Tensors are compared by the digests in the manifests, so equal ones are not read. Only where digests differ, or where
there are none (unified files), are the tensors themselves looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuromanifold_gpt.checkpoint.commit import Checkpoint, open_complete
from neuromanifold_gpt.checkpoint.discovery import open_checkpoint
from neuromanifold_gpt.checkpoint.errors import CheckpointNotFoundError, UnknownFormatError
from neuromanifold_gpt.checkpoint.manifest import shown
from neuromanifold_gpt.checkpoint.naming import paths_of_any_file
from neuromanifold_gpt.checkpoint.reader import map_archive
from neuromanifold_gpt.checkpoint.storage import read_errors
from neuromanifold_gpt.checkpoint.writer import STAMP_KEY

# In this order: what comes earlier in a training step, and so explains what comes later, is named first.
_COMPONENTS = {
    "lr_schedulers": "learning-rate scheduler",
    "data": "position in the data",
    "loops": "position in the loop",
    "rng_states": "random number generators",
    "own_generators": "random number generators",
    "stateful_generators": "random number generators",
    "exact_resume": "position in the loop",
    "gradients": "gradients",
    "state_dict": "weights and buffers",
    "optimizer_states": "optimizer state",
    "epoch_metrics": "metrics of the epoch",
    "metrics": "metrics of the epoch",
    "stateful": "further objects",
    "callbacks": "callbacks",
}
_ABSENT = object()


@dataclass(frozen=True)
class Difference:
    """One place in which two checkpoints differ.

    Attributes:
        component: which part of the training state, such as ``"optimizer state"``.
        path: where, such as ``optimizer_states/0/state/3/exp_avg``.
        left, right: short descriptions of both values.
        largest: largest absolute difference of two tensors of one shape; ``None`` otherwise.
    """

    component: str
    path: str
    left: str
    right: str
    largest: float | None = None

    def __str__(self) -> str:
        size = "" if self.largest is None else f" (largest difference {self.largest:g})"
        return f"{shown(self.component)}: {shown(self.path)}: {self.left} / {self.right}{size}"


@dataclass(frozen=True)
class Comparison:
    """All differences, sorted by component and then by place."""

    differences: tuple[Difference, ...]

    @property
    def equal(self) -> bool:
        """Whether both hold the same training state, bit for bit."""
        return not self.differences

    @property
    def first(self) -> Difference | None:
        """The difference that most likely explains the others."""
        return self.differences[0] if self.differences else None


@dataclass(frozen=True)
class _Side:
    """The content of one checkpoint, its tensors mapped and not read, and the digests that are known."""

    tree: dict[str, Any]
    digests: Mapping[str, str]


def compare_checkpoints(left: str | Path | Checkpoint, right: str | Path | Checkpoint) -> Comparison:
    """Compare two checkpoints: any file of each, separated or unified.

    Raises:
        CheckpointNotFoundError, IncompleteCheckpointError, DamagedCheckpointError, UntrustedPickleError: one of them
            cannot be read. Digests are believed, not checked: that is what ``verify_checkpoint`` is for.
    """
    sides = _open(left), _open(right)
    found = _differences(sides[0], sides[1], sides[0].tree, sides[1].tree, ())
    order = {name: place for place, name in enumerate(dict.fromkeys(_COMPONENTS.values()))}
    return Comparison(tuple(sorted(found, key=lambda difference: order.get(difference.component, len(order)))))


def _open(where: str | Path | Checkpoint) -> _Side:
    if not isinstance(where, Checkpoint):
        path = Path(where)
        with read_errors(path):
            if not any(paths_of_any_file(candidate).manifest.exists() for candidate in (path, path.resolve())):
                if not path.is_file():
                    raise CheckpointNotFoundError(f"{path}: there is no such file.")
                return _Side(_mapped(path), {})
        where = open_checkpoint(path)
    checkpoint = open_complete(where.paths)
    tree: dict[str, Any] = {}
    digests: dict[str, str] = {}
    for role, records in checkpoint.manifest.tensors.items():
        tree.update(_mapped(checkpoint.file(role)))
        digests.update((record.path, record.digest) for record in records)
    tree.pop(STAMP_KEY, None)  # the pair digest follows from the content
    return _Side(tree, digests)


def _mapped(path: Path) -> dict[str, Any]:
    content = map_archive(path)
    if not isinstance(content, dict):
        raise UnknownFormatError(f"{path}: expected a dict, found a {type(content).__name__}. Compare it by yourself.")
    return content


def _differences(left: _Side, right: _Side, a: Any, b: Any, path: tuple[str, ...]) -> Iterator[Difference]:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if not _same_tensor(left, right, a, b, "/".join(path)):
            yield _difference(path, a, b)
    elif isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in [*a, *(key for key in b if key not in a)]:
            yield from _differences(left, right, a.get(key, _ABSENT), b.get(key, _ABSENT), (*path, str(key)))
    elif isinstance(a, list | tuple) and type(a) is type(b) and len(a) == len(b):
        for index, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from _differences(left, right, one, other, (*path, str(index)))
    elif type(a) is not type(b) or not _same_value(a, b):
        yield _difference(path, a, b)


def _same_tensor(left: _Side, right: _Side, a: Tensor, b: Tensor, path: str) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if path in left.digests and path in right.digests and a.stride() == b.stride():
        return left.digests[path] == right.digests[path]
    parts = _dense_parts(a), _dense_parts(b)
    # As bytes: a NaN is equal to itself here, and 0.0 is not equal to -0.0.
    return a.layout == b.layout and all(
        one.shape == other.shape and torch.equal(_bytes(one), _bytes(other)) for one, other in zip(*parts, strict=True)
    )


def _same_value(a: Any, b: Any) -> bool:
    if isinstance(a, float):
        return a.hex() == b.hex()
    return bool(a == b)


def _dense_parts(tensor: Tensor) -> list[Tensor]:
    """What a tensor consists of: itself, or the indices and values of a sparse one; of a meta tensor, nothing."""
    if tensor.is_meta:
        return []
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    return [tensor]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _difference(path: tuple[str, ...], a: Any, b: Any) -> Difference:
    largest = None
    tensors = [part for side in (a, b) if isinstance(side, Tensor) for part in _dense_parts(side)]
    if len(tensors) == 2 and a.shape == b.shape and tensors[0].shape == a.shape and a.numel():
        numbers = (a.to(torch.complex128), b.to(torch.complex128)) if a.is_complex() else (a.double(), b.double())
        largest = (numbers[0] - numbers[1]).abs().max().item()
    # In Lightning's checkpoints, some lie one level deeper.
    name = next((part for part in path[1::-1] if part in _COMPONENTS), path[0] if path else "")
    component = _COMPONENTS.get(name, name) or "everything"
    return Difference(component, "/".join(path), _described(a), _described(b), largest)


def _described(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
