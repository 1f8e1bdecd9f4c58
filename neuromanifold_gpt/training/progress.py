"""What a user sees while the model trains."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

from neuromanifold_gpt.training.module import GPTModule


class StepProgress(Callback):
    """A bar over all steps with loss, learning rate and tokens/s; plain lines where the output is not a terminal.

    The same numbers go to the trainer's loggers (TensorBoard).

    Args:
        max_iters: last step.
        tokens_per_step: for tokens/s.
        interval_steps: how often numbers are shown: reading a loss from an accelerator waits for it.
    """

    def __init__(self, *, max_iters: int, tokens_per_step: int, interval_steps: int) -> None:
        self._max_iters = max_iters
        self._tokens_per_step = tokens_per_step
        self._interval_steps = interval_steps
        self._bar: tqdm[Any] | None = None
        self._shown_step = 0
        self._shown_at_sec = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar at the step resumed from."""
        if sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns:
            self._bar = tqdm(total=self._max_iters, initial=trainer.global_step, unit="step", dynamic_ncols=True)
        self._shown_step, self._shown_at_sec = trainer.global_step, time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show a step."""
        step = trainer.global_step
        if trainer.fit_loop._should_accumulate():
            return
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
        if step % self._interval_steps and step != self._max_iters:
            return
        now_sec = time.perf_counter()
        assert isinstance(pl_module, GPTModule)
        metrics = {
            "loss": outputs["loss"].item() * trainer.accumulate_grad_batches,
            "learning_rate": pl_module.learning_rate,
            "tokens_per_sec": (step - self._shown_step) * self._tokens_per_step / (now_sec - self._shown_at_sec),
        }
        self._shown_step, self._shown_at_sec = step, now_sec
        self._show(step, metrics)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the validation loss."""
        if trainer.sanity_checking:
            return
        loss = trainer.callback_metrics["val_loss"].item()
        self._say(f"step {trainer.global_step}: validation loss {loss:.4f}")
        for logger in trainer.loggers:
            logger.log_metrics({"val_loss": loss}, step=trainer.global_step)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lightning calls no teardown then."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show(self, step: int, metrics: dict[str, float]) -> None:
        loss, learning_rate, tokens_per_sec = metrics.values()
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}, lr {learning_rate:.2e}, {tokens_per_sec:,.0f} tokens/s")
        else:
            self._say(
                f"step {step}/{self._max_iters}: loss {loss:.4f}, learning rate {learning_rate:.2e}, "
                f"{tokens_per_sec:,.0f} tokens/s"
            )

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line)
        else:
            print(line, flush=True)
