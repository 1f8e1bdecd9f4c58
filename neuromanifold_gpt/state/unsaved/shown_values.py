"""A short text that shows whether a value has changed: of numbers what they are, of tensors, containers and objects a
digest. It is made in the middle of training, of whatever users' objects hold, so it costs little and never fails.
"""

from __future__ import annotations

import array
import io
import types
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from decimal import Decimal
from fractions import Fraction
from itertools import islice
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor, nn
from torch.jit._script import RecursiveScriptModule

from neuromanifold_gpt.state.inspection.drawing_caches import CACHE, times_drawn
from neuromanifold_gpt.state.inspection.flat_values import spaced
from neuromanifold_gpt.state.inspection.plain_reading import attribute_dict, values_in
from neuromanifold_gpt.state.inspection.shared_values import array_in, is_shared_number, number_in
from neuromanifold_gpt.state.inspection.users_objects import (
    attributes_of,
    is_a_time,
    is_of_users_class,
    loader_of_pass,
)
from neuromanifold_gpt.state.metrics import is_beside_state, metric_state, metrics_of
from neuromanifold_gpt.state.module_values import OF_EVERY_MODULE
from neuromanifold_gpt.state.unsaved.layers import settings_of_layers
from neuromanifold_gpt.state.unsaved.shown_code import NONE, code_in, code_of, is_plain_layer, with_code

RESULT = "a result with its graph"
NUMBERS = (bool, int, float)
_HOLDS_DEPTH = 3
_LOOKED_AT_ITEMS = (100, 10, 10, 10, 10)  # of a container or object, of one in it, and so on; deeper, its length
_LOOKED_AT_IN_ALL = 10_000
_LOOKED_AT_OF_SETS = 1000  # of larger ones the length: they have no order of which a part could be taken
_LOOKED_AT_ELEMENTS = 1 << 16  # of a tensor or array
_LOOKED_AT_ELEMENTS_WITHIN = 1 << 10  # of one in a list or dict, where larger ones than the above are passed over


def shown_value(
    value: Any,
    kept: Collection[int] = (),
    *,
    is_setting: bool = False,
    is_data: bool = False,
    is_carried: bool = False,
    names_code: bool = False,
    items: int = _LOOKED_AT_IN_ALL,
) -> str | None:
    """What shows whether a value has changed.

    Args:
        value: whatever an attribute holds.
        kept: addresses of memory, and identities of objects, that a checkpoint has.
        items: that are looked at, at most, in all containers and objects within it.
        is_setting: texts and users' objects are passed over: from one run to another, they differ as settings do.
        is_data: of larger tensors and arrays fewer elements are looked at: they may lie in a mapped file.
        is_carried: tensors that belong to a graph, and parameters, are looked at too: the next step needs them.
        names_code: functions, classes and the like, see ``shown_code.py``, and whether it is ``None``, count too.

    Returns:
        ``None`` of what is no number, text, tensor, array, or container or object with such; of an empty dict, as
        tables are before they are filled; and of what is kept. :data:`RESULT` of tensors that belong to a graph.
    """
    try:
        if names_code and value is None:
            return NONE
        return _Look(kept, is_setting, is_data, is_carried, names_code, items).at(value, 0)
    except Exception:  # noqa: BLE001 - tensors of other libraries, what a thread changes: no look is worth a run
        return None


def holds_tensors(value: Any, but: Collection[int] | None = None) -> bool:
    """Whether it is a tensor or array of several numbers, or a file in memory, or holds one.

    Args:
        value: whatever a variable holds.
        but: identities of what does not count; parameters count too then, else none does.
    """
    try:
        return _holds_tensors(value, but, 0)
    except Exception:  # noqa: BLE001 - as for shown_value
        return False


def _holds_tensors(value: Any, but: Collection[int] | None, depth: int) -> bool:
    kind = type(value)
    if issubclass(kind, nn.Parameter) if but is None else id(value) in but:
        return False
    if issubclass(kind, Tensor):
        return value.numel() > 1
    if issubclass(kind, np.ndarray):
        return value.size > 1
    if issubclass(kind, io.BytesIO):
        return True
    few = islice(_parts(value), _LOOKED_AT_ITEMS[depth])
    return depth < _HOLDS_DEPTH and any(_holds_tensors(part, but, depth + 1) for part in few)


def shown_tensors(value: Any) -> list[str]:
    """What is shown of each tensor and array that it is, or holds; of the first hundred in each container."""
    return [*_shown_tensors(value, 0)]


