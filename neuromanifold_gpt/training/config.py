"""The flags of ``train.py``, one typed dataclass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from neuromanifold_gpt.checkpoint.retention import Retention
from neuromanifold_gpt.gpt.model import GPTConfig
from neuromanifold_gpt.training.errors import ConfigError
from neuromanifold_gpt.training.schedule import learning_rate_factor

# What the network is made of: it cannot differ from the checkpoint. ``dropout`` can, and is among the rest.
_SHAPE_FIELDS = ("block_size", "n_layer", "n_head", "n_embd", "bias")
# What decides the trajectory: kept in the model file, and said where it differs on resume.
_TRAJECTORY_FIELDS = (
    "dropout",
    "batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "min_lr",
    "warmup_iters",
    "lr_decay_iters",
    "weight_decay",
    "beta1",
    "beta2",
    "grad_clip",
    "seed",
    "dtype",
    "compile",
)
_RETENTION_FIELDS = ("keep_last", "keep_best", "keep_every_n_steps", "keep_optimizer_last")
_MAY_BE_ZERO = frozenset(
    {"num_workers", "dropout", "warmup_iters", "min_lr", "weight_decay", "beta1", "beta2", "grad_clip"}
    | {"eval_interval", "sample_tokens"}
)


@dataclass(kw_only=True)
class TrainConfig:
    """Train a GPT on text. Started again with the same --out_dir, it continues where it stopped."""

    out_dir: str = "out"
    """Where checkpoints, metrics.csv and TensorBoard logs go. A checkpoint found there is resumed from."""

    save_separate_optimizer: bool = True
    """Write a model file and an optimizer file per checkpoint; False writes unified Lightning .ckpt files."""
    save_model_only: bool = False
    """Write model files only. Such checkpoints cannot be resumed from."""
    save_interval: int = 100
    """Save every so many steps, and after the last one."""
    keep_last: int | None = None
    """Remove checkpoints but the newest so many. Without this and the next two, all stay."""
    keep_best: int | None = None
    """Keep so many with the lowest validation loss as well, and the newest; remove the others."""
    keep_every_n_steps: int | None = None
    """Keep those whose step is a multiple as well, and the newest; remove the others."""
    keep_optimizer_last: int | None = None
    """Only the newest so many checkpoints keep their optimizer file; older ones become model-only."""
    on_save_error: Literal["raise", "warn"] = "raise"
    """If a periodic save fails (a full disk): 'raise' ends the run, 'warn' trains on and tries the next save. The last
    save must succeed in any case."""
    stop_deadline_sec: float | None = None
    """After SIGINT, SIGTERM or SIGUSR1, end without saving (exit code 4) if the step is not finished and saved in so
    many seconds; None waits for as long as it takes."""

    dataset: str = "stdlib"
    """'stdlib' (the source of Python's standard library), a text file, a folder of text, or a folder with nanoGPT's
    train.bin and val.bin."""
    vocab_size: int | None = None
    """Number of tokens, for a nanoGPT folder without meta.json; byte-level text has 256."""
    num_workers: int = 0
    """Processes that read data; any number gives the same batches."""

    block_size: int = 128
    """Tokens of context."""
    n_layer: int = 4
    """Transformer blocks."""
    n_head: int = 4
    """Attention heads per block."""
    n_embd: int = 128
    """Width; divisible by n_head."""
    dropout: float = 0.1
    """Probability of dropping an activation while training."""
    bias: bool = False
    """Biases in linear layers and layer norms."""

    batch_size: int = 16
    """Sequences per micro-batch."""
    gradient_accumulation_steps: int = 1
    """Micro-batches per step."""
    max_iters: int = 500
    """Train up to this step, counted from the very beginning."""
    learning_rate: float = 1e-3
    """Learning rate after the warm-up."""
    warmup_iters: int = 10
    """Steps over which the learning rate rises linearly."""
    lr_decay_iters: int | None = None
    """Step at which a cosine decay reaches min_lr; None keeps the learning rate constant."""
    min_lr: float = 1e-4
    """Learning rate at the end of the decay."""
    weight_decay: float = 0.1
    """AdamW weight decay of matrices; vectors have none."""
    beta1: float = 0.9
    """AdamW decay of the first moment."""
    beta2: float = 0.99
    """AdamW decay of the second moment."""
    grad_clip: float = 1.0
    """Clip gradients to this norm; 0 switches it off."""

    eval_interval: int = 100
    """Measure the validation loss every so many steps; 0 switches it off."""
    eval_iters: int = 20
    """Batches per measurement."""
    log_interval: int = 10
    """Show, and write out, metrics every so many steps. metrics.csv has a row for each step in any case."""
    sample_tokens: int = 256
    """Length of the text sampled at the end; 0 switches it off."""

    seed: int = 1337
    """Of the initial weights, the order of the data and dropout."""
    device: str = "auto"
    """'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the computation; weights stay float32."""
    compile: bool = False
    """Compile the model with torch.compile."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "seed" or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            may_be_zero = field.name in _MAY_BE_ZERO
            if value < 0 or (value == 0 and not may_be_zero):
                raise ConfigError(
                    f"--{field.name}: expected {'0 or more' if may_be_zero else 'more than 0'}, found {value}."
                )
        if not self.out_dir:
            raise ConfigError("--out_dir: expected a directory, found an empty name.")
        if self.lr_decay_iters is not None and self.lr_decay_iters <= self.warmup_iters:
            raise ConfigError(
                f"--lr_decay_iters: expected more than the {self.warmup_iters} warmup_iters, found "
                f"{self.lr_decay_iters}."
            )
        if self.save_model_only and not self.save_separate_optimizer:
            raise ConfigError(
                "--save_model_only=True writes separated model files: it cannot go with "
                "--save_separate_optimizer=False."
            )
        if self.keep_best and not self.eval_interval:
            raise ConfigError("--keep_best goes by the validation loss: it cannot go with --eval_interval=0.")
        if self.retention() is not None and not self.save_separate_optimizer:
            raise ConfigError(
                "--keep_last, --keep_best, --keep_every_n_steps and --keep_optimizer_last are about separated "
                "checkpoints: they cannot go with --save_separate_optimizer=False."
            )
        if self.on_save_error == "warn" and not self.save_separate_optimizer:
            raise ConfigError(
                "--on_save_error=warn is about separated checkpoints: it cannot go with "
                "--save_separate_optimizer=False, whose saves end the run when they fail."
            )
        self.model_config(256)  # checks the network's fields

    def retention(self) -> Retention | None:
        """Which checkpoints stay; ``None`` for all."""
        rules = {name: getattr(self, name) for name in _RETENTION_FIELDS}
        if not any(rules.values()):
            return None
        return Retention(monitor="val_loss" if self.keep_best else None, **rules)

    def model_config(self, vocab_size: int) -> GPTConfig:
        """The network for a vocabulary of ``vocab_size`` tokens."""
        shape = {name: getattr(self, name) for name in _SHAPE_FIELDS}
        return GPTConfig(vocab_size=vocab_size, dropout=self.dropout, **shape)

    def learning_rate_factor(self) -> Callable[[int], float]:
        """Factor on ``learning_rate`` by number of steps taken."""
        return learning_rate_factor(
            learning_rate=self.learning_rate,
            min_lr=self.min_lr,
            warmup_iters=self.warmup_iters,
            lr_decay_iters=self.lr_decay_iters,
        )

    def trajectory(self) -> dict[str, Any]:
        """The settings that decide what is computed, step by step."""
        return {name: getattr(self, name) for name in _TRAJECTORY_FIELDS}

    def shape(self, vocab_size: int) -> dict[str, Any]:
        """The settings that decide the shapes of the weights."""
        model = asdict(self.model_config(vocab_size))
        del model["dropout"]
        return model

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one step trains on."""
        return self.batch_size * self.block_size * self.gradient_accumulation_steps
