"""Compare two trees of saved state, leaf by leaf, by their bits."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuromanifold_gpt.certify.distances import as_bytes, distance
from neuromanifold_gpt.certify.inert_pickle import Inert
from neuromanifold_gpt.certify.names import is_bookkeeping_name, is_clock_name

# In this order: what comes earlier in a training step, and so explains what comes later, is named first.
_COMPONENTS: tuple[tuple[str, str], ...] = (
    ("optimizer state", r"optim|exp_avg|momentum_buffer"),
    ("learning-rate scheduler", r"sched|lr_lambda"),
    ("gradient scaler", r"scaler|loss_scale|mixedprecision"),
    ("random number generators", r"rng|random_?state|random_states|generator|exact_resume"),
    ("averaged weights (EMA)", r"(^|[/_.])(ema|swa|shadow|avg|averag\w*|polyak)([/_.\d]|$)"),
    ("batch-norm buffers", r"running_mean|running_var|num_batches_tracked"),
    ("accumulated gradients", r"(^|[/_.])(grads?|gradients?|acc|accum\w*)([/_.\d]|$)"),
    ("position in the data", r"sampler|loader|dataset|(^|[/_.])data([/_.]|$)|cursor|consumed|position"),
    ("callbacks", r"callback|best|patience|early_stop"),
    ("settings", r"(^|/)(args|config|hparams|hyper_parameters|cfg|settings|training_args)"),
    ("position in the loop", r"loops|(^|[/_])(global_step|step|steps|iter|iter_num|epoch|iteration)$"),
)
WEIGHTS = "weights"
OTHER = "other state"
_NAMED_WEIGHT = re.compile(r"model|weight|bias|param|net|module|state_dict", re.IGNORECASE)
_MIN_ARRAY = 8  # a list of so many numbers is looked at as a tensor
_SECONDS_SINCE_1970 = 10**9  # a whole number that is the time of day is larger
_ABSENT = object()


@dataclass(frozen=True)
class LeafDifference:
    """One leaf in which two trees differ.

    Attributes:
        path: where, such as ``optimizer_states/0/state/3/exp_avg``.
        component: which part of the training state.
        expected, found: short descriptions: values, or dtype and shape of tensors.
        largest_absolute, largest_relative, largest_ulps: how far apart two tensors or numbers of one shape are.
        differing, elements: how many elements differ, of how many.
        is_tensor: a tensor, an array, or a long list of numbers.
        scale: largest finite magnitude in the expected tensor.
    """

    path: str
    component: str
    expected: str
    found: str
    largest_absolute: float | None = None
    largest_relative: float | None = None
    largest_ulps: float | None = None
    differing: int = 1
    elements: int = 1
    is_tensor: bool = False
    scale: float = 0.0

    @property
    def is_whole_number(self) -> bool:
        """Whether both are whole numbers, such as a counter's."""
        return all(re.fullmatch(r"-?\d+", text) for text in (self.expected, self.found))

    @property
    def is_clock(self) -> bool:
        """Whether, by its name, it is the time or follows from it; ``best_at: 40`` is a step, no time."""
        last = self.path.rpartition("/")[2]
        if last.lower().endswith("_at") and self.is_whole_number and abs(int(self.expected)) < _SECONDS_SINCE_1970:
            return False
        return not self.is_tensor and is_clock_name(last)

    @property
    def is_bookkeeping(self) -> bool:
        """Whether, by its name, it tells how the run was started rather than its state."""
        last = self.path.rpartition("/")[2]
        return not self.is_tensor and (self.component == "settings" or is_bookkeeping_name(last))

    def within(self, relative: float) -> bool:
        """Whether the difference is at most ``relative`` of the tensor's largest magnitude."""
        if self.largest_absolute is None or not math.isfinite(self.largest_absolute):
            return False
        return self.largest_ulps is not None and self.largest_absolute <= relative * self.scale


def component_of(path: str) -> str:
    """Which part of the training state a path belongs to."""
    lowered = path.lower()
    for component, pattern in _COMPONENTS:
        if re.search(pattern, lowered):
            if component == "position in the loop" and "model" in lowered:
                continue
            return component
    return WEIGHTS


