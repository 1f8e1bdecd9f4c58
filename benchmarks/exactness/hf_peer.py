"""HF Trainer as its documentation resumes: the same arguments, and ``train(resume_from_checkpoint=...)``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate
from transformers import (
    EarlyStoppingCallback,
    PreTrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from tests.exactness.cell import BATCHES_PER_EPOCH, Cell
from tests.exactness.ingredients.data import COLLATES, DATASETS, Augmented, make_loader
from tests.exactness.ingredients.networks import NETWORKS, error_of
from tests.exactness.ingredients.optimization import SCHEDULES, make_optimizers, make_schedules
from tests.exactness.phase import Phase
from tests.exactness.trace import Trace, by_name, dump

from .peer_trace import PeerTrace
from .progress import newest_checkpoint

SEED = 1
_STOPPERS = {"EarlyStopping": (3, 10.0), "EarlyStopping, patient": (50, 0.0)}
# What Trainer itself makes a loader for; other orders are injected by overriding get_train_dataloader.
_OWN_ORDERS = ("shuffle", "sequential", "stream")


def why_not(cell: Cell) -> str:
    """Why Trainer has no such scenario; empty if it has."""
    schedule = SCHEDULES[cell.schedule] if cell.schedule else None
    reasons = {
        "one optimizer only": "+" in cell.optimizer,
        "its optimizers take no closure": cell.optimizer == "LBFGS",
        "schedulers step by the step only": schedule is not None
        and ((schedule.interval == "epoch" and schedule.monitor != "val_loss") or schedule.frequency > 1),
        "a callback of Lightning's": not set(cell.callbacks) <= set(_STOPPERS),
        "a hook of Lightning's": cell.module != "plain",
        "needs a loop of one's own": bool(cell.loop),
        "no average of weights": cell.average is not None,
        "fp16 needs a GPU": cell.precision == "fp16",
        "no such precision": cell.precision not in (None, "fp16", "bf16-mixed"),
        "one loader only": cell.combined is not None,
        "an option of Lightning's": not set(cell.trainer) <= {"val_check_interval", "check_val_every_n_epoch"},
        "no evaluation every n epochs": "check_val_every_n_epoch" in cell.trainer,
        "a save policy of Lightning's": not set(cell.save) <= {"every_n_train_steps", "every_n_epochs", "save_top_k"},
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


class _Model(nn.Module):
    """Returns its loss, as Trainer wants it; it is noisy in evaluation, as in the other programs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, y: Tensor, id: Tensor) -> dict[str, Tensor]:
        loss = error_of(self.network, {"x": x, "y": y, "id": id})
        return {"loss": loss if self.training else loss + 0.1 * torch.randn(1)[0]}


class _Config(PreTrainedConfig):
    model_type = "exactness"


class _TiedModel(PreTrainedModel):
    """The same, in transformers' own class, which is how tied weights are declared."""

    config_class = _Config
    _tied_weights_keys: ClassVar[dict[str, str]] = {"network.second.weight": "network.first.weight"}
    forward = _Model.forward

    def __init__(self, network: nn.Module) -> None:
        super().__init__(_Config())
        self.network = network
        self.post_init()


class _TracingTrainer(Trainer):
    """Traces each training batch; a user's own order is injected where the documentation says so."""

    cell: Cell
    trace: Trace

    def get_train_dataloader(self) -> Any:
        if self.cell.sampler in _OWN_ORDERS:
            return super().get_train_dataloader()
        return self.accelerator.prepare(make_loader(self.cell))

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **options: Any) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **options)
        if model.training:
            rates = [group["lr"] for group in self.optimizer.param_groups]
            self.trace.train(self.state.global_step, loss.detach(), rates, inputs)
        return (loss, outputs) if return_outputs else loss


class _Ends(TrainerCallback):
    def __init__(self, phase: Phase, cell: Cell) -> None:
        self._phase, self._cell = phase, cell

    def on_step_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        if state.global_step == self._phase.stop and self._cell.ending in ("kill", "exception"):
            self._phase.end(self._cell)


def run(phase: Phase, cell: Cell, trace: Trace) -> None:
    """Train from the newest checkpoint of the run, if there is one, to the end of the phase."""
    phase.seed()  # other weights in each process
    trace = PeerTrace(trace)
    network = NETWORKS[cell.network]()
    if cell.compile_backend is None:
        trace.watch(network)
    optimizer = make_optimizers(cell, network)[0]
    scheduler = next((s for _, s in make_schedules(cell, [optimizer])), None)
    scheduler = scheduler or torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    callbacks: list[TrainerCallback] = [_Ends(phase, cell)]
    callbacks += [EarlyStoppingCallback(*_STOPPERS[name]) for name in cell.callbacks]
    _TracingTrainer.cell, _TracingTrainer.trace = cell, trace
    dataset = DATASETS[cell.dataset](cell.samples)
    trainer = _TracingTrainer(
        model=_TiedModel(network) if "tied" in cell.network else _Model(network),
        args=_arguments(phase, cell),
        train_dataset=dataset,
        eval_dataset=Augmented(8) if cell.validate else None,
        data_collator=COLLATES[cell.collate](dataset) if cell.collate else default_collate,
        optimizers=(optimizer, scheduler),
        callbacks=callbacks,
    )
    newest = newest_checkpoint(phase.checkpoints)
    trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    if phase.stop is None:
        state = {
            "counters": {"global_step": trainer.state.global_step, "best_metric": trainer.state.best_metric},
            "lr_schedulers": [scheduler.state_dict()],
            "optimizers": [by_name(optimizer, network)],
            "weights and buffers": network.state_dict(),
            "trained": {name: parameter.requires_grad for name, parameter in network.named_parameters()},
        }
        dump(Path(phase.directory) / f"dump-{phase.rank}.pt", state)


def _arguments(phase: Phase, cell: Cell) -> TrainingArguments:
    finishes = phase.stop is not None and cell.ending in ("finish", "same process")
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": cell.save.get("every_n_train_steps")}
    if "every_n_epochs" in cell.save:
        saving = {"save_strategy": "epoch"}
    if cell.validate:
        # By steps, so that an evaluation that is due with a save comes before it.
        every = cell.trainer.get("val_check_interval", BATCHES_PER_EPOCH)
        saving |= {"eval_strategy": "steps", "eval_steps": every, "metric_for_best_model": "loss"}
        saving |= {"greater_is_better": False, "per_device_eval_batch_size": 4}
    if cell.compile_backend is not None:
        saving |= {"torch_compile": True, "torch_compile_backend": cell.compile_backend}
    if cell.workers:
        saving |= {"dataloader_num_workers": cell.workers, "dataloader_persistent_workers": cell.persistent_workers}
        saving |= {"dataloader_prefetch_factor": cell.loader_options.get("prefetch_factor")}
    if cell.sampler == "sequential":
        saving["train_sampling_strategy"] = "sequential"
    return TrainingArguments(
        output_dir=str(phase.checkpoints),
        max_steps=phase.stop if finishes and phase.stop is not None else cell.steps,
        per_device_train_batch_size=cell.batch_size or 1,
        gradient_accumulation_steps=cell.accumulate,
        max_grad_norm=cell.clip or 0.0,
        bf16=cell.precision == "bf16-mixed",
        seed=SEED,
        data_seed=SEED,
        ignore_data_skip=False,
        restore_callback_states_from_checkpoint=True,
        dataloader_drop_last=cell.drop_last,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        label_names=["y"],
        use_cpu=True,
        ddp_backend="gloo" if phase.ranks > 1 else None,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **saving,
    )
