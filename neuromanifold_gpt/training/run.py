"""One training run: data, model, trainer, resume, the end."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import Subset

from neuromanifold_gpt.checkpoint.errors import CheckpointWriteError, InexactResumeWarning
from neuromanifold_gpt.checkpoint.lock import lock_directory
from neuromanifold_gpt.checkpoint.naming import step_name
from neuromanifold_gpt.checkpoint.retention import enforce
from neuromanifold_gpt.checkpoint.storage import LocalStorage, make_directory
from neuromanifold_gpt.data.blocks import TokenBlocks
from neuromanifold_gpt.data.corpora import Corpus, open_corpus
from neuromanifold_gpt.data.loader import ResumableDataLoader
from neuromanifold_gpt.lightning_io.callback import SeparatedCheckpoint
from neuromanifold_gpt.lightning_io.exact_resume import ExactResume
from neuromanifold_gpt.lightning_io.stop_signals import StopOnSignal, StoppedBySignal
from neuromanifold_gpt.lightning_io.unified_io import DurableUnifiedIO
from neuromanifold_gpt.state import steps_taken_again
from neuromanifold_gpt.training.config import TrainConfig
from neuromanifold_gpt.training.errors import ConfigError
from neuromanifold_gpt.training.last_step import SaveLastStep
from neuromanifold_gpt.training.metrics_csv import StepMetrics
from neuromanifold_gpt.training.module import GPTModule
from neuromanifold_gpt.training.progress import StepProgress
from neuromanifold_gpt.training.resume import ResumePoint, changed_settings, find_resume_point, restore_errors
from neuromanifold_gpt.training.tensorboard import SpareableTensorBoard

_PRECISION = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


def train(config: TrainConfig) -> int:
    """Train, from the newest checkpoint in ``config.out_dir`` if there is one.

    Returns:
        The exit code: 0 at the end, 128 + the signal's number after SIGINT, SIGTERM or SIGUSR1.

    Raises:
        ConfigError, DatasetError, CheckpointError: bad input; the message says what to do.
        CheckpointLockedError: another process trains in ``config.out_dir``.
    """
    _quiet_lightning()
    _show_steps_taken_again()
    device = _device(config)
    directory = _writable_directory(config.out_dir)
    with lock_directory(directory):  # before metrics.csv and the logs are touched
        try:
            return _train(config, directory, device)
        except OSError as error:
            raise CheckpointWriteError(
                f"{error.filename or directory}: {error.strerror or error}. Free space or make it accessible, then "
                "start again; the checkpoints are untouched."
            ) from error


def _train(config: TrainConfig, directory: Path, device: torch.device) -> int:
    corpus = open_corpus(config.dataset, vocab_size=config.vocab_size)
    model = config.shape(corpus.vocabulary.size)
    training = {**config.trajectory(), "corpus_digest": corpus.digest}
    point = find_resume_point(config)
    start_step = 0 if point is None else point.step
    if point is not None and not _announce(point, config, model, training):
        policy = config.retention()
        if policy is not None:  # the last save may have been killed before this
            enforce(directory, policy, up_to_step=point.step)
        return 0

    seed_everything(config.seed, verbose=False)
    module = GPTModule({**model, "dropout": config.dropout}, training)
    train_loader, validation_loader = _loaders(config, corpus)
    saver = _saver(config, directory)
    metrics = StepMetrics(
        directory / "metrics.csv",
        tokens_per_step=config.tokens_per_step,
        flush_interval_steps=config.log_interval,
    )
    metrics.start_at(start_step)
    stop = StopOnSignal(deadline_sec=config.stop_deadline_sec)
    callbacks = [ExactResume(), stop, metrics, _progress(config), SaveLastStep(), saver]
    trainer = _trainer(config, directory, device, start_step, callbacks)
    try:
        with restore_errors(point, lambda: metrics.has_begun):
            trainer.fit(module, train_loader, validation_loader, ckpt_path=None if point is None else str(point.path))
    except StoppedBySignal as stopped:
        print(
            f"Stopped by {stopped.signal.name} after step {stopped.global_step}, which is saved. Start again with the "
            "same --out_dir to continue."
        )
        return cast(int, stopped.code)
    print(
        f"Finished at step {trainer.global_step}: {directory / (step_name(trainer.global_step) + saver.FILE_EXTENSION)}"
    )
    if stop.received is not None:  # while the last step was saved
        return 128 + stop.received
    if config.sample_tokens:
        _print_sample(config, corpus, module)
    return 0


def _announce(point: ResumePoint, config: TrainConfig, model: dict[str, Any], training: dict[str, Any]) -> bool:
    """Say what is continued, and with which other settings; ``False`` if there is nothing left to do."""
    changes = changed_settings(point, model, training)
    if point.step >= config.max_iters:
        print(
            f"Finished already: {point.path} is at step {point.step}, and --max_iters is {config.max_iters}. Give a "
            "larger --max_iters to train on."
        )
        return False
    learning_rate = config.learning_rate * config.learning_rate_factor()(point.step)
    print(f"Resuming from step {point.step} ({point.path}), learning rate {learning_rate:.2e}")
    for change in changes:
        print(f"  changed: {change}; the run goes on with the new value")
    return True


def _loaders(config: TrainConfig, corpus: Corpus) -> tuple[ResumableDataLoader, ResumableDataLoader | None]:
    train_blocks = TokenBlocks(corpus.train, config.block_size)
    if len(train_blocks) < config.batch_size:
        raise ConfigError(
            f"--batch_size: expected at most {len(train_blocks)}, the blocks of {config.block_size} tokens in "
            f"{corpus.name}, found {config.batch_size}. Give a smaller --batch_size or --block_size, or more text."
        )
    options: dict[str, Any] = {
        "batch_size": config.batch_size,
        "num_workers": config.num_workers,
        "persistent_workers": config.num_workers > 0,
        "seed": config.seed,
        "seed_samples": False,  # text is not augmented
    }
    train_loader = ResumableDataLoader(train_blocks, shuffle=True, drop_last=True, **options)
    if not config.eval_interval:
        return train_loader, None
    blocks = TokenBlocks(corpus.validation, config.block_size)
    wanted = min(config.eval_iters * config.batch_size, len(blocks))
    spread = Subset(blocks, np.linspace(0, len(blocks) - 1, wanted).astype(int).tolist())  # the same blocks each time
    return train_loader, ResumableDataLoader(spread, **options)


def _saver(config: TrainConfig, directory: Path) -> ModelCheckpoint:
    options: dict[str, Any] = {"every_n_train_steps": config.save_interval, "save_top_k": -1}
    if config.save_separate_optimizer:
        return SeparatedCheckpoint(
            directory,
            save_weights_only=config.save_model_only,
            retention=config.retention(),
            on_save_error=config.on_save_error,
            **options,
        )
    # The same names, with Lightning's extension, from Lightning's own callback.
    filename = "checkpoint-step{step:06d}"
    return ModelCheckpoint(directory, filename, auto_insert_metric_name=False, enable_version_counter=False, **options)


def _progress(config: TrainConfig) -> StepProgress:
    return StepProgress(
        max_iters=config.max_iters, tokens_per_step=config.tokens_per_step, interval_steps=config.log_interval
    )


def _trainer(
    config: TrainConfig, directory: Path, device: torch.device, start_step: int, callbacks: list[Any]
) -> Trainer:
    return Trainer(
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=1 if device.index is None else [device.index],
        precision=_PRECISION[config.dtype],  # type: ignore[arg-type]
        deterministic=True,
        max_steps=config.max_iters,
        max_epochs=-1,
        accumulate_grad_batches=config.gradient_accumulation_steps,
        gradient_clip_val=config.grad_clip or None,
        val_check_interval=config.eval_interval * config.gradient_accumulation_steps or None,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        # Rows that a killed run wrote behind the checkpoint are hidden by purge_step.
        logger=SpareableTensorBoard(directory, name="tensorboard", version="", purge_step=start_step + 1),
        callbacks=callbacks,
        plugins=None if config.save_separate_optimizer else [DurableUnifiedIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _print_sample(config: TrainConfig, corpus: Corpus, module: GPTModule) -> None:
    generator = torch.Generator().manual_seed(config.seed)
    start = torch.from_numpy(corpus.validation[:1].astype(np.int64))[None]
    tokens = module.gpt.generate(start, config.sample_tokens, temperature=0.8, top_k=50, generator=generator)[0]
    print(f"{' sample ':-^70}\n{corpus.vocabulary.decode(tokens.tolist())}\n{'-' * 70}")


def _device(config: TrainConfig) -> torch.device:
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f"--device: expected 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps', found {config.device!r}."
        ) from None
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= available.get(device.type, 0):
        there = [kind for kind, count in available.items() if count]
        raise ConfigError(f"--device: {config.device!r} is not on this machine. Use one of {', '.join(there)}.")
    if device.type == "cpu" and config.dtype == "float16":
        raise ConfigError("--dtype: float16 needs an accelerator. Use bfloat16 or float32 on the CPU.")
    return device


def _writable_directory(name: str) -> Path:
    directory = Path(name)
    try:
        make_directory(directory)
        if not directory.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)
        if not os.access(directory, os.W_OK | os.X_OK):  # leaves nothing behind, whenever the process is killed
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
    except OSError as error:
        raise ConfigError(
            f"--out_dir: cannot write to {name}: {error.strerror}. Make it writable, or choose another --out_dir."
        ) from error
    with contextlib.suppress(OSError):  # made by a process that was killed before it could sync the name
        LocalStorage().sync_directory(directory.absolute().parent)
    return directory


def _quiet_lightning() -> None:
    """Lightning's hints speak of settings that are not the user's here."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    # The lines "changed: ..." name them, as far as they matter.
    warnings.filterwarnings("ignore", "settings of the trainer have changed", InexactResumeWarning)
    warnings.filterwarnings("ignore", module=r"lightning\.")


class _Printing(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(f"{self.format(record)}.", flush=True)


def _show_steps_taken_again() -> None:
    if not steps_taken_again.logger.handlers:
        steps_taken_again.logger.setLevel(logging.INFO)
        steps_taken_again.logger.addHandler(_Printing())
