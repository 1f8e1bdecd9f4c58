"""What metrics of torchmetrics have accumulated. It is in no state dict, unless they are told so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.state.modules import listed

_BESIDE_STATE = ("_num_vals_seen", "min_val", "max_val")  # of ``Running`` and ``MinMaxMetric``


def is_metric(part: Any) -> bool:
    """Whether it is one of torchmetrics, or a collection. By name: this package trains without it as well."""
    if not isinstance(part, nn.Module):
        return False
    return any(base.__module__.startswith("torchmetrics.") for base in type_before_parametrizations(part).__mro__)


def is_beside_state(part: nn.Module, name: str) -> bool:
    """Whether an attribute is none of those in which a metric accumulates, or that torchmetrics itself changes."""
    states: Any = getattr(part, "_defaults", ())  # collections have none
    return not is_metric(part) or not (name.startswith("_") or name in (*states, *_BESIDE_STATE))


def metrics_of(module: nn.Module, further: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The metrics that are part of a module, or the module itself, by name; and those of further objects by name."""
    parts = dict(module.named_modules())
    for key, thing in (further or {}).items():
        if isinstance(thing, nn.Module):
            parts.update((f"{key}: {name}", part) for name, part in thing.named_modules())
    return {name: part for name, part in parts.items() if is_metric(part) and hasattr(part, "_defaults")}


def metric_states(metrics: dict[str, Any]) -> dict[str, Any]:
    """As plain values and tensors, of those that have been updated since they were reset, by name."""
    return {name: metric_state(metric) for name, metric in metrics.items() if _may_be_updated(metric)}


def metric_state(metric: Any) -> dict[str, Any]:
    """What a metric has accumulated, and the number of updates."""
    values = {name: _copied(getattr(metric, name)) for name in metric._defaults}
    beside = {name: _copied(vars(metric)[name]) for name in _BESIDE_STATE if name in vars(metric)}
    return {"values": values, "beside": beside, "updates": metric._update_count}


def load_metric_states(metrics: dict[str, Any], states: dict[str, Any]) -> None:
    """Put back :func:`metric_states`: the others have just been reset.

    Warns:
        InexactResumeWarning: there is none of a name; some are made while training goes on.
    """
    for name, metric in metrics.items():
        if name in states:
            load_metric_state(metric, states[name])
        elif metric._update_count > 0:
            metric.reset()
    missing = sorted(states.keys() - metrics.keys())
    if missing:
        warn_user(
            f"the checkpoint has metrics that nobody has here, so they begin again: {listed(missing)}. Make them "
            "before training begins.",
            InexactResumeWarning,
        )


def load_metric_state(metric: Any, state: dict[str, Any]) -> None:
    """Put back :func:`metric_state`."""
    for name, value in {**state["values"], **state["beside"]}.items():
        setattr(metric, name, value.to(metric.device, copy=True) if isinstance(value, Tensor) else _copied(value))
    metric._update_count, metric._computed = state["updates"], None


def _may_be_updated(metric: Any) -> bool:
    """Some that wrap others do not count their updates."""
    return metric._update_count > 0 or not vars(metric).keys().isdisjoint(_BESIDE_STATE)


def _copied(value: Any) -> Any:
    """Tensors may be added to in place; lists only grow."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    return list(value) if isinstance(value, list) else value
