"""Metrics that are being accumulated over a training epoch: ``self.log(..., on_epoch=True)`` and torchmetrics.

Lightning saves neither, so a mean over an epoch that was interrupted would be one over its rest; and with it what a
scheduler, ``EarlyStopping`` or ``ModelCheckpoint`` decides.

These are internals of Lightning 2.6 (``trainer/connectors/logger_connector/result.py``).
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from torch import Tensor
from torchmetrics import Metric

_REDUCTIONS: dict[str, Any] = {
    "mean": torch.mean,
    "sum": torch.sum,
    "max": torch.max,
    "min": torch.min,
    "builtins.sum": sum,
    "builtins.max": max,
    "builtins.min": min,
}
_PLAIN_FIELDS = (
    "fx",
    "name",
    "prog_bar",
    "logger",
    "on_step",
    "on_epoch",
    "enable_graph",
    "add_dataloader_idx",
    "dataloader_idx",
    "metric_attribute",
)


def metrics_of(module: LightningModule) -> dict[str, Metric]:
    """The torchmetrics that are part of a module, by name."""
    return {name: child for name, child in module.named_modules() if isinstance(child, Metric)}


def capture_epoch_metrics(trainer: Trainer, metrics: dict[str, Metric]) -> dict[str, Any]:
    """What has been accumulated in this epoch by this rank; ``metrics`` as :func:`metrics_of` returns them."""
    results = trainer.fit_loop.epoch_loop._results
    return {
        "logged": {key: _logged_state(result) for key, result in results.items() if not result.has_reset},
        "metrics": {name: _metric_state(metric) for name, metric in metrics.items() if metric._update_count > 0},
    }


def restore_epoch_metrics(trainer: Trainer, state: dict[str, Any]) -> None:
    """Go on accumulating; call it where the next step of the epoch begins."""
    module = trainer.lightning_module
    metrics = metrics_of(module)
    for name, saved in state["metrics"].items():
        if name in metrics:
            _set_values(metrics[name], saved["values"])
            metrics[name]._update_count = saved["updates"]
    results = trainer.fit_loop.epoch_loop._results
    for key, saved in state["logged"].items():
        result = _ResultMetric(_metadata(trainer, saved["meta"]), saved["is_tensor"])
        if not saved["is_tensor"]:
            if saved["meta"]["metric_attribute"] not in metrics:
                continue
            result.value = metrics[saved["meta"]["metric_attribute"]]
        _set_values(result, saved["state"])
        result._update_count = 1  # else Lightning would say that it was never updated
        result._forward_cache = saved["last"]
        results[key] = result.to(module.device)
    if state["logged"]:
        trainer._logger_connector._first_loop_iter = True  # the first batch of the epoch, which resets, is behind us


def _logged_state(result: _ResultMetric) -> dict[str, Any]:
    meta = result.meta
    reduction = next((name for name, function in _REDUCTIONS.items() if function is meta.reduce_fx), "mean")
    return {
        "meta": {
            **{name: getattr(meta, name) for name in _PLAIN_FIELDS},
            "reduce_fx": reduction,
            "sync": [meta.sync.should, meta.sync.rank_zero_only, meta.sync.op],
        },
        "is_tensor": result.is_tensor,
        "state": _metric_state(result)["values"],
        "last": result._forward_cache,
    }


def _metadata(trainer: Trainer, saved: dict[str, Any]) -> _Metadata:
    meta = _Metadata(**{name: saved[name] for name in _PLAIN_FIELDS}, reduce_fx=_REDUCTIONS[saved["reduce_fx"]])
    should, rank_zero_only, op = saved["sync"]
    meta.sync = _Sync(fn=trainer.strategy.reduce, _should=should, rank_zero_only=rank_zero_only, _op=op)
    return meta


def _metric_state(metric: Metric) -> dict[str, Any]:
    values = {}
    for name in metric._defaults:
        value = getattr(metric, name)
        # Tensors may be added to in place; lists only grow.
        values[name] = value.detach().clone() if isinstance(value, Tensor) else list(value)
    return {"values": values, "updates": metric._update_count}


def _set_values(metric: Metric, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(metric, name, value.to(metric.device) if isinstance(value, Tensor) else list(value))
    metric._computed = None
