"""The GPT as Lightning trains it."""

from __future__ import annotations

from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from neuromanifold_gpt.gpt.model import GPT, GPTConfig
from neuromanifold_gpt.training.schedule import learning_rate_factor

Batch = tuple[Tensor, Tensor]  # token ids and next-token targets, each int64 (batch, time)


class GPTModule(LightningModule):
    """Language-model training of a :class:`GPT`.

    Args:
        model: fields of :class:`GPTConfig`.
        training: ``TrainConfig.trajectory()``, and what else tells runs apart, such as the digest of the corpus.
            Both are kept as hyper-parameters in the model file, so that ``GPTModule.load_from_checkpoint(path)``
            needs nothing else.
    """

    def __init__(self, model: dict[str, Any], training: dict[str, Any]) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.training_config = training
        self.gpt = GPT(GPTConfig(**model))
        if training["compile"]:
            self.gpt = cast(GPT, torch.compile(self.gpt))
        factor_settings = ("learning_rate", "min_lr", "warmup_iters", "lr_decay_iters")
        self._learning_rate_factor = learning_rate_factor(**{key: training[key] for key in factor_settings})

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean cross entropy of the next token, in nats."""
        return self.gpt(*batch)[1]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log ``val_loss``, the mean over the batches."""
        self.log("val_loss", self.gpt(*batch)[1], batch_size=len(batch[0]))

    def configure_optimizers(self) -> Any:
        """AdamW, weight decay on matrices only, and the schedule by step."""
        training = self.training_config
        optimizer = torch.optim.AdamW(
            self.gpt.optimizer_parameter_groups(training["weight_decay"]),
            lr=training["learning_rate"],
            betas=(training["beta1"], training["beta2"]),
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Let the settings of this run hold, where they differ from those of the checkpoint.

        Restored optimizers and schedulers bring their old settings along, which would silently win. With unchanged
        settings this computes the very numbers that are there.
        """
        training = self.training_config
        scheduler = cast(torch.optim.lr_scheduler.LambdaLR, self.lr_schedulers())
        groups = scheduler.optimizer.param_groups
        fresh_groups = self.gpt.optimizer_parameter_groups(training["weight_decay"])
        scheduler.base_lrs = [training["learning_rate"]] * len(groups)
        for group, fresh in zip(groups, fresh_groups, strict=True):
            group["initial_lr"] = training["learning_rate"]
            group["lr"] = training["learning_rate"] * self._learning_rate_factor(scheduler.last_epoch)
            group["betas"] = (training["beta1"], training["beta2"])
            group["weight_decay"] = fresh["weight_decay"]
        scheduler._last_lr = [group["lr"] for group in groups]

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return float(cast(torch.optim.lr_scheduler.LambdaLR, self.lr_schedulers()).get_last_lr()[0])
