"""Lightning modules by name: what users do in the hooks of theirs."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torchmetrics
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from ..cell import Cell
from ..trace import Trace
from .data import FEATURES
from .networks import NETWORKS, error_of
from .optimization import make_optimizers, make_schedules


class Plain(LightningModule):
    """Trains the network of the cell and traces what it does."""

    # How train_loss is logged.
    logging: ClassVar[dict[str, Any]] = {}

    def __init__(self, cell: Cell, trace: Trace) -> None:
        super().__init__()
        self.network = NETWORKS[cell.network]()
        if cell.compile_backend is not None:
            self.network = torch.compile(self.network, backend=cell.compile_backend)
        self.cell = cell
        self.trace = trace
        self.strict_loading = cell.strict

    def rates(self) -> list[Any]:
        return [group["lr"] for optimizer in self.trainer.optimizers for group in optimizer.param_groups]

    def error(self, batch: Any) -> Tensor:
        return error_of(self.network, batch)

    @torch.compiler.disable
    def record(self, batch: Any, loss: Tensor) -> None:
        self.trace.train(self.trainer.global_step, loss, self.rates(), batch)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        loss = self.error(batch)
        self.log("train_loss", loss, batch_size=4, **self.logging)
        self.record(batch, loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = self.error(batch) + 0.1 * torch.randn(1)[0]
        self.log("val_loss", loss)
        self.record_validation(batch, loss)

    @torch.compiler.disable
    def record_validation(self, batch: Any, loss: Tensor) -> None:
        if not self.trainer.sanity_checking:
            self.trace.validation(self.trainer.global_step, loss, batch)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """As by default; Lightning wants it of modules whose scheduler is not one of torch's."""
        scheduler.step() if metric is None else scheduler.step(metric)

    def configure_optimizers(self) -> Any:
        optimizers = make_optimizers(self.cell, self.network)
        schedules = []
        for schedule, scheduler in make_schedules(self.cell, optimizers):
            config = {"scheduler": scheduler, "interval": schedule.interval, "frequency": schedule.frequency}
            schedules.append({**config, "monitor": schedule.monitor, "strict": False})
        return optimizers, schedules


class LogsMeans(Plain):
    """The mean of the training loss over the epoch."""

    logging: ClassVar[dict[str, Any]] = {"on_step": True, "on_epoch": True}


class Metrics(Plain):
    """Metrics that accumulate over an epoch."""

    def __init__(self, cell: Cell, trace: Trace) -> None:
        super().__init__(cell, trace)
        self.train_mean = torchmetrics.MeanMetric()
        self.val_mean = torchmetrics.MeanMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        loss = super().training_step(batch, batch_idx)
        self.train_mean(loss)
        self.log("train_mean", self.train_mean, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.val_mean(self.error(batch))
        self.log("val_mean", self.val_mean)


class PersistentMetrics(Metrics):
    """Metrics that are part of the state dict."""

    def __init__(self, cell: Cell, trace: Trace) -> None:
        super().__init__(cell, trace)
        self.train_mean.persistent(True)


class KeepsOutputs(Plain):
    """Gathers the losses of an epoch in a list, and logs their mean at its end."""

    def __init__(self, cell: Cell, trace: Trace) -> None:
        super().__init__(cell, trace)
        self.losses: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        loss = super().training_step(batch, batch_idx)
        self.losses.append(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("train_loss_epoch", torch.stack(self.losses).mean())
        self.losses.clear()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["losses"] = list(self.losses)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.losses = list(checkpoint["losses"])


class OwnKeys(Plain):
    """A state of its own in the checkpoint, by Lightning's hooks."""

    def __init__(self, cell: Cell, trace: Trace) -> None:
        super().__init__(cell, trace)
        self.noise = torch.zeros(1)
        self.count = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        self.count += 1
        self.noise = self.noise + torch.rand(1)
        loss = self.error(batch) * (1 + 0.01 * self.noise[0] + 0.001 * self.count)
        self.log("train_loss", loss)
        self.record(batch, loss)
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["noise"], checkpoint["count"] = self.noise, (self.count, {"deep": [1, "two"]})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.noise, self.count = checkpoint["noise"].clone(), checkpoint["count"][0]


class SkipsSteps(Plain):
    """Returns ``None`` for every third batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx % 3 == 1 else loss


class EndsEpochsEarly(Plain):
    """Returns -1 from on_train_batch_start: the rest of the epoch is skipped."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 4 else None


class ClipsItself(Plain):
    """Configures the clipping of gradients."""

    def configure_gradient_clipping(self, optimizer: Any, *arguments: Any, **options: Any) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")


class StepsItsSchedule(Plain):
    """Overrides lr_scheduler_step."""

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step()


class Curriculum(Plain):
    """Sets up each epoch in on_train_epoch_start."""

    def on_train_epoch_start(self) -> None:
        self.network.drop.p = 0.1 * (1 + self.current_epoch)


class FreezesByEpoch(Plain):
    """Unfreezes a layer in on_train_epoch_start."""

    def on_train_epoch_start(self) -> None:
        self.network.first.requires_grad_(self.current_epoch >= 1)


class OwnLoaderIterator(Plain):
    """Takes the iterator rather than batches."""

    def training_step(self, dataloader_iter: Any) -> Tensor:  # type: ignore[override]
        batch, _, _ = next(dataloader_iter)
        loss = self.error(batch)
        self.log("train_loss", loss, batch_size=4)
        self.record(batch, loss)
        return loss


class Tunable(Plain):
    """Has the attribute that LearningRateFinder sets."""

    def __init__(self, cell: Cell, trace: Trace) -> None:
        super().__init__(cell, trace)
        self.lr = 0.01

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class WithBackbone(Plain):
    """A backbone beside the head, for BackboneFinetuning."""

    def __init__(self, cell: Cell, trace: Trace) -> None:
        super().__init__(cell, trace)
        self.backbone = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.BatchNorm1d(FEATURES), nn.ReLU())

    def error(self, batch: Any) -> Tensor:
        return error_of(self.network, {**batch, "x": self.backbone(batch["x"])})


MODULES: dict[str, type[Plain]] = {
    "plain": Plain,
    "logs means": LogsMeans,
    "metrics": Metrics,
    "persistent metrics": PersistentMetrics,
    "keeps outputs": KeepsOutputs,
    "own keys": OwnKeys,
    "skips steps": SkipsSteps,
    "ends epochs early": EndsEpochsEarly,
    "clips itself": ClipsItself,
    "steps its schedule": StepsItsSchedule,
    "curriculum": Curriculum,
    "freezes by epoch": FreezesByEpoch,
    "iterator": OwnLoaderIterator,
    "tunable": Tunable,
    "backbone": WithBackbone,
}
