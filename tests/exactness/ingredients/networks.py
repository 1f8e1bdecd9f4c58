"""Networks by name. Each takes features and sample ids, and is trained on a squared error."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from .data import FEATURES

WIDTH = 16


class Network(nn.Module):
    """Layers one after the other; they keep the names that they are given."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.order = list(layers)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        for name in self.order:
            x = getattr(self, name)(x)
        return x


class Reordered(Network):
    """The same layers, applied in the same order but declared in the opposite one."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__(**dict(reversed(layers.items())))
        self.order.reverse()


class Tied(Network):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__(first=nn.Linear(FEATURES, FEATURES), second=nn.Linear(FEATURES, FEATURES), rest=plain())
        self.second.weight = self.first.weight

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.rest(self.second(self.first(x).relu()), ids)


class Recurrent(Network):
    """An LSTM with dropout between its layers."""

    def __init__(self) -> None:
        super().__init__(lstm=nn.LSTM(1, 6, num_layers=2, dropout=0.2, batch_first=True), head=nn.Linear(6, 1))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.head(self.lstm(x[..., None])[0][:, -1])


class Attentive(Network):
    """An encoder layer of a transformer, with its dropouts."""

    def __init__(self) -> None:
        layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=8, dropout=0.2, batch_first=True)
        super().__init__(embed=nn.Linear(1, 4), encoder=layer, head=nn.Linear(4, 1))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x[..., None])).mean(1))


class Embedded(Network):
    """A sparse embedding of the sample's id."""

    def __init__(self) -> None:
        super().__init__(embedding=nn.Embedding(64, FEATURES, sparse=True), rest=plain())

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.rest(x + self.embedding(ids % 64), ids)


class StochasticDepth(Network):
    """Skips a layer at random, by Python's generator; recomputes another in the backward pass."""

    def __init__(self) -> None:
        inner = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Dropout(0.3), nn.Tanh())
        super().__init__(skipped=nn.Linear(FEATURES, FEATURES), inner=inner, head=nn.Linear(FEATURES, 1))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        if not self.training or random.random() < 0.7:
            x = x + self.skipped(x)
        return self.head(checkpoint(self.inner, x, use_reentrant=False))


class NoiseOfItsOwn(Network):
    """Draws from a generator that the module owns, and no checkpoint knows."""

    def __init__(self) -> None:
        super().__init__(rest=plain())
        self.generator = torch.Generator().manual_seed(9)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.rest(x + 0.1 * torch.randn(x.shape, generator=self.generator), ids)


class WithBuffers(Network):
    """A running statistic that the loss depends on, one outside the state dict, and an extra state."""

    def __init__(self) -> None:
        super().__init__(rest=plain())
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.calls = 0

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return self.rest(x - self.mean + 0.001 * self.calls, ids)

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": self.calls}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]


class CountsByItself(Network):
    """A counter in an attribute, and a buffer that is not persistent; both change in ``forward``."""

    recent: Tensor

    def __init__(self) -> None:
        super().__init__(rest=plain())
        self.calls = 0
        self.register_buffer("recent", torch.zeros(FEATURES), persistent=False)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            self.recent = 0.9 * self.recent + 0.1 * x.detach().mean(0)
        return self.rest(x - self.recent + 0.001 * self.calls, ids)


class AnnealsByItself(Network):
    """A temperature in an attribute, and times, which say nothing."""

    def __init__(self) -> None:
        super().__init__(rest=plain())
        self.temperature = 1.0
        self.last_time = 0.0

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        if self.training:
            self.temperature *= 0.97
            self._measure()
        return self.rest(x / self.temperature, ids)

    def _measure(self) -> None:
        self.last_time = time.perf_counter()


class AnnealsByTheWay(AnnealsByItself):
    """Nobody can tell here that no clock has made the temperature."""

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        if self.training:
            self.last_time = time.perf_counter()
            self.temperature *= 0.97
        return self.rest(x / self.temperature, ids)


class Remembered:
    """What a network has seen lately, in an object of a class of its own."""

    def __init__(self) -> None:
        self.seen: deque[Tensor] = deque(maxlen=3)


class ReplaysByItself(Network):
    """Trains on what it has seen before, too."""

    def __init__(self) -> None:
        super().__init__(rest=plain())
        self.memory = Remembered()

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        if self.training:
            self.memory.seen.append(x.detach().mean(0))
            x = x + 0.1 * self.memory.seen[0]
        return self.rest(x, ids)


class CarriesByItself(Network):
    """A hidden state that goes from batch to batch, and a scale that the first batch sets."""

    def __init__(self) -> None:
        super().__init__(rest=plain())
        self.hidden = (torch.zeros(FEATURES), torch.zeros(FEATURES))
        self.register_buffer("scale", torch.ones(()))
        self.has_scale = False

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        if self.training:
            slow, fast = self.hidden
            self.hidden = (0.9 * slow + 0.1 * fast, x.detach().mean(0))
            if not self.has_scale:
                self.scale.copy_(x.detach().std())
                self.has_scale = True
        return self.rest((x - self.hidden[0]) / self.scale, ids)


