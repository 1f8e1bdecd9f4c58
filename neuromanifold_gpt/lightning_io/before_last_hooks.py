"""What the hooks change that Lightning calls when it leaves the loop in the middle of an epoch.

Where ``max_steps``, ``max_time`` or ``should_stop`` ends a fit, it calls those of the epoch's end, and of training's
end, before saves that are decided there are made. A run that goes on would not have called them yet, so what is small
is saved as it was before them; whether they change what is large, a sum tells.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.trainer.call import _call_callbacks_state_dict
from torch import Tensor, nn

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.lightning_io.latest_metrics import latest_metrics
from neuromanifold_gpt.lightning_io.save_hooks import shown_of_save_hooks
from neuromanifold_gpt.lightning_io.tensor_sums import others_than, persistent_buffers, sums_of
from neuromanifold_gpt.state.modules import listed, module_modes, parameter_names

_COPIED_BYTES = 2**26  # of buffers, the smallest first


class BeforeLastHooks:
    """Taken where the state is whole and the loop is about to be left.

    Attributes:
        metrics: see :func:`latest_metrics`.
        modes: see :func:`module_modes`.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.metrics = latest_metrics(trainer)
        self.modes = module_modes(trainer.lightning_module)
        self._callbacks = copy.deepcopy(_call_callbacks_state_dict(trainer))
        self._data_module = copy.deepcopy(_state_of_data_module(trainer))
        self._extra_states = {key: copy.deepcopy(part.get_extra_state()) for key, part in _with_extra_state(trainer)}
        self._by_save_hooks = shown_of_save_hooks(trainer)
        self._schedulers = copy.deepcopy([config.scheduler.state_dict() for config in trainer.lr_scheduler_configs])
        self._groups = [list(map(_settings, optimizer.param_groups)) for optimizer in trainer.optimizers]
        self._sums = sums_of(_parts(trainer))
        self._buffers: dict[str, Tensor] = {}
        room_bytes = _COPIED_BYTES
        for name, buffer in sorted(persistent_buffers(trainer.lightning_module), key=lambda item: item[1].nbytes):
            room_bytes -= buffer.nbytes
            if room_bytes >= 0 and name in self._sums:
                self._buffers[name] = buffer.detach().clone()

    def put_into(self, trainer: Trainer, checkpoint: dict[str, Any]) -> list[str]:
        """Let a checkpoint of now have what was there.

        Buffers and extra states stay if weights have changed as well: they may belong to these.

        Returns:
            why a resume from it is not exact.

        Warns:
            InexactResumeWarning: says the same.
        """
        # Those that decide about checkpoints name this very one; the others are as they were.
        savers = {callback.state_key for callback in trainer.checkpoint_callbacks}
        for key in checkpoint["callbacks"].keys() - savers:
            checkpoint["callbacks"][key] = self._callbacks.get(key, checkpoint["callbacks"][key])
        checkpoint.update(self._data_module)
        if len(self._schedulers) == len(checkpoint["lr_schedulers"]):
            checkpoint["lr_schedulers"] = self._schedulers
        for state, groups in zip(checkpoint["optimizer_states"], self._groups, strict=True):
            for group, settings in zip(state.get("param_groups", ()), groups, strict=False):
                group.update(settings)
        changed = others_than(self._sums, sums_of(_parts(trainer)))
        by_hooks = others_than(self._by_save_hooks, shown_of_save_hooks(trainer))
        if by_hooks or not {*changed} <= self._buffers.keys():
            return [_said([*changed, *by_hooks])]
        there = {**{name: self._buffers[name] for name in changed}, **self._extra_states}
        state = checkpoint["state_dict"]
        state.update((key, value) for key, value in there.items() if key in state)
        return []


def _said(changed: list[str]) -> str:
    reason = (
        "hooks that were called since training ended here (on_train_epoch_end, on_train_end) have changed what a run "
        f"that goes on would not have changed: {listed(changed)}"
    )
    warn_user(
        f"a resume from this save cannot be exact: {reason}. Save by steps (every_n_train_steps), which comes before "
        "these hooks, or let training end at the end of an epoch.",
        InexactResumeWarning,
    )
    return reason


def _state_of_data_module(trainer: Trainer) -> dict[str, Any]:
    """As a checkpoint has it."""
    data: LightningDataModule | None = trainer.datamodule  # type: ignore[attr-defined]
    return {type(data).__qualname__: state} if data is not None and (state := data.state_dict()) else {}


def _with_extra_state(trainer: Trainer) -> Iterator[tuple[str, nn.Module]]:
    for name, part in trainer.lightning_module.named_modules():
        if type(part).get_extra_state is not nn.Module.get_extra_state:
            yield f"{name}._extra_state".lstrip("."), part


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}


def _parts(trainer: Trainer) -> Iterator[tuple[str, Any]]:
    """Parameters and persistent buffers of the module, and the states of optimizers, by name."""
    module = trainer.lightning_module
    yield from module.named_parameters()
    yield from persistent_buffers(module)
    names = parameter_names(module)
    for optimizer in trainer.optimizers:
        for parameter, state in getattr(optimizer, "state", {}).items():
            name = names.get(id(parameter), type(optimizer).__name__)
            if isinstance(state, Mapping):
                yield from ((f"{key} of {name} in the optimizer", value) for key, value in state.items())