def _shown_tensors(value: Any, depth: int) -> Iterator[str]:
    kind = type(value)
    if issubclass(kind, Tensor | np.ndarray):
        yield shown_value(_as_array(value), is_carried=True) or ""
    elif depth < len(_LOOKED_AT_ITEMS):  # the state of an optimizer in that of one around it
        for part in islice(_parts(value), _LOOKED_AT_ITEMS[depth]):
            yield from _shown_tensors(part, depth + 1)


def _as_array(value: Any) -> Any:
    """Of a tensor the array with its memory, as a ``state_dict`` may give one for the other; else the value."""
    try:
        return value.detach().numpy() if issubclass(type(value), Tensor) else value
    except (TypeError, RuntimeError):  # what arrays do not have, such as an accelerator's memory
        return value


def _parts(value: Any) -> Iterator[Any]:
    if issubclass(type(value), dict | list | tuple | deque):
        return values_in(value)
    return iter((attributes_of(value) or {}).values())


def kept_by(module: nn.Module) -> set[int]:
    """Addresses of the memory of parameters and buffers, and identities of its parts."""
    return memory_of((*module.parameters(), *module.buffers())) | {id(part) for part in module.modules()}


class _Look:
    def __init__(
        self, kept: Collection[int], is_setting: bool, is_data: bool, is_carried: bool, names_code: bool, items: int
    ) -> None:
        self._kept, self._left, self._names_code = kept, items, names_code
        self._is_setting, self._is_data, self._is_carried = is_setting, is_data, is_carried

    def at(self, value: Any, depth: int) -> str | None:
        kind = type(value)  # isinstance() would ask proxies
        if issubclass(kind, np.generic):
            value, kind = value.item(), type(value.item())
        if issubclass(kind, NUMBERS):
            is_short = issubclass(kind, float) or abs(value) < 1 << 64
            return repr(value) if is_short else _text_digest(hash(value))
        if issubclass(kind, complex | Fraction | Decimal):
            return repr(value)
        if issubclass(kind, Tensor):
            is_passed_over = isinstance(value, nn.Parameter) and (not self._is_carried or id(value) in self._kept)
            if is_passed_over or _address(value) in self._kept:
                return None
            if value.requires_grad and not (value.is_leaf or self._is_carried):
                return RESULT
            return _tensor_digest(value, depth, self._elements(value.numel(), depth))
        if issubclass(kind, np.ndarray):
            return _array_digest(value, depth, self._elements(value.size, depth))
        if issubclass(kind, np.random.SeedSequence):
            return str(value.n_children_spawned)
        if issubclass(kind, io.BytesIO):  # the best weights, say, of which the first bytes tell little
            whole = b"" if value.closed else value.getvalue()
            return f"{len(whole)} {xxhash.xxh3_64_hexdigest(whole)}"
        if issubclass(kind, io.StringIO):
            value, kind = "" if value.closed else value.getvalue(), str
        if issubclass(kind, str | bytes | bytearray):
            return None if self._is_setting else f"{len(value)} {_text_digest(value[:_LOOKED_AT_ELEMENTS])}"
        if issubclass(kind, array.array):
            return f"{len(value)} {_text_digest(value[:_LOOKED_AT_ELEMENTS])}"
        if issubclass(kind, dict):
            few = islice(dict.keys(value), _LOOKED_AT_ITEMS[0])
            keys = [str(key) for key in few if isinstance(key, str | int | float)]
            return self._at_items(value, values_in(value), depth, keys)
        if issubclass(kind, set | frozenset):
            if len(value) > _LOOKED_AT_OF_SETS:
                return str(len(value))
            texts = sorted(text for item in value if (text := self.at(item, len(_LOOKED_AT_ITEMS))) is not None)
            return f"{len(value)} {_text_digest(texts)}" if texts or not value else None
        if issubclass(kind, list | tuple | deque):
            return self._at_items(value, values_in(value), depth)
        if is_shared_number(value):
            return None if id(value) in self._kept else self.at(number_in(value), depth)
        if (shared := array_in(value)) is not None:
            return self.at(shared, depth)
        if issubclass(kind, CACHE):
            return None if (times := times_drawn(value)) is None else str(times)
        shown = self._at_object(value, depth)
        return self._with_code(value, shown) if self._names_code else shown

    def _with_code(self, value: Any, shown: str | None) -> str | None:
        if is_plain_layer(value):
            return with_code(code_of(value) or "", None)
        if id(value) in self._kept:  # of layers in a list, which; what they are is looked at where they are
            return str(id(value)) if issubclass(type(value), nn.Module) else shown
        code = code_of(value, self._kept)
        if code is not None and issubclass(type(value), types.MethodType) and id(value.__self__) in self._kept:
            return with_code(code, None)
        return shown if code is None else with_code(f"{code} {code_in(shown)}", shown)

    def _elements(self, size: int, depth: int) -> int:
        """How many of a tensor or array are looked at."""
        few = depth > 0 or (self._is_data and size > _LOOKED_AT_ELEMENTS)
        return _LOOKED_AT_ELEMENTS_WITHIN if few else _LOOKED_AT_ELEMENTS

    def _at_object(self, value: Any, depth: int) -> str | None:
        if id(value) in self._kept:
            return None
        if (loader := loader_of_pass(value)) is not None:
            return None if id(loader) in self._kept else f"{loader.epoch} {loader.batches_consumed}"
        if issubclass(type(value), nn.Module):  # that is no part of the one that is saved: an average, a teacher
            tensors = [tensor.detach() for tensor in (*value.parameters(), *value.buffers())]
            metrics = [metric for metric in metrics_of(value).values() if id(metric) not in self._kept]
            shown = [_settings_of_module(value), *map(metric_state, metrics), *tensors]
            return self._at_items(shown, shown, depth)
        if self._left <= 0:
            return ""  # before its attributes are gathered
        attributes = None if self._is_setting else attributes_of(value)
        return self._at_items(attributes, attributes.values(), depth) if attributes else None

    def _at_items(
        self, container: Collection[Any], values: Iterable[Any], depth: int, keys: Collection[str] = ()
    ) -> str | None:
        if depth >= len(_LOOKED_AT_ITEMS) or self._left <= 0:
            return str(len(container))
        items = list(islice(values, _LOOKED_AT_ITEMS[depth]))
        self._left -= len(items)
        shown = [self.at(item, depth + 1) for item in items]
        is_passed_over = isinstance(container, dict) if not items else not any(shown)
        text = f"{len(container)} {_text_digest([shown, keys])}"
        code = [name for name in map(code_in, shown) if name]
        return None if is_passed_over else with_code(_text_digest(code), text) if code else text