def plain(kind: type[Network] = Network, **more: nn.Module) -> Network:
    """Batch norm and dropout."""
    return kind(
        first=nn.Linear(FEATURES, WIDTH),
        norm=nn.BatchNorm1d(WIDTH),
        act=nn.ReLU(),
        drop=nn.Dropout(0.2),
        **more,
        head=nn.Linear(WIDTH, 1),
    )


def equal_layers(kind: type[Network] = Network) -> Network:
    """Layers of one shape: a mix-up would pass every check of shapes."""
    layers = {f"layer{number}": nn.Linear(FEATURES, FEATURES) for number in range(3)}
    return kind(**layers, act=nn.Tanh(), drop=nn.Dropout(0.2), head=nn.Linear(FEATURES, 1))


def frozen() -> Network:
    """The first layer is not trained."""
    network = plain()
    network.first.requires_grad_(False)
    return network


def unused() -> Network:
    """A layer that is never called: its parameters never get a gradient, nor an optimizer state."""
    network = plain()
    network.unused = nn.Linear(3, 3)
    return network


def noise_in_hooks() -> Network:
    """Hooks of a layer and of a parameter draw from generators that they hold."""
    network, forward, backward = plain(), random.Random(8), np.random.default_rng(8)
    network.first.register_forward_hook(lambda _, inputs, output: output * (1 + 0.1 * forward.random()))
    network.head.weight.register_hook(lambda gradient: gradient * (1 + 0.1 * backward.random()))
    return network


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "dropout": lambda: Network(
        first=nn.Linear(FEATURES, WIDTH), act=nn.ReLU(), drop=nn.Dropout(0.3), head=nn.Linear(WIDTH, 1)
    ),
    "batch norm": lambda: Network(
        first=nn.Linear(FEATURES, WIDTH), norm=nn.BatchNorm1d(WIDTH), act=nn.ReLU(), head=nn.Linear(WIDTH, 1)
    ),
    "instance norm": lambda: Network(
        first=nn.Linear(FEATURES, WIDTH),
        split=nn.Unflatten(1, (4, 4)),
        norm=nn.InstanceNorm1d(4, track_running_stats=True),
        join=nn.Flatten(),
        head=nn.Linear(WIDTH, 1),
    ),
    "linear": lambda: Network(head=nn.Linear(FEATURES, 1)),
    "matrices": lambda: Network(
        first=nn.Linear(FEATURES, WIDTH, bias=False),
        act=nn.ReLU(),
        drop=nn.Dropout(0.2),
        head=nn.Linear(WIDTH, 1, bias=False),
    ),
    "tied": Tied,
    "recurrent": Recurrent,
    "attentive": Attentive,
    "sparse embedding": Embedded,
    "buffers": WithBuffers,
    "counts by itself": CountsByItself,
    "anneals by itself": AnnealsByItself,
    "anneals beside a clock": AnnealsByTheWay,
    "carries by itself": CarriesByItself,
    "replays by itself": ReplaysByItself,
    "frozen": frozen,
    "unused": unused,
    "stochastic depth": StochasticDepth,
    "noise of its own": NoiseOfItsOwn,
    "noise in hooks": noise_in_hooks,
    "weight norm": lambda: Network(
        first=parametrizations.weight_norm(nn.Linear(FEATURES, WIDTH)), act=nn.ReLU(), head=nn.Linear(WIDTH, 1)
    ),
    "spectral norm": lambda: Network(
        first=parametrizations.spectral_norm(nn.Linear(FEATURES, WIDTH)), act=nn.ReLU(), head=nn.Linear(WIDTH, 1)
    ),
    "lazy": lambda: Network(first=nn.LazyLinear(WIDTH), act=nn.ReLU(), head=nn.LazyLinear(1)),
    "random activation": lambda: Network(
        first=nn.Linear(FEATURES, WIDTH), act=nn.RReLU(), drop=nn.AlphaDropout(0.2), head=nn.Linear(WIDTH, 1)
    ),
    "equal layers": equal_layers,
    "equal layers, reordered": lambda: equal_layers(Reordered),
    "double": lambda: plain().double(),
    "bfloat16": lambda: plain().bfloat16(),
}


def error_of(network: nn.Module, batch: Any) -> Tensor:
    """The loss of one batch, or the sum over combined ones."""
    if "x" not in batch:
        parts = batch.values() if isinstance(batch, dict) else batch
        return torch.stack([error_of(network, part) for part in parts if part is not None]).sum()
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    x, y, ids = batch["x"].to(dtype), batch["y"].to(dtype), batch["id"]
    if x.dim() == 1:  # a sample that was not batched
        x, y, ids = x[None], y[None], torch.as_tensor(ids)[None]
    return nn.functional.mse_loss(network(x, ids), y)
