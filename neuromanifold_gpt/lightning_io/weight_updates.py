"""Whether an optimizer has changed the weights of the module that is trained, counted by Lightning or not."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.optim.optimizer import register_optimizer_step_post_hook

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.checkpoint.user_warnings import warn_user


class WeightUpdates:
    """Follows all optimizers of this process, also those that others wrap, until :meth:`end`.

    Attributes:
        seen: whether there has been one since this was last set to ``False``.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.seen = self._is_said = False
        self._parameters = {id(parameter) for parameter in trainer.lightning_module.parameters()}
        self._optimizers = {id(optimizer) for optimizer in trainer.optimizers}
        self._is_by_hand = not trainer.lightning_module.automatic_optimization
        own = weakref.ref(self)

        def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            if not torch.compiler.is_compiling() and (updates := own()) is not None:
                updates.seen = updates.seen or updates._is_of_module(optimizer)

        self._hook = register_optimizer_step_post_hook(note)
        weakref.finalize(self, self._hook.remove)

    def _is_of_module(self, optimizer: torch.optim.Optimizer) -> bool:
        first = next((parameter for group in optimizer.param_groups for parameter in group["params"]), None)
        return id(first) in self._parameters or id(optimizer) in self._optimizers

    def end(self) -> None:
        """Leave the optimizers alone."""
        self._hook.remove()

    def warn_if_not_counted(self, steps: int) -> None:
        """Say, once, where there was one by hand though ``global_step`` has not moved: nothing is saved then.

        Args:
            steps: that Lightning has counted meanwhile.

        Warns:
            InexactResumeWarning: there was.
        """
        if self.seen and steps == 0 and self._is_by_hand and not self._is_said:
            self._is_said = True
            warn_user(
                "an optimizer has changed the weights, and trainer.global_step has not moved: checkpoints are saved by "
                "that number, so of this training none is, not even where a signal ends it. Step what "
                "self.optimizers() gives, with step(); of an optimizer with two kinds of step (SAM) the last one.",
                InexactResumeWarning,
            )
