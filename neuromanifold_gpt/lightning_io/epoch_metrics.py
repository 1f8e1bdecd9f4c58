"""Metrics that are being accumulated over a training epoch: ``self.log(..., on_epoch=True)`` and torchmetrics.

Lightning saves neither, so a mean over an epoch that was interrupted would be one over its rest; and with it what a
scheduler, ``EarlyStopping`` or ``ModelCheckpoint`` decides.

These are internals of Lightning 2.6 (``trainer/connectors/logger_connector/result.py``).
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from torchmetrics import Metric

from neuromanifold_gpt.state.metrics import load_metric_state, load_metric_states, metric_state, metric_states

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


def capture_epoch_metrics(
    trainer: Trainer, metrics: dict[str, Metric], *, epoch_is_over: bool = False
) -> dict[str, Any]:
    """What has been accumulated by this rank.

    Args:
        trainer: whose ``self.log`` it is.
        metrics: by name; those of the module by the names that it has for them.
        epoch_is_over: without what Lightning will reset now that the epoch is over.
    """
    logged = {key: result for key, result in trainer.fit_loop.epoch_loop._results.items() if not result.has_reset}
    left_out = {result.meta.metric_attribute for result in logged.values()} if epoch_is_over else set()
    return {
        "logged": {} if epoch_is_over else {key: _logged_state(result) for key, result in logged.items()},
        "metrics": metric_states({name: metric for name, metric in metrics.items() if name not in left_out}),
    }


def restore_epoch_metrics(trainer: Trainer, metrics: dict[str, Metric], state: dict[str, Any]) -> None:
    """Go on accumulating; ``metrics`` as for :func:`capture_epoch_metrics`."""
    load_metric_states(metrics, state["metrics"])
    results = trainer.fit_loop.epoch_loop._results
    for key, saved in state["logged"].items():
        result = _ResultMetric(_metadata(trainer, saved["meta"]), saved["is_tensor"])
        if not saved["is_tensor"]:
            if saved["meta"]["metric_attribute"] not in metrics:
                continue
            result.value = metrics[saved["meta"]["metric_attribute"]]
        # Without updates, Lightning would say that there were none; it does not count them by epoch.
        load_metric_state(result, {"values": saved["values"], "beside": {}, "updates": 1})
        result._forward_cache = saved["last"]
        results[key] = result.to(trainer.lightning_module.device)
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
        "values": metric_state(result)["values"],
        "last": result._forward_cache,
    }


def _metadata(trainer: Trainer, saved: dict[str, Any]) -> _Metadata:
    meta = _Metadata(**{name: saved[name] for name in _PLAIN_FIELDS}, reduce_fx=_REDUCTIONS[saved["reduce_fx"]])
    should, rank_zero_only, op = saved["sync"]
    meta.sync = _Sync(fn=trainer.strategy.reduce, _should=should, rank_zero_only=rank_zero_only, _op=op)
    return meta
