"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners") in plain torch.

Pre-LayerNorm blocks, learned positions, exact GELU, tied head. Parameters have the names and layouts of
nanoGPT, so that its weights load name by name.

Shapes: B batch, T time (T <= block_size), C channels (n_embd), H heads (n_head), V vocabulary (vocab_size).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORED_TARGET = -1  # a target that takes no part in the loss
INIT_STD = 0.02


class GPTConfigError(ValueError):
    """A field of `GPTConfig` has a value that no model can be built from."""


class GPTInputError(ValueError):
    """An argument of `GPT.forward` or `GPT.generate` does not fit the model."""


@dataclass(frozen=True)
class GPTConfig:
    """Size of a `GPT`. The defaults are GPT-2 "small" (124M), its 50257 tokens padded to a multiple of 64.

    Args:
        block_size: longest sequence, in tokens; the number of learned positions.
        vocab_size: number of distinct token ids.
        n_layer: number of transformer blocks.
        n_head: attention heads in each block; divides ``n_embd``.
        n_embd: channels of the residual stream.
        dropout: probability, 0 <= dropout < 1, of dropping an activation or an attention weight in training.
        bias: whether linear layers and LayerNorms have biases, as in GPT-2.

    Raises:
        GPTConfigError: naming the field, the value expected and found, and what to do.
    """

    block_size: int = 1024
    vocab_size: int = 50304
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True

    def __post_init__(self) -> None:
        for field in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd"):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise GPTConfigError(f"{field}: expected an integer >= 1, found {value!r}; set a positive size")
        if self.n_embd % self.n_head:
            raise GPTConfigError(
                f"n_embd: expected a multiple of n_head={self.n_head}, found {self.n_embd}; set "
                f"n_embd={math.ceil(self.n_embd / self.n_head) * self.n_head} or change n_head"
            )
        if not isinstance(self.dropout, (int, float)) or not 0.0 <= self.dropout < 1.0:
            raise GPTConfigError(f"dropout: expected 0 <= dropout < 1, found {self.dropout!r}; 0.0 is none")
        if not isinstance(self.bias, bool):
            raise GPTConfigError(f"bias: expected True or False, found {self.bias!r}; set one of them")


class CausalSelfAttention(nn.Module):
    """Multi-head attention of each position to itself and to earlier ones: (B, T, C) -> (B, T, C)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # queries, keys, values
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Mix information over time; x: (B, T, C)."""
        B, T, C = x.shape  # noqa: N806 - the shape legend of the module
        # (B, T, 3C) -> three of (B, H, T, C/H)
        q, k, v = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)
        dropout_p = self.dropout if self.training else 0.0  # a function: it does not know about eval()
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=True)
        y = y.transpose(1, 2).reshape(B, T, C)  # heads side by side again
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    """Two linear layers with a GELU between, applied to each position alone: (B, T, C) -> (B, T, C)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.gelu = nn.GELU()
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each position; x: (B, T, C)."""
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x))))


