"""Settings of torch's layers that no tensor shows: the probability of a dropout, the momentum of a norm."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import xxhash
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import type_before_parametrizations

from neuromanifold_gpt.state.metrics import is_metric

_IN_PLACE = re.compile(r",? ?inplace=\w+")  # which decides nothing
KINDS = "which layers there are"


def settings_of_layers(module: nn.Module) -> dict[str, str]:
    """A digest for each class of torch's layers, by texts that name it; nothing where some are still lazy."""
    of_class: dict[str, Counter[str]] = defaultdict(Counter)
    for part in module.modules():
        kind = type_before_parametrizations(part)
        if isinstance(part, LazyModuleMixin):
            return {}
        if kind.__module__.startswith("torch.nn.modules.") and not is_metric(part):
            of_class[kind.__name__][_settings(part)] += 1
    found = {f"settings of {name}": _digest(sorted(texts.items())) for name, texts in of_class.items()}
    kinds = sorted((name, texts.total()) for name, texts in of_class.items())
    return {**found, KINDS: _digest(kinds)} if found else {}


def _settings(layer: nn.Module) -> str:
    try:
        return _IN_PLACE.sub("", layer.extra_repr())
    except Exception:  # noqa: BLE001 - of a layer whose weights were taken out, say
        return ""


def _digest(shown: object) -> str:
    return xxhash.xxh3_64_hexdigest(repr(shown).encode())