def _component(path: str, *, is_tensor: bool) -> str:
    """The same of a leaf: a lone number or word is no weight, unless it is named like one."""
    component = component_of(path)
    return OTHER if component == WEIGHTS and not is_tensor and not _NAMED_WEIGHT.search(path) else component


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf with its path; arrays and long lists of numbers come as tensors."""
    yield from _leaves(tree, prefix, ())


def _leaves(tree: Any, path: str, above: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
    if id(tree) in above:  # an object that holds itself
        return
    if isinstance(tree, Inert):
        yield f"{path}/class".lstrip("/"), tree.qualified_name
        tree = tree.content
    if isinstance(tree, np.ndarray) and tree.dtype == object and not tree.ndim:
        tree = tree.item()  # how NumPy saves a dictionary
    if isinstance(tree, Mapping):
        children: Any = ((str(key), value) for key, value in tree.items())
    elif isinstance(tree, set | frozenset):
        children = [("elements", sorted(map(repr, tree)))] if tree else []
    elif isinstance(tree, list | tuple | deque) or (isinstance(tree, np.ndarray) and tree.dtype == object):
        if (array := _as_array(tree)) is not None:
            yield path, array
            return
        children = ((str(index), value) for index, value in enumerate(tree))
    else:
        yield path, _leaf(tree)
        return
    count = 0
    for key, value in children:
        count += 1
        yield from _leaves(value, f"{path}/{key}" if path else key, (*above, id(tree)))
    if not count:
        yield path, f"empty {type(tree).__name__}"


def _as_array(values: Any) -> Tensor | None:
    if len(values) < _MIN_ARRAY:
        return None
    kinds = {type(value) for value in values}
    if kinds == {float}:
        return torch.tensor(values, dtype=torch.float64)
    if kinds == {int} and all(-(2**63) <= value < 2**63 for value in values):
        return torch.tensor(values, dtype=torch.int64)
    return None


def _leaf(value: Any) -> Any:
    if isinstance(value, torch.nn.Parameter):
        return value.detach()
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        if array.dtype.kind in "biufc" and array.dtype.itemsize <= 16 and array.dtype.isnative:
            try:
                return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
            except TypeError:
                pass
        return f"{array.dtype} {array.shape} {array.tobytes().hex()}"
    return value


def compare_trees(expected: Any, found: Any, prefix: str = "") -> tuple[list[LeafDifference], int]:
    """What differs, and how many leaves were compared."""
    ours, theirs = dict(leaves(expected, prefix)), dict(leaves(found, prefix))
    differences = []
    for path in [*ours, *(path for path in theirs if path not in ours)]:
        difference = _compare(path, ours.get(path, _ABSENT), theirs.get(path, _ABSENT))
        if difference is not None:
            differences.append(difference)
    return differences, len(ours)


def _compare(path: str, a: Any, b: Any) -> LeafDifference | None:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.dtype == b.dtype and a.shape == b.shape and torch.equal(as_bytes(a), as_bytes(b)):
            return None
        return _tensor_difference(path, a, b)
    is_tensor = isinstance(a, Tensor) or isinstance(b, Tensor)
    if isinstance(a, float) and isinstance(b, float):
        if a.hex() == b.hex():
            return None
        return _tensor_difference(path, torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64))
    if not is_tensor and type(a) is type(b) and a is not _ABSENT and (a == b or repr(a) == repr(b)):
        return None
    return LeafDifference(path, _component(path, is_tensor=is_tensor), described(a), described(b), is_tensor=is_tensor)


def _tensor_difference(path: str, a: Tensor, b: Tensor) -> LeafDifference:
    is_tensor = a.dim() > 0
    texts = (described(a), described(b)) if is_tensor or a.shape != b.shape else (repr(a.item()), repr(b.item()))
    component = _component(path, is_tensor=is_tensor)
    if a.dtype != b.dtype or a.shape != b.shape or not a.numel():
        return LeafDifference(path, component, *texts, is_tensor=is_tensor)
    sizes = distance(_real(a), _real(b))
    return LeafDifference(
        path,
        component,
        *texts,
        largest_absolute=sizes.absolute,
        largest_relative=sizes.relative,
        largest_ulps=sizes.ulps,
        differing=sizes.differing,
        elements=a.numel(),
        is_tensor=is_tensor,
        scale=sizes.scale,
    )


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def described(value: Any) -> str:
    """A value on one line."""
    if value is _ABSENT:
        return "absent"
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