def _settings_of_module(module: nn.Module) -> int:
    """A number that shows those of torch's layers, and numbers in attributes; tensors there may be results."""
    users_parts = [part for part in module.modules() if is_of_users_class(part)]
    plain = [thing for part in users_parts for thing in plain_attributes(part).values()]
    numbers = [thing for thing in plain if type(thing) in NUMBERS]
    return int(_text_digest([settings_of_layers(module), numbers]), 16)


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """What a module has beside what every module has, and times."""
    attributes = vars(module).copy()  # threads may change them
    if isinstance(module, RecursiveScriptModule):  # has its own elsewhere
        attributes.update((name, module._c.getattr(name)) for name in module._concrete_type.get_attributes())
    return {
        name: value
        for name, value in attributes.items()
        if name not in OF_EVERY_MODULE and not is_a_time(name, value) and is_beside_state(module, name)
    }


def memory_in(things: Iterable[Any]) -> set[int]:
    """Addresses of the memory of tensors that are attributes of some objects."""
    return memory_of(value for thing in things for value in (attribute_dict(thing) or {}).values())


def memory_of(values: Iterable[Any]) -> set[int]:
    """Addresses of the memory of those that are tensors."""
    return {address for value in values if isinstance(value, Tensor) and (address := _address(value))}


def _address(tensor: Tensor) -> int:
    """0 where there is none."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError, ValueError):  # sparse, or of another library
        return 0


def _tensor_digest(tensor: Tensor, depth: int, elements: int) -> str:
    kind = [str(tensor.dtype), tuple(tensor.shape)]
    plain = tensor.layout is torch.strided and tensor.device.type != "meta" and not tensor.is_quantized
    if not plain or tensor.numel() == 0 or (depth and tensor.numel() > _LOOKED_AT_ELEMENTS):
        return _text_digest(kind)
    some = tensor.detach()[spaced(tensor.shape, tensor.stride(), elements)]
    data = some.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8)
    return _text_digest([kind, xxhash.xxh3_64_hexdigest(data.numpy().tobytes())])


def _array_digest(array: np.ndarray[Any, Any], depth: int, elements: int) -> str | None:
    if array.dtype.kind not in "biufcV" or array.dtype.hasobject or isinstance(array, np.memmap):
        return None
    kind = [str(array.dtype), array.shape]
    if depth and array.size > _LOOKED_AT_ELEMENTS:
        return _text_digest(kind)
    some = array[spaced(array.shape, array.strides, elements)]
    return _text_digest([kind, xxhash.xxh3_64_hexdigest(some.tobytes())])


def _text_digest(shown: Any) -> str:
    return xxhash.xxh3_64_hexdigest(repr(shown).encode())
