"""accelerate as its documentation resumes: ``load_state``, and ``skip_first_batches`` or a stateful loader."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, TorchDynamoPlugin, set_seed
from torch import Tensor

from tests.exactness.cell import Cell
from tests.exactness.ingredients.data import make_loader, make_validation_loader
from tests.exactness.ingredients.networks import NETWORKS, error_of
from tests.exactness.ingredients.optimization import AVERAGES, make_optimizers, make_schedules
from tests.exactness.phase import Phase
from tests.exactness.trace import Trace, by_name, dump

from .peer_trace import PeerTrace
from .progress import newest_checkpoint

SEED = 1
_UNFREEZE_AT_STEP = 8


def why_not(cell: Cell) -> str:
    """Why accelerate has no such scenario; empty if it has."""
    reasons = {
        "a callback of Lightning's": bool(cell.callbacks),
        "a hook of Lightning's": cell.module != "plain",
        "fp16 needs a GPU": cell.precision == "fp16",
        "no such precision": cell.precision not in (None, "fp16", "bf16-mixed"),
        "an option of Lightning's": bool(cell.trainer),
        "a save policy of Lightning's": set(cell.save) - {"save_top_k"} != {"every_n_train_steps"},
        "several loaders": cell.combined is not None,
        "other ways of saving": not cell.loop <= {"unfreezes", "set_epoch"},
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


class _Counters:
    """The position, registered for checkpointing."""

    def __init__(self) -> None:
        self.step, self.epoch, self.batch = 0, 0, 0

    def state_dict(self) -> dict[str, int]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, int]) -> None:
        vars(self).update(state)


class _Loop:
    """The training loop of accelerate's example for checkpointing."""

    def __init__(self, phase: Phase, cell: Cell, trace: PeerTrace, *, stateful: bool, generator: bool) -> None:
        self.phase, self.cell, self.trace, self.stateful = phase, cell, trace, stateful
        self.network = NETWORKS[cell.network]()
        if cell.compile_backend is None:
            trace.watch(self.network)
        if "unfreezes" in cell.loop:
            self.network.first.requires_grad_(False)
        set_seed(SEED)
        plugin = TorchDynamoPlugin(backend=cell.compile_backend.upper()) if cell.compile_backend else None
        self.accelerator = Accelerator(
            cpu=True,
            gradient_accumulation_steps=cell.accumulate,
            mixed_precision="bf16" if cell.precision == "bf16-mixed" else "no",
            dataloader_config=DataLoaderConfiguration(
                use_seedable_sampler=True, data_seed=SEED, use_stateful_dataloader=stateful
            ),
            dynamo_plugin=plugin,
        )
        prepare = self.accelerator.prepare
        self.optimizers = make_optimizers(cell, self.network)
        schedules = list(make_schedules(cell, self.optimizers))
        self.model = prepare(self.network)
        self.prepared = [prepare(optimizer) for optimizer in self.optimizers]
        self.schedules = [(schedule, scheduler, prepare(scheduler)) for schedule, scheduler in schedules]
        options = {**cell.loader_options, **({"generator": torch.Generator().manual_seed(SEED)} if generator else {})}
        self.loader = prepare(make_loader(replace(cell, loader_options=options)))
        self.validation: Any = prepare(make_validation_loader(cell)) if cell.validate else None
        self.average = AVERAGES[cell.average](self.network) if cell.average else None
        self.counters, self.last_validation = _Counters(), 0.0
        registered = [self.counters, *([self.average] if self.average else [])]
        self.accelerator.register_for_checkpointing(*registered)

    @property
    def last_step(self) -> int:
        """Of this process."""
        finishes = self.phase.stop is not None and self.cell.ending in ("finish", "same process")
        return self.phase.stop if finishes and self.phase.stop is not None else self.cell.steps

    def train(self) -> None:
        """From the newest checkpoint, if there is one, to the last step."""
        newest = newest_checkpoint(self.phase.checkpoints)
        if newest is not None:
            self.accelerator.load_state(str(newest))
        count = self.counters
        while count.step < self.last_step:
            self.loader.set_epoch(count.epoch)
            loader = self.loader
            if count.batch > 0 and not self.stateful:
                loader = self.accelerator.skip_first_batches(self.loader, count.batch)
            for batch in loader:
                if count.step == self.phase.stop and self.cell.ending in ("kill", "exception"):
                    self.phase.end(self.cell)
                self._batch(batch)
                if count.step == self.last_step:
                    return
            if count.batch > 0:  # a loader without a length
                count.epoch, count.batch = count.epoch + 1, 0

    def _batch(self, batch: Any) -> None:
        count = self.counters
        if "unfreezes" in self.cell.loop and count.step >= _UNFREEZE_AT_STEP:
            self.network.first.requires_grad_(True)
        count.batch += 1
        with self.accelerator.accumulate(self.model):
            self._forward_and_backward(batch)
            for optimizer in self.prepared:
                self._update(optimizer, batch)
            for schedule, _, prepared in self.schedules:
                if schedule.interval == "step":
                    prepared.step()
        if self.accelerator.sync_gradients:
            count.step += 1
            if self.average is not None:
                self.average.update_parameters(self.network)
        if "stream" not in self.cell.dataset and count.batch == len(self.loader):
            self._end_epoch()
        if self.accelerator.sync_gradients and count.step % self.cell.save["every_n_train_steps"] == 0:
            self._save()

    def _forward_and_backward(self, batch: Any) -> Tensor:
        with self.accelerator.autocast():
            loss = error_of(self.model, batch)
        rates = [group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups]
        self.trace.train(self.counters.step, loss.detach(), rates, batch)
        self.accelerator.backward(loss)
        return loss

    def _update(self, optimizer: Any, batch: Any) -> None:
        if self.cell.optimizer == "LBFGS":

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = error_of(self.model, batch)
                self.accelerator.backward(loss)
                return loss

            optimizer.step(closure)
        else:
            if self.cell.clip is not None and self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.cell.clip)
            optimizer.step()
        optimizer.zero_grad()

    def _end_epoch(self) -> None:
        if self.cell.validate:
            self._validate()
        self.counters.epoch, self.counters.batch = self.counters.epoch + 1, 0
        for schedule, _, prepared in self.schedules:
            if schedule.interval == "epoch" and self.counters.epoch % schedule.frequency == 0:
                prepared.step(*([self.last_validation] if schedule.monitor else []))

    def _validate(self) -> None:
        self.model.eval()
        with torch.no_grad():
            losses = [error_of(self.model, batch) + 0.1 * torch.randn(1)[0] for batch in self.validation]
        self.last_validation = torch.stack(losses).mean().item()
        self.model.train()

    def _save(self) -> None:
        place = self.phase.checkpoints / f"step-{self.counters.step}"
        # safetensors has no place for extra states
        self.accelerator.save_state(str(place), safe_serialization="buffers" not in self.cell.network)

    def final_state(self) -> dict[str, Any]:
        """Everything that a run can end in, by the objects' own methods."""
        return {
            "counters": self.counters.state_dict(),
            "lr_schedulers": [scheduler.state_dict() for _, scheduler, _ in self.schedules],
            "optimizers": [by_name(optimizer, self.network) for optimizer in self.optimizers],
            "weights and buffers": self.network.state_dict(),
            "trained": {name: parameter.requires_grad for name, parameter in self.network.named_parameters()},
            "averages": [self.average.state_dict()] if self.average else [],
        }


def run(phase: Phase, cell: Cell, trace: Trace, *, stateful: bool = False, generator: bool = False) -> None:
    """Train from the newest checkpoint of the run, if there is one, to the end of the phase."""
    phase.seed()  # other weights in each process
    loop = _Loop(phase, cell, PeerTrace(trace), stateful=stateful, generator=generator)
    loop.train()
    if phase.stop is None:
        dump(Path(phase.directory) / f"dump-{phase.rank}.pt", loop.final_state())


# As PyTorch's notes on reproducibility advise: then iterators draw their seeds from a generator of the loader's own.
run_with_generator = partial(run, generator=True)
run_stateful = partial(run, stateful=True)
run_stateful_with_generator = partial(run, stateful=True, generator=True)
