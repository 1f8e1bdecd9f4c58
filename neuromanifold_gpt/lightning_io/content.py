"""What of Lightning's checkpoint dict belongs to the model file, and what to the optimizer file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.pytorch.plugins.precision import Precision

from neuromanifold_gpt.state.modules import clean_state

# Added by ``ExactResume``: random number generators of every rank, monitored metrics, the point of the loop.
RESUME_KEY = "exact_resume"

_OPTIMIZER_KEYS = frozenset(
    {"optimizer_states", "lr_schedulers", "loops", "callbacks", "native_amp_scaling_state", RESUME_KEY}
)


def is_trainer_checkpoint(checkpoint: Any) -> bool:
    """Whether this is what ``Trainer.save_checkpoint`` dumps: the spawn launcher sends bare state dicts too."""
    return isinstance(checkpoint, dict) and "state_dict" in checkpoint and "pytorch-lightning_version" in checkpoint


def split(checkpoint: dict[str, Any], *, clean_names: bool) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Divide Lightning's dict into the content of the model file and of the optimizer file.

    The optimizer's content is ``None`` if Lightning was asked for weights only. Keys that nobody here knows, such as
    those that ``on_save_checkpoint`` adds, stay with the model. ``clean_names`` takes ``_orig_mod.`` out of the
    state dict.
    """
    ours = _OPTIMIZER_KEYS | set(_precision_state_keys())
    model = {key: value for key, value in checkpoint.items() if key not in ours}
    if clean_names:
        model["state_dict"] = clean_state(model["state_dict"])
    if "optimizer_states" not in checkpoint:
        return model, None
    return model, {key: value for key, value in checkpoint.items() if key in ours}


def _precision_state_keys() -> Iterator[str]:
    """Lightning stores a precision plugin's state under the qualified name of its class."""
    pending = [Precision]
    while pending:
        kind = pending.pop()
        yield kind.__qualname__
        pending.extend(kind.__subclasses__())
