"""A point of the fit loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningModule

from neuromanifold_gpt.lightning_io.before_last_hooks import BeforeLastHooks
from neuromanifold_gpt.state.gradients import capture_gradients


@dataclass(frozen=True)
class LoopState:
    """A point of the loop, with what has to be put back there.

    Attributes:
        point: one of the names in ``boundaries.py``; ``None`` where an exact resume is not possible.
        global_step: number of optimizer steps taken.
        epoch: epoch of the last of them.
        fit_loop: the counters, ``fit_loop.state_dict()``.
        rng: random number generators of this process.
        own_generators: those that the module, callbacks, the data module and users' Python modules own.
        module_values: what else it changes beside its state dict, see :class:`ModuleValues`.
        data: position in the training data, see :class:`DataPosition`.
        validation: what decides the batches of the next validation, see :class:`ValidationPosition`.
        loader_epochs: in which epochs loaders were asked for, and how, see :class:`LoaderEpochs`.
        epoch_metrics: what has been accumulated, see ``epoch_metrics.py``.
        open_window: gradients have been accumulated that no optimizer step has used yet.
        saved_gradients: of the checkpoint that is resumed from, until the next step.
        before_last_hooks: what they may have changed since, where the loop was about to be left.
    """

    point: str | None
    global_step: int
    epoch: int
    fit_loop: dict[str, Any]
    rng: dict[str, Any]
    own_generators: dict[str, Any]
    module_values: dict[str, Any]
    data: dict[str, Any]
    validation: dict[str, Any]
    loader_epochs: dict[str, dict[str, Any]]
    epoch_metrics: dict[str, Any]
    open_window: bool = False
    saved_gradients: dict[str, Any] | None = None
    before_last_hooks: BeforeLastHooks | None = None

    def gradients(self, module: LightningModule) -> dict[str, Any]:
        """Those that wait for a step, and the names of those that stay behind one: zeroed, they are not ``None``.

        With manual optimization, some optimizers may wait while others step. A step that is taken again makes its own.
        """
        if self.saved_gradients is not None:
            return self.saved_gradients
        may_wait = not module.automatic_optimization and self.point is not None
        return capture_gradients(module, all_of_them=self.open_window, none_of_them=not (self.open_window or may_wait))
