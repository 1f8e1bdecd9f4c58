"""Settings of torch's layers that no tensor shows: the probability of a dropout, the momentum of a norm."""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections import Counter, defaultdict
from typing import Any

import xxhash
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import type_before_parametrizations

from neuromanifold_gpt.state.inspection.plain_reading import bases_of
from neuromanifold_gpt.state.metrics import is_metric
from neuromanifold_gpt.state.unsaved.shown_code import NONE, WITH_TENSORS, class_of_layer, with_code

_IN_PLACE = re.compile(r",? ?inplace=\w+")  # which decides nothing
_DECIDE_NOTHING = {"inplace", "enable_nested_tensor", "mask_check"}  # the last two how an evaluation is computed
_PLAIN = (bool, int, float, str)
_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
KINDS = "which layers there are"


def settings_of_layers(module: nn.Module) -> dict[str, str]:
    """A digest for each class of torch's layers, by texts that name it; nothing where some are still lazy."""
    of_class: dict[str, Counter[str]] = defaultdict(Counter)
    for part in module.modules():
        kind = type_before_parametrizations(part)
        if issubclass(kind, LazyModuleMixin):
            return {}
        if kind.__module__.startswith("torch.nn.modules."):
            of_class[kind.__name__][_settings(part, kind)] += 1
    found = {f"settings of {name}": _digest(sorted(texts.items())) for name, texts in of_class.items()}
    kinds = sorted((name, texts.total()) for name, texts in of_class.items())
    return {**found, KINDS: _digest(kinds)} if found else {}


def layers_by_path(module: nn.Module) -> dict[str, str]:
    """Which layer there is at each path, and the names of those within it that no state dict shows.

    Those that appear or vanish with parameters are noticed when a state dict is loaded.
    """
    found: dict[str, str] = {}
    _add_layers(module, "", found, {})
    return {path[1:] or f"which layers {type(module).__name__} has": shown for path, shown in found.items()}


def _add_layers(layer: nn.Module, path: str, found: dict[str, str], seen: dict[int, tuple[str, bool]]) -> bool:
    """Whether a state dict shows it, or there is nothing to show."""
    children = dict(layer._modules.items())  # of scripted modules it is no dict
    compiled = children.get("_orig_mod")
    if compiled is not None:
        return _add_layers(compiled, path, found, seen)
    if is_metric(layer):
        return True
    if id(layer) not in seen:
        seen[id(layer)] = path, any(map(_has_tensors, layer.modules()))
        within = children.items() if type(layer).get_extra_state is nn.Module.get_extra_state else ()
        names = [name for name, part in within if part is None or not _add_layers(part, f"{path}.{name}", found, seen)]
        found.update((f"{path}.{name}", NONE) for name, part in within if part is None)
        code = f"{class_of_layer(layer)} {names}"
    else:
        code = class_of_layer(layer)
    first_path, has_state = seen[id(layer)]  # a layer may be at several
    found[path] = f"{WITH_TENSORS}{code} {first_path}" if has_state else with_code(code, first_path)
    return has_state or (not children and issubclass(type(layer), _LISTS))


def _has_tensors(layer: nn.Module) -> bool:
    """Or may have, as users' own layers with buffers that are ``None`` until a first batch."""
    registered = [*layer._parameters.values(), *layer._buffers.values()]
    is_of_torch = type_before_parametrizations(layer).__module__.startswith("torch.")
    return any(tensor is not None or not is_of_torch for tensor in registered)


def _settings(layer: nn.Module, kind: type) -> str:
    """As it shows itself, which leaves out some, such as what a loss is given."""
    attributes = vars(layer)
    given = {name: _shown(attributes[name]) for name in _arguments(kind) if name in attributes}
    try:
        text = _IN_PLACE.sub("", layer.extra_repr())
    except Exception:  # noqa: BLE001 - of a layer whose weights were taken out, say
        text = ""
    return f"{text} { {name: shown for name, shown in given.items() if shown is not None} }"


@functools.cache
def _arguments(kind: type) -> tuple[str, ...]:
    """What the constructors of a class of torch's take."""
    constructors = [inspect.signature(base.__init__) for base in bases_of(kind) if base is not object]  # type: ignore[misc]
    return tuple(sorted({name for constructor in constructors for name in constructor.parameters} - _DECIDE_NOTHING))


def _shown(value: Any) -> str | None:
    if type(value) in (types.FunctionType, types.BuiltinFunctionType):  # an activation
        return str(value.__name__)
    if isinstance(value, list | tuple):
        return repr(value) if all(isinstance(item, _PLAIN) for item in value) else None
    return repr(value) if isinstance(value, _PLAIN) else None


def _digest(shown: object) -> str:
    return xxhash.xxh3_64_hexdigest(repr(shown).encode())
