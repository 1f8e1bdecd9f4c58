"""Weights that hooks change between their restore and the next step, where the interrupted run had no hooks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.lightning_io.tensor_sums import persistent_buffers, sums_of
from neuromanifold_gpt.state.modules import listed


def shown_weights(module: LightningModule) -> dict[str, Any]:
    """By name the dtype and the sum of each parameter and persistent buffer."""
    tensors = {**dict(module.named_parameters()), **dict(persistent_buffers(module))}
    return {name: (tensors[name].dtype, found) for name, found in sums_of(tensors.items()).items()}


def warn_of_changed_weights(loaded: Mapping[str, Any], module: LightningModule) -> None:
    """Compare with :func:`shown_weights` of when the checkpoint was loaded; what has another dtype now is passed over.

    Warns:
        InexactResumeWarning: names the tensors that are others.
    """
    now = shown_weights(module)
    same_dtype = {name for name, (dtype, _) in now.items() if name in loaded and loaded[name][0] == dtype}
    changed = sorted(name for name in same_dtype if loaded[name] != now[name])
    if changed:
        warn_user(
            "this resume is not exact: hooks that are called when training begins (on_fit_start, on_train_start) have "
            f"changed what was restored before: {listed(changed)}. Where trainer.ckpt_path is set, leave it as it is.",
            InexactResumeWarning,
        )
