"""``metrics.csv``: one row a step, whatever interrupts the run.

The file holds nothing that depends on the clock, so that an interrupted run and an undisturbed one end with the same
file.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from neuromanifold_gpt.checkpoint.commit import write_file
from neuromanifold_gpt.checkpoint.errors import CheckpointWriteError
from neuromanifold_gpt.checkpoint.naming import TEMPORARY_SUFFIX
from neuromanifold_gpt.checkpoint.storage import LocalStorage, open_regular
from neuromanifold_gpt.training.module import GPTModule

COLUMNS = ("step", "tokens", "learning_rate", "loss", "val_loss")
_MAXIMUM_DIGITS = 18


class StepMetrics(Callback):
    """Appends a row for each step; before a resume, removes the rows behind the checkpoint.

    Rows are gathered in memory, their losses left on the device, and written every ``flush_interval_steps`` and with
    each checkpoint: a checkpoint of step N is not complete before the rows up to N are on disk.

    Args:
        path: of the CSV file.
        tokens_per_step: for the column ``tokens``, the number trained on so far.
        flush_interval_steps: how many rows to gather.
    """

    def __init__(self, path: Path, *, tokens_per_step: int, flush_interval_steps: int) -> None:
        self._path = path
        self._tokens_per_step = tokens_per_step
        self._flush_interval_steps = flush_interval_steps
        self._rows: list[dict[str, Any]] = []
        self._micro_batch_losses: list[Tensor] = []
        self._learning_rate = 0.0
        self.has_begun = False  # everything that a checkpoint holds has been restored by then

    def start_at(self, step: int) -> None:
        """Keep the rows up to ``step``, which is 0 for a new run.

        Raises:
            CheckpointWriteError: the file cannot be written.
        """
        with _write_errors(self._path):
            kept = _rows_up_to(step, self._path)
            if len(kept) < step:
                print(f"{self._path}: {step - len(kept)} rows up to step {step} are not there.")
            # Durable before it replaces what is there: those rows stand nowhere else.
            storage, temporary = LocalStorage(), self._path.with_name(self._path.name + TEMPORARY_SUFFIX)
            content = "".join(f"{line}\n" for line in (",".join(COLUMNS), *kept)).encode()
            try:
                write_file(temporary, content, storage)
                storage.rename(temporary, self._path)
            except OSError:
                storage.remove(temporary)
                raise
            storage.sync_directory(self._path.parent)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first step follows."""
        self.has_begun = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the learning rate that the step will use."""
        assert isinstance(pl_module, GPTModule)
        self._learning_rate = pl_module.learning_rate

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Gather the loss; make a row when the micro-batches of a step are complete."""
        self._micro_batch_losses.append(outputs["loss"].detach())
        if trainer.fit_loop._should_accumulate():
            return
        if len(self._rows) >= self._flush_interval_steps:
            with contextlib.suppress(OSError):  # a full disk: the next save says so, and these rows are tried again
                self._flush()
        # Lightning has divided each loss by the number of micro-batches of a whole window.
        loss = torch.stack(self._micro_batch_losses).sum()
        self._micro_batch_losses.clear()
        step = trainer.global_step
        self._rows.append(
            {
                "step": step,
                "tokens": step * self._tokens_per_step,
                "learning_rate": self._learning_rate,
                "loss": loss,
                "val_loss": "",
            }
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the validation loss to the step's row."""
        if self._rows and not trainer.sanity_checking:
            self._rows[-1]["val_loss"] = trainer.callback_metrics["val_loss"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """The rows must be on disk before the checkpoint that they lead to.

        Raises:
            CheckpointWriteError: they cannot be written.
        """
        with _write_errors(self._path):
            self._flush(durable=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lightning calls no teardown then."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write what is left."""
        with contextlib.suppress(OSError):  # the rows behind the last checkpoint, which a resume writes again
            self._flush()

    def _flush(self, *, durable: bool = False) -> None:
        """Append the gathered rows. Where that fails they stay in memory, and the file stays without half of one."""
        content = io.StringIO()
        writer = csv.DictWriter(content, COLUMNS, lineterminator="\n")
        for row in self._rows:
            writer.writerow(
                {key: repr(value.item()) if isinstance(value, Tensor) else value for key, value in row.items()}
            )
        with self._path.open("ab", buffering=0) as file:
            size_bytes = file.tell()
            rest = memoryview(content.getvalue().encode())
            try:
                while rest:
                    rest = rest[file.write(rest) :]
                if durable:
                    os.fsync(file.fileno())
            except OSError:
                file.truncate(size_bytes)
                raise
        self._rows = []


def _rows_up_to(step: int, path: Path) -> list[str]:
    """The rows that follow one another up to ``step``; what a crash or a damaged disk made of the file is left out."""
    if not os.path.lexists(path):
        return []
    with open_regular(path, follow_links=True) as file:
        lines = file.read().decode(errors="replace").split("\n")[1:-1]  # a last line without an end is half a row
    rows: dict[int, str] = {}
    for line in lines:
        number = line.split(",", 1)[0]
        plain = number.isascii() and number.isdigit() and len(number) <= _MAXIMUM_DIGITS and line.isprintable()
        if plain and line.count(",") == len(COLUMNS) - 1:
            rows[int(number)] = line  # of two rows of a step, the later one counts
    return [rows[number] for number in sorted(rows) if 1 <= number <= step]


@contextlib.contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointWriteError(
            f"{path}: {error.strerror}. Free space or make it writable; older checkpoints are untouched."
        ) from error
