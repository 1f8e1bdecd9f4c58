"""Frozen parameters and evaluation modes: put back, and a program that freezes otherwise than at the save is told."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch import LightningModule, Trainer

from neuromanifold_gpt.lightning_io.other_callbacks import freezes_by_itself
from neuromanifold_gpt.state.modules import module_modes, restore_modes, warn_of_other_modes

_AT_START = "frozen_at_start"


class FrozenParameters:
    """Follows them from where training begins: what a hook freezes or unfreezes later comes from the checkpoint."""

    def __init__(self) -> None:
        self._at_start: list[str] = []

    def training_begins(self, module: LightningModule) -> None:
        """What is frozen now, the program has frozen."""
        self._at_start = module_modes(module)["frozen"]

    def modes(self, module: LightningModule) -> dict[str, list[str]]:
        """As :func:`module_modes`; and what was frozen when the first process began to train."""
        return {**module_modes(module), _AT_START: self._at_start}

    def restore(self, trainer: Trainer, saved: Mapping[str, list[str]]) -> None:
        """Put back :meth:`modes`.

        Warns:
            InexactResumeWarning: the program had frozen others when training began than that of the save.
        """
        changed = restore_modes(trainer.lightning_module, saved)
        if _AT_START in saved:
            others = {*saved[_AT_START]} ^ {*self._at_start}
            self._at_start = saved[_AT_START]
            changed = [name for name in changed if name in others]
        if not freezes_by_itself(trainer):
            warn_of_other_modes(changed)
