"""A plain training loop, as a user writes it; everything in it is told by the cell."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from neuromanifold_gpt import latest_checkpoint, load_checkpoint, save_checkpoint

from .cell import Cell
from .ingredients.data import make_loader, make_validation_loader
from .ingredients.networks import NETWORKS, error_of
from .ingredients.optimization import AVERAGES, make_optimizers, make_schedules
from .phase import Phase
from .trace import Trace, by_name, dump

_UNFREEZE_AT_STEP = 8


class Loop:
    """The objects of a training, and its steps."""

    def __init__(self, phase: Phase, cell: Cell, trace: Trace) -> None:
        self.phase, self.cell, self.trace = phase, cell, trace
        self.network: nn.Module = NETWORKS[cell.network]()
        if "lazy" in cell.network:
            self.network(torch.zeros(2, 8), torch.zeros(2))
        if {"unfreezes", "unfreezes once"} & cell.loop:
            self.network.first.requires_grad_(False)
        self.optimizers = make_optimizers(cell, self.network)
        self.schedules = list(make_schedules(cell, self.optimizers))
        self.loader = make_loader(cell)
        self.validation = make_validation_loader(cell)
        self.average = AVERAGES[cell.average](self.network) if cell.average else None
        scale = 2.0**40 if "overflows" in cell.loop else 2.0**14
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=5)
        self.scaler = scaler if cell.precision == "fp16" else None
        self.forward: nn.Module = self.network
        if cell.compile_backend is not None:
            self.forward = self.network = torch.compile(self.network, backend=cell.compile_backend)
        if cell.ranks > 1:
            self.forward = self.network = DistributedDataParallel(self.network)
        self.fabric = Fabric(accelerator="cpu", devices=1) if "fabric" in cell.loop else None
        self.batches_from: Any = self.loader
        if self.fabric is not None:
            self.forward, self.batches_from = (
                self.fabric.setup_module(self.network),
                self.fabric.setup_dataloaders(self.loader),
            )
        self.step, self.epoch, self.batches = 0, 0, 0
        self.metrics = {"val_loss": 0.0}

    # ----------------------------------------------------------------------------- save and restore

    @property
    def parts(self) -> dict[str, Any]:
        """What is saved and restored."""
        stateful = {"scaler": self.scaler, "average": self.average, "counters": self}
        return {
            "model": self.network,
            "optimizers": self.optimizers,
            "schedulers": [scheduler for _, scheduler in self.schedules],
            "loaders": [*self.loader] if isinstance(self.loader, list | tuple) else self.loader,
            "stateful": {name: part for name, part in stateful.items() if part is not None},
        }

    def state_dict(self) -> dict[str, Any]:
        """The user's own counters."""
        return {"epoch": self.epoch, "batches": self.batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them."""
        self.epoch, self.batches = state["epoch"], state["batches"]

    def save(self) -> None:
        """At the step, as a user does."""
        every = self.cell.save["every_n_train_steps"]
        if self.phase.saves and (self.step % every == 0 or self.step == self.last_step):
            save_checkpoint(self.phase.checkpoints, step=self.step, epoch=self.epoch, **self.parts)

    def restore(self) -> None:
        """From the newest checkpoint."""
        newest = latest_checkpoint(self.phase.checkpoints) if self.phase.saves else None
        if newest is not None:
            loaded = load_checkpoint(newest)
            self.step = loaded.restore(**self.parts, strict=self.cell.strict).global_step

    # ----------------------------------------------------------------------------- training

    @property
    def last_step(self) -> int:
        """Of this process."""
        finishes = self.cell.ending in ("finish", "same process") and self.phase.stop is not None
        return self.phase.stop if finishes else self.cell.steps  # type: ignore[return-value]

    @property
    def _is_ended_here(self) -> bool:
        return (
            self.cell.ending in ("kill", "kill at any moment", "exception") and "saves in windows" not in self.cell.loop
        )

    def train(self) -> None:
        """Pass after pass over the loader, until the last step."""
        while self.step < self.last_step:
            if "set_epoch" in self.cell.loop:
                self.loader.set_epoch(self.epoch)
            ended = True
            for batch in self._batches():
                if self.step == self.phase.stop and self._is_ended_here:
                    self.phase.end(self.cell)
                self._batch(batch)
                if self.step == self.last_step:
                    ended = False
                    break
            if ended and "saves after epochs" in self.cell.loop:
                self.epoch += 1
                self.save()
            if ended and "ends epochs behind the pass" in self.cell.loop:
                self._end_epoch()

    def _batches(self) -> Iterator[Any]:
        """One pass, in the ways in which users write it."""
        if "calls next" in self.cell.loop:
            iterator = iter(self.loader)
            with suppress(StopIteration):
                while True:
                    yield next(iterator)
            return
        if "leaves passes early" in self.cell.loop:
            yield from islice(self.loader, 5 - self.batches % 5)
            return
        if isinstance(self.loader, list):
            yield from zip(*self.loader, strict=False)
        else:
            yield from self.batches_from

    def _batch(self, batch: Any) -> None:
        self.batches += 1
        ends_epoch = self._ends_epoch()
        if "evaluates on the loader" in self.cell.loop and self.step % 4 == 1:
            for other in islice(self.loader, 2):
                self.metrics["seen"] = error_of(self.network, other).item()
        self._unfreeze()
        self._forward_and_backward(batch)
        if self.batches % self.cell.accumulate and not ends_epoch:
            self._in_window()
            return
        self._update(batch)
        if ends_epoch:
            self._end_epoch()
        if "saves after epochs" not in self.cell.loop:
            self.save()

    def _in_window(self) -> None:
        """Some users save by batches, whatever they accumulate."""
        if "saves in windows" in self.cell.loop and self.phase.saves and self.batches % self.cell.accumulate == 2:
            save_checkpoint(self.phase.checkpoints, step=self.step, epoch=self.epoch, **self.parts)
            if self.step == self.phase.stop:
                self.phase.end(self.cell)

    def _ends_epoch(self) -> bool:
        if {"saves after epochs", "ends epochs behind the pass"} & self.cell.loop or "stream" in self.cell.dataset:
            return False
        length = min(map(len, self.loader)) if isinstance(self.loader, list) else len(self.loader)
        return self.batches % length == 0

    def _loss(self, batch: Any) -> Tensor:
        types = {"fp16": torch.float16, "bf16-mixed": torch.bfloat16}
        precision = self.cell.precision
        context = torch.autocast("cpu", types[precision]) if precision in types else nullcontext()
        with context:
            loss = error_of(self.forward, batch) / self.cell.accumulate
        if "draws everything" in self.cell.loop:
            loss = loss * (1 + 0.01 * (random.gauss(0, 1) + np.random.randn() + torch.randn(1)[0]))
        return loss

    def _forward_and_backward(self, batch: Any) -> Tensor:
        loss = self._loss(batch)
        rates = [group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups]
        self.metrics["train_loss"] = loss.item()
        self.trace.train(self.step, loss.detach(), rates, batch)
        if self.fabric is not None:
            self.fabric.backward(loss)
        else:
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        return loss

    def _update(self, batch: Any) -> None:
        for optimizer in self.optimizers:
            self._update_with(optimizer, batch)
        if self.scaler is not None:
            self.scaler.update()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.step += 1
        if self.average is not None:
            self.average.update_parameters(self.network)
        for schedule, scheduler in self.schedules:
            if schedule.interval == "step" and self.step % schedule.frequency == 0:
                self._step_schedule(schedule, scheduler)

    def _unfreeze(self) -> None:
        due = "unfreezes" in self.cell.loop and self.step >= _UNFREEZE_AT_STEP
        if due or ("unfreezes once" in self.cell.loop and self.step == _UNFREEZE_AT_STEP):
            self.network.first.requires_grad_(True)

    def _update_with(self, optimizer: torch.optim.Optimizer, batch: Any) -> None:
        if isinstance(optimizer, torch.optim.LBFGS):

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = self._loss(batch)
                loss.backward()
                return loss

            optimizer.step(closure)
            return
        if self.cell.clip is not None:
            if self.scaler is not None:
                self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.cell.clip)
        if self.scaler is not None:
            self.scaler.step(optimizer)
        else:
            optimizer.step()

    def _step_schedule(self, schedule: Any, scheduler: Any) -> None:
        if schedule.monitor is None:
            scheduler.step()
        else:
            scheduler.step(self.metrics[schedule.monitor])

    def _end_epoch(self) -> None:
        if self.cell.validate:
            self._validate()
        self.epoch += 1
        for schedule, scheduler in self.schedules:
            if schedule.interval == "epoch" and self.epoch % schedule.frequency == 0:
                self._step_schedule(schedule, scheduler)

    def _validate(self) -> None:
        self.network.eval()
        losses = []
        with torch.no_grad():
            for batch in self.validation:
                losses.append(error_of(self.network, batch) + 0.1 * torch.randn(1)[0])
                self.trace.validation(self.step, losses[-1], batch)
        self.metrics["val_loss"] = torch.stack(losses).mean().item()
        self.network.train()

    def final_state(self) -> dict[str, Any]:
        """Everything that a run can end in, by the objects' own methods."""
        network = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        return {
            "counters": {"step": self.step, **self.state_dict()},
            "lr_schedulers": [scheduler.state_dict() for _, scheduler in self.schedules],
            "optimizers": [by_name(optimizer, network) for optimizer in self.optimizers],
            "weights and buffers": network.state_dict(),
            "trained": {name: parameter.requires_grad for name, parameter in network.named_parameters()},
            "averages": [self.average.state_dict()] if self.average else [],
            "scaler": self.scaler.state_dict() if self.scaler else {},
        }


def run(phase: Phase, cell: Cell, trace: Trace) -> None:
    """Train from the newest checkpoint of the run, if there is one, to the end of the phase."""
    phase.seed()
    if cell.ranks > 1:
        torch.distributed.init_process_group("gloo")
    loop = Loop(phase, cell, trace)
    loop.restore()
    loop.train()
    if phase.stop is None:
        dump(Path(phase.directory) / f"dump-{phase.rank}.pt", loop.final_state())
