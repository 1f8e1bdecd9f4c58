"""The last step is saved, whatever the schedule says."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from neuromanifold_gpt.lightning_io.stop_signals import save_now


class SaveLastStep(Callback):
    """Saves the step at which training ends, while signals are still noted rather than obeyed."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, unless the schedule has; a save that fails is an error here."""
        for saver in trainer.checkpoint_callbacks:
            if isinstance(saver, ModelCheckpoint):
                save_now(trainer, saver)