class Block(nn.Module):
    """One transformer layer; only what enters a branch is normalised, never the residual stream itself."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """Add attention and then the MLP to the residual stream; x: (B, T, C)."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Embeddings, blocks and the last LayerNorm: token ids (B, T) -> features (B, T, C)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)  # token
        self.wpe = nn.Embedding(config.block_size, config.n_embd)  # position
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Compute the features that the head reads; token_ids: (B, T)."""
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)
        x = self.drop(self.wte(token_ids) + self.wpe(positions))
        for block in self.h:
            x = block(x)
        return self.ln_f(x)


class GPT(nn.Module):
    """A GPT-2 language model over token ids.

    Args:
        config: the size of the model. It is kept as ``model.config``.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight  # one parameter under two names (Press & Wolf 2017)
        self._initialise()

    def _initialise(self) -> None:
        """Initialise as GPT-2 does: normal(0, 0.02), zero biases; LayerNorms stay at torch's one and zero."""
        # Every block adds two branches to the residual stream: this factor keeps depth out of its variance.
        residual_std = INIT_STD / math.sqrt(2 * self.config.n_layer)
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=residual_std if name.endswith(".c_proj") else INIT_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, token_ids: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Predict the next token at each position.

        Args:
            token_ids: (B, T) int64, each in [0, vocab_size).
            targets: (B, T) int64, the token that follows each position; -1 takes no part in the loss.

        Returns:
            With targets, the logits (B, T, V) and the mean cross entropy, a scalar in nats. Without, the
            logits of the last position (B, 1, V) and None: inference needs no others, and the head is costly.

        Raises:
            GPTInputError: the shape of an argument does not fit.
        """
        self._check_shapes(token_ids, targets)
        x = self.transformer(token_ids)
        if targets is None:
            return self.lm_head(x[:, -1:]), None
        logits = self.lm_head(x)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED_TARGET)
        return logits, loss

    def _check_shapes(self, token_ids: Tensor, targets: Tensor | None) -> None:
        if token_ids.ndim != 2 or token_ids.shape[1] == 0:
            raise GPTInputError(
                f"token_ids: expected the shape (B, T) with T >= 1, found {tuple(token_ids.shape)}; add a batch "
                "dimension, or at least one token to start from"
            )
        if token_ids.shape[1] > self.config.block_size:
            raise GPTInputError(
                f"token_ids: expected at most block_size={self.config.block_size} tokens, found "
                f"{token_ids.shape[1]}; crop the sequence, or train a model with a larger block_size"
            )
        if targets is not None and targets.shape != token_ids.shape:
            raise GPTInputError(
                f"targets: expected the shape {tuple(token_ids.shape)} of token_ids, found {tuple(targets.shape)}; "
                "give one target for each token"
            )

    @torch.no_grad()
    def generate(
        self,
        token_ids: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continue each sequence by sampling, one token at a time; dropout is off meanwhile.

        Args:
            token_ids: (B, T) int64 with T >= 1. Any T is allowed: the model sees the last block_size tokens.
            max_new_tokens: how many tokens to append.
            temperature: divides the logits; 0 takes the likeliest token.
            top_k: sample among the k likeliest tokens only; None for all of them.
            generator: randomness, on the device of `token_ids`; with one, the global RNG is not touched.

        Returns:
            (B, T + max_new_tokens) int64: the sequences given and their continuations.

        Raises:
            GPTInputError: an argument is out of its range.
        """
        _check_sampling(max_new_tokens, temperature, top_k)
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            for _ in range(max_new_tokens):
                logits, _ = self(token_ids[:, -self.config.block_size :])
                next_ids = _sample(logits[:, -1], temperature, top_k, generator)
                token_ids = torch.cat((token_ids, next_ids), dim=1)
        finally:
            for module, mode in modes:  # one by one: a user may keep a part of the model in eval mode
                module.training = mode
        return token_ids

    def optimizer_parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Group the trainable parameters, each once: matrices decay, biases and LayerNorms do not.

        Args:
            weight_decay: coefficient of the parameters that have two dimensions or more.

        Returns:
            ``[{"params": [...], "weight_decay": weight_decay}, {"params": [...], "weight_decay": 0.0}]``.
        """
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [
            {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
        ]

    def num_parameters(self, non_embedding: bool = True) -> int:
        """Count the parameters, the tied head once; without the positions if `non_embedding`.

        The token embedding always counts, because it is the head as well.
        """
        total = sum(parameter.numel() for parameter in self.parameters())
        return total - self.transformer.wpe.weight.numel() if non_embedding else total


def _check_sampling(max_new_tokens: int, temperature: float, top_k: int | None) -> None:
    if max_new_tokens < 0:
        raise GPTInputError(f"max_new_tokens: expected 0 or more, found {max_new_tokens}; ask for at least one")
    if not (math.isfinite(temperature) and temperature >= 0.0):
        raise GPTInputError(f"temperature: expected a finite number >= 0, found {temperature}; 0 is greedy")
    if top_k is not None and top_k < 1:
        raise GPTInputError(f"top_k: expected 1 or more, found {top_k}; None samples among all tokens")


def _sample(logits: Tensor, temperature: float, top_k: int | None, rng: torch.Generator | None) -> Tensor:
    """Draw one token id for each row: logits (B, V) -> (B, 1)."""
    if temperature == 0.0:
        return logits.argmax(dim=-1, keepdim=True)
    k = min(top_k or logits.shape[-1], logits.shape[-1])
    likeliest, candidates = logits.float().topk(k, dim=-1)  # 16 bits would round small probabilities to zero
    # The best logit is made zero before the division, so that no temperature, however small, overflows.
    probabilities = F.softmax((likeliest - likeliest[:, :1]) / temperature, dim=-1)
    return candidates.gather(-1, torch.multinomial(probabilities, 1, generator=rng))
