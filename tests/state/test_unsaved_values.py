"""What modules change and no checkpoint has is said: from one save to the next, and at the restore."""

from __future__ import annotations

import copy
import gc
import io
import itertools
import multiprocessing
import random
import threading
import time
import warnings
import weakref
from collections import ChainMap, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from fractions import Fraction
from functools import partial
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any, Self
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanMetric, Metric

from neuromanifold_gpt import SeparatedCheckpoint, list_checkpoints, load_checkpoint, resumable, save_checkpoint
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.state.unsaved.unsaved_objects import saved_by_others
from tests.record import EmptyFile


class Counts(nn.Module):
    constant: Tensor
    recent: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.calls, self.seconds, self.temperature = 5, 0, 0.0, 1.0
        self.layer = nn.Dropout(0.1)
        self.register_buffer("constant", torch.ones(2), persistent=False)
        self.register_buffer("recent", torch.zeros(2), persistent=False)


def changed() -> nn.Sequential:
    module = nn.Sequential(Counts())
    module[0].calls, module[0].temperature, module[0].seconds = 3, 0.9, 3.5
    module[0].recent += 1
    return module


@contextmanager
def nothing_said() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", InexactResumeWarning)
        yield


class Normalizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + float(x.item())
        return x


class TestInAPlainLoop:
    @pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
    def test_attributes_of_script_modules_too(self, tmp_path: Path) -> None:
        module = nn.Sequential(torch.jit.script(Normalizes()))
        for step in (1, 2):
            with nothing_said():
                save_checkpoint(tmp_path, step=step, model=module)
        module(torch.ones(1))
        with pytest.warns(InexactResumeWarning, match=r"no checkpoint has: 0\.mean\. "):
            save_checkpoint(tmp_path, step=3, model=module)

    def test_what_changes_between_saves_is_said_once(self, tmp_path: Path) -> None:
        module = nn.Sequential(Counts())
        save_checkpoint(tmp_path, step=1, model=module)
        module[0].calls, module[0].temperature, module[0].seconds = 3, 0.9, 3.5
        module[0].recent += 1
        with pytest.warns(InexactResumeWarning, match=r"no checkpoint has: 0.calls; 0.recent; 0.temperature\. If"):
            save_checkpoint(tmp_path, step=2, model=module)
        module[0].temperature = 0.8
        with nothing_said():
            save_checkpoint(tmp_path, step=3, model=module)

    def restored(self, directory: Path, module: nn.Module) -> nn.Module:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
        module.p = optimizer.param_groups[0]["params"][0]
        load_checkpoint(directory).restore(model=module, optimizers=optimizer)
        return module

    def save(self, directory: Path, module: nn.Module) -> None:
        module.p = nn.Parameter(torch.zeros(1))
        save_checkpoint(directory, step=1, model=module, optimizers=torch.optim.SGD([module.p]))

    def test_what_differs_from_the_only_save_is_said_at_the_restore(self, tmp_path: Path) -> None:
        with nothing_said():
            self.save(tmp_path, changed())
        resumed = nn.Sequential(Counts())
        with pytest.warns(InexactResumeWarning, match=r"at the save.*: 0.calls; 0.recent; 0.temperature\. If") as said:
            self.restored(tmp_path, resumed)
        assert len(said) == 1
        assert (resumed[0].calls, resumed[0].temperature) == (0, 1.0)
        resumed[0].calls = 4
        with pytest.warns(InexactResumeWarning, match=r"values change .*: 0.calls\. If"):
            self.save(tmp_path, resumed)

    def test_equal_values_are_nothing_to_say(self, tmp_path: Path) -> None:
        self.save(tmp_path, changed())
        with nothing_said():
            self.restored(tmp_path, changed())

    def test_of_numbers_in_dicts_those_that_a_restored_program_has_not_set_yet(self, tmp_path: Path) -> None:
        first, resumed = Counts(), Counts()
        first.scales, first.settings = {"mean": 1.5}, {"width": 8.0}
        resumed.scales, resumed.settings = {}, {"width": 16.0}
        with nothing_said():
            self.save(tmp_path, first)
            self.restored(tmp_path, resumed)
        resumed.scales["mean"] = 1.7  # as the first batch gives it
        with pytest.warns(InexactResumeWarning, match=r"others at the save, and stay as they are now: scales\. If"):
            self.save(tmp_path, resumed)

    def test_weights_alone_are_restored_without_a_word(self, tmp_path: Path) -> None:
        self.save(tmp_path, changed())
        with nothing_said():
            load_checkpoint(tmp_path).restore(model=nn.Sequential(Counts()).append(nn.Identity()), strict=False)

    @pytest.mark.parametrize("layout", ["coo", "csr"])
    def test_sparse_buffers_are_in_nobody_s_way(self, layout: str, tmp_path: Path) -> None:
        module = Counts()
        dense = torch.eye(2)
        module.constant = dense.to_sparse() if layout == "coo" else dense.to_sparse_csr()
        save_checkpoint(tmp_path, step=1, model=module)
        save_checkpoint(tmp_path, step=2, model=module)

    def test_a_module_is_not_kept_alive(self, tmp_path: Path) -> None:
        module = Counts()
        save_checkpoint(tmp_path, step=1, model=module)
        gone = weakref.ref(module)
        del module
        gc.collect()
        assert gone() is None


class Scaled(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale


class Failing(dict[str, int]):
    def values(self) -> Any:
        raise RuntimeError("dictionary changed size during iteration")


class Buffer:
    """As learning by reinforcement has: what was seen lately, in objects within an object."""

    def __init__(self) -> None:
        self.seen: deque[Any] = deque(maxlen=8)

    def added(self, seen: Any = None) -> Buffer:
        self.seen.append(seen)
        return self


def queued(item: Any, queue: Queue[Any] | None = None) -> Queue[Any]:
    queue = queue or Queue()
    queue.put(item)
    return queue


def set_in(local: threading.local, value: int) -> threading.local:
    local.value = value
    return local


class Slotted:
    __slots__ = ("count", "later")

    def __init__(self, count: int) -> None:
        self.count = count


class Private:
    __slots__ = ("__count",)

    def __init__(self) -> None:
        self.__count = 0

    def added(self) -> Private:
        self.__count += 1
        return self


class Saves(Buffer):
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def gone() -> Any:
    return weakref.proxy(Buffer())


class Unready:
    """As clients are that are not connected yet."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"not connected: {name}")


class Records(Buffer):
    def __init__(self) -> None:
        super().__init__()
        self.file = EmptyFile()


class Samples(Buffer, Dataset[int]):
    """Its position in the data, or a warning of the loader's, has what it changes."""


class Timed:
    def __init__(self) -> None:
        self.last_time, self.size = time.perf_counter(), 1


def counter() -> Callable[[], int]:
    count = 0

    def counted() -> int:
        nonlocal count
        count += 1
        return count

    return counted


def called(counted: Callable[[], int]) -> Callable[[], int]:
    counted()
    return counted


def counting(start: int = 0) -> Iterator[int]:
    while True:
        yield start
        start += 1


def advanced(iterator: Any) -> Any:
    next(iterator)
    return iterator


def updated(metric: Any) -> Any:
    metric.update(1.0)
    return metric


def stepped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in optimizer.param_groups:
        group["params"][0].grad = torch.ones(1)
    optimizer.step()
    return optimizer


def momentum() -> torch.optim.Optimizer:
    return stepped(torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1, momentum=0.9))


def written(network: nn.Module, file: io.BytesIO) -> io.BytesIO:
    file.seek(0)
    torch.save(network.state_dict(), file)
    return file


def read(file: io.BytesIO) -> io.BytesIO:
    file.seek(0)
    torch.load(file)
    return file


class Keeps(Buffer):
    """In memory."""

    def __init__(self) -> None:
        super().__init__()
        self.file = written(nn.Linear(2, 2), io.BytesIO())

    def kept(self, network: nn.Module) -> Self:
        written(network, self.file)
        return self


def set_to(shared: Any, value: Any) -> Any:
    shared.value = value
    return shared


def set_at(shared: Any, value: Any) -> Any:
    shared[1] = value
    return shared


KEPT: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "a tensor, replaced": (lambda: torch.zeros(2), lambda value: value + 1),
    "a tensor, changed in place": (lambda: torch.zeros(2), lambda value: value.add_(1)),
    "one element of a tensor of many types": (
        lambda: torch.zeros(70, dtype=torch.bfloat16),
        lambda value: value.index_fill_(0, torch.tensor(33), 1.0),
    ),
    "a complex one": (lambda: torch.zeros(2, dtype=torch.complex64), lambda value: value + 1j),
    "a flag": (lambda: False, lambda value: True),
    "a scalar tensor": (lambda: torch.tensor(1.0), lambda value: value * 0.5),
    "a number that processes share": (lambda: multiprocessing.Value("i", 1), lambda value: set_to(value, 2)),
    "an array that they share": (lambda: multiprocessing.Array("d", [1.0, 2.0]), lambda value: set_at(value, 0.5)),
    "hidden states": (
        lambda: (torch.zeros(2), torch.zeros(2)),
        lambda value: tuple((part + 1).detach() for part in value),
    ),
    "a list that grows": (list, lambda value: [*value, torch.zeros(1)]),
    "a dict of lists": (lambda: {"a": [1.0]}, lambda value: {"a": [2.0]}),
    "a long list": (lambda: [0.0] * 1000, lambda value: [*value, 0.0]),
    "a replay buffer": (Buffer, lambda value: value.added(1)),
    "one in an agent": (
        lambda: SimpleNamespace(buffer=Buffer()),
        lambda value: SimpleNamespace(buffer=value.buffer.added(1)),
    ),
    "objects in objects": (lambda: [[Slotted(1)]], lambda value: [[Slotted(2)]]),
    "many in objects": (
        lambda: SimpleNamespace(agent=SimpleNamespace(buffer=Buffer())),
        lambda value: SimpleNamespace(agent=SimpleNamespace(buffer=value.agent.buffer.added((1, object())))),
    ),
    "deep in it": (lambda: [[[[[1]]]]], lambda value: [[[[[2]]]]]),
    "an iterator": (lambda: iter([1, 2, 3]), advanced),
    "a counter": (lambda: itertools.count(), advanced),
    "an iterator over one": (lambda: zip(enumerate([1, 2]), "ab", strict=True), advanced),
    "a list that goes round": (lambda: itertools.cycle([1, 2, 3]), advanced),
    "one over part of a counter": (lambda: itertools.islice(itertools.count(), 1, None), advanced),
    "a generator": (counting, advanced),
    "one that has ended": (lambda: (i for i in range(1)), lambda value: list(value) and value),
    "batches of a loader": (lambda: iter(DataLoader([1, 2, 3])), advanced),
    "batches of one with a position, which is not saved": (lambda: iter(resumable(DataLoader([1, 2, 3]))), advanced),
    "a number of a module that is no part": (lambda: [Scaled(1.0)], lambda value: [Scaled(0.5)]),
    "a sequence of torch's": (lambda: torch.quasirandom.SobolEngine(1), lambda value: value.fast_forward(1)),
    "a metric that is no part": (lambda: [MeanMetric()], lambda value: [updated(value[0])]),
    "weights in a file in memory": (io.BytesIO, lambda value: written(nn.Linear(100, 1000), value)),
    "in that of an object": (Keeps, lambda value: value.kept(nn.Linear(2, 2))),
    "what is written there": (io.StringIO, lambda value: value.write("warm-up") and value),
    "another optimizer": (lambda: [momentum()], lambda value: [stepped(value[0])]),
    "a variable of a function around": (counter, called),
    "one in a partial": (lambda: partial(counter()), lambda value: partial(called(value.func))),
    "one that a method is bound to": (lambda: Buffer().added, lambda value: value.__self__.added(1).added),
    "what nobody asks for its state_dict": (Saves, lambda value: value.added(1)),
    "a private slot": (Private, lambda value: value.added()),
    "keys": (lambda: {"a": 1}, lambda value: {"b": 1}),
    "an average of weights": (lambda: [nn.Linear(1, 1)], lambda value: [nn.Linear(1, 1)]),
    "a long text": (lambda: "a" * 100_000, lambda value: "b" + value[1:]),
    "a text": (lambda: "warm-up", lambda value: "decay"),
    "a set": (lambda: {1, "a"}, lambda value: value | {2}),
    "a number of NumPy's": (lambda: 1.0, lambda value: np.float64(0.5)),
    "a fraction": (lambda: Fraction(1, 2), lambda value: Fraction(1, 3)),
    "records of NumPy's": (lambda: np.zeros(2, [("a", "f4"), ("b", "i4")]), lambda value: np.ones(2, value.dtype)),
    "a queue": (lambda: queued(1), lambda value: queued(2, queue=value)),
    "several dicts in one": (lambda: ChainMap({}, {"a": 1}), lambda value: value.new_child({"a": 2})),
    "by object": (lambda: WeakKeyDictionary({Slotted: 1}), lambda value: WeakKeyDictionary({Slotted: 2})),
    "a variable of the context": (lambda: ContextVar("a", default=1), lambda value: value.set(2) and value),
    "a variable of the thread": (lambda: set_in(threading.local(), 1), lambda value: set_in(value, 2)),
    "a huge number": (lambda: 1 << 20000, lambda value: value + 1),
    "an array": (lambda: np.zeros(3, ">f4"), lambda value: value + 1),
    "a conjugate": (lambda: torch.ones(2, dtype=torch.complex64).conj(), lambda value: value * 1j),
    "an expanded tensor": (lambda: torch.zeros(3, 1).expand(3, 1 << 40), lambda value: value[:, :9] + 1),
    "a transposed one": (
        lambda: torch.zeros(300, 400).T,
        lambda value: value.clone().index_fill_(0, torch.tensor(0), 1),
    ),
}
PASSED_OVER: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "a result with its graph": (
        lambda: torch.zeros(2),
        lambda value: torch.ones(2, requires_grad=True) + 1,
    ),
    "a table that is built when it is needed": (lambda: None, lambda value: torch.ones(2)),
    "a dict of tables": (dict, lambda value: {3: torch.ones(2)}),
    "a nested tensor": (
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda value: torch.nested.nested_tensor([torch.ones(2), torch.ones(4)]),
    ),
    "an empty dict that fails": (Failing, lambda value: Failing()),
    "an object": (object, lambda value: object()),
    "the same functions": (lambda: {len, called}, lambda value: {called, len}),
    "parameters in a set": (lambda: {nn.Parameter(torch.zeros(1))}, lambda value: {nn.Parameter(torch.ones(1))}),
    "a record of the run": (Records, lambda value: value.added()),
    "a file in memory that is read": (lambda: written(nn.Linear(2, 2), io.BytesIO()), read),
    "a dataset": (Samples, lambda value: value.added()),
    "an object of a library": (lambda: Path("a").stat, lambda value: Path("b").stat),
    "a queue that is as it was": (lambda: queued(1), lambda value: queued(value.get(), queue=value)),
    "a time in an object": (lambda: SimpleNamespace(a=Timed()), lambda value: SimpleNamespace(a=Timed())),
    "a set in another order": (lambda: {1, 9}, lambda value: {9, 1}),
    "iterators that stand still": (lambda: [iter([1]), counting(), itertools.count()], lambda value: value),
    "nothing new": (lambda: [torch.ones(2), {"a": 1}], lambda value: [torch.ones(2), {"a": 1}]),
    "no numbers at all": (lambda: torch.zeros(0), lambda value: torch.zeros(0)),
    "the parameters": (
        lambda: [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1), requires_grad=False)],
        lambda value: [nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1), requires_grad=False)],
    ),
}


class TestWhatCounts:
    def save_twice(self, directory: Path, before: Callable[[], Any], then: Callable[[Any], Any]) -> None:
        module = Counts()
        module.kept = before()
        save_checkpoint(directory, step=1, model=module)
        module.kept = then(module.kept)
        save_checkpoint(directory, step=2, model=module)

    @pytest.mark.parametrize("kind", KEPT)
    def test_said(self, kind: str, tmp_path: Path) -> None:
        with pytest.warns(InexactResumeWarning, match=r": kept\. If"):
            self.save_twice(tmp_path, *KEPT[kind])

    @pytest.mark.parametrize("kind", PASSED_OVER)
    def test_passed_over(self, kind: str, tmp_path: Path) -> None:
        with nothing_said():
            self.save_twice(tmp_path, *PASSED_OVER[kind])

    def test_what_is_saved_beside_the_model(self, tmp_path: Path) -> None:
        module = Counts()
        module.kept = Saves()
        save_checkpoint(tmp_path, step=1, model=module, stateful={"kept": module.kept})
        module.kept.added(1)
        with nothing_said():
            save_checkpoint(tmp_path, step=2, model=module, stateful={"kept": module.kept})

    def test_settings_of_the_next_run_are_its_own(self, tmp_path: Path) -> None:
        for resume in (False, True):
            module = Counts()
            module.p = nn.Parameter(torch.zeros(1))
            module.config, module.name = SimpleNamespace(resume=resume, out=f"run-{resume}"), f"run-{resume}"
            optimizer = torch.optim.SGD([module.p])
            if resume:
                with nothing_said():
                    load_checkpoint(tmp_path).restore(model=module, optimizers=optimizer)
            save_checkpoint(tmp_path, step=1 + resume, model=module, optimizers=optimizer)

    def test_references_to_buffers_that_are_saved(self, tmp_path: Path) -> None:
        module = Counts()
        module.register_buffer("mean", torch.zeros(2))
        module.statistics = [module.mean]
        save_checkpoint(tmp_path, step=1, model=module)
        module.mean += 1
        with nothing_said():
            save_checkpoint(tmp_path, step=2, model=module)

    def test_views_of_parameters(self, tmp_path: Path) -> None:
        module = nn.Sequential(Counts(), nn.Linear(2, 2))
        module.views = [module[1].weight.data[:1]]
        save_checkpoint(tmp_path, step=1, model=module)
        module[1].weight.data += 1
        with nothing_said():
            save_checkpoint(tmp_path, step=2, model=module)

    def test_metrics_of_users_and_parametrized_parts(self, tmp_path: Path) -> None:
        class Accuracy(Metric):
            def __init__(self) -> None:
                super().__init__()
                self.add_state("right", torch.tensor(0))
                self.mean, self.best = 0.0, 0

            def update(self) -> None:
                self.right += 1

            def compute(self) -> Tensor:
                return self.right

        class Part(nn.Linear):
            hidden = torch.zeros(1)

        module = nn.Sequential(Accuracy(), parametrizations.weight_norm(Part(2, 2)))
        save_checkpoint(tmp_path, step=1, model=module)
        module[0].update()
        with nothing_said():
            save_checkpoint(tmp_path, step=2, model=module)
            module[1].hidden = torch.ones(1)
            save_checkpoint(tmp_path, step=3, model=module)
        module[1].hidden = torch.ones(1) + 1
        with pytest.warns(InexactResumeWarning, match=r": 1\.hidden\. If"):
            save_checkpoint(tmp_path, step=4, model=module)
        module[0].mean, module[0].best = 0.5, 1
        with pytest.warns(InexactResumeWarning, match=r": 0\.best; 0\.mean\. If"):
            save_checkpoint(tmp_path, step=5, model=module)

    def test_results_that_an_evaluation_leaves_without_their_graph(self, tmp_path: Path) -> None:
        module = Counts()
        weight = nn.Parameter(torch.ones(2))
        for step in range(1, 4):
            module.attention = weight * step
            with nothing_said():
                save_checkpoint(tmp_path, step=2 * step, model=module)
            module.attention = module.attention.detach()
            with nothing_said():
                save_checkpoint(tmp_path, step=2 * step + 1, model=module)

    def test_many_filters_and_names_with_commas_are_no_reason_to_doubt_the_manifest(self, tmp_path: Path) -> None:
        module = nn.ModuleDict({f"a,b,c,d,e,{i}": Counts() for i in range(50)})
        module["head"] = nn.Linear(1, 1)
        for i, part in enumerate(module.values()):
            part.register_buffer("filter", torch.randn(1, 1, 5, i + 1), persistent=False)
        saved = save_checkpoint(tmp_path, step=1, model=module, optimizers=torch.optim.SGD(module.parameters(), 0.1))
        assert load_checkpoint(tmp_path).checkpoint == saved

    def test_a_module_that_saves_state_itself_is_trusted(self, tmp_path: Path) -> None:
        class Saves(nn.Module):
            hidden = torch.zeros(1)

            def get_extra_state(self) -> Tensor:
                return self.hidden

        module = Saves()
        for step in (1, 2):
            module.hidden = torch.full((1,), float(step))
            with nothing_said():
                save_checkpoint(tmp_path, step=step, model=module)


class Carries(LightningModule):
    """As many modules do, it keeps its losses in a list until the epoch ends."""

    def __init__(self, keeps: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.keeps, self.calls, self.table, self.outputs = keeps, 0, None, []
        self.hidden = torch.zeros(1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.calls += 1
        self.table = torch.arange(3) if self.table is None else self.table
        self.result = self.layer(batch)
        if self.keeps:
            self.hidden = (self.hidden + self.result.mean()).detach()
            self.outputs.append(self.result.mean().item())
        return self.result.mean() + self.hidden.sum()

    def on_train_epoch_end(self) -> None:
        self.outputs.clear()

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(torch.arange(4.0).unsqueeze(1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(
    directory: Path,
    module: LightningModule,
    *callbacks: Callback,
    data: LightningDataModule | None = None,
    ckpt_path: Path | None = None,
    val_check_interval: int | None = None,
    **save: Any,
) -> None:
    Trainer(
        callbacks=[*callbacks, SeparatedCheckpoint(directory, save_top_k=-1, **save)],
        max_epochs=2,
        val_check_interval=val_check_interval,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    ).fit(module, datamodule=data, ckpt_path=ckpt_path)


class Scales(Callback):
    """Changes the batches by what it has counted and drawn."""

    def __init__(self) -> None:
        self.batches, self.rng, self.started_sec = 0, random.Random(3), 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Tensor, batch_idx: int) -> None:
        self.batches += 1
        self.started_sec = time.perf_counter()
        batch *= 1 + 0.1 * self.batches * self.rng.random()


class ScalesAndSaves(Scales):
    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches = state_dict["batches"]


class Draws(Callback):
    """Changes the batches by what a generator of its own draws."""

    def __init__(self, drawn: list[float]) -> None:
        self.rng, self._drawn = random.Random(3), Recorder(drawn)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Tensor, batch_idx: int) -> None:
        self._drawn.values.append(self.rng.random())


class Recorder(Records):
    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = values


class DrawsAndWrites(Draws):
    """Makes its generator late, and has a file."""

    def __init__(self, drawn: list[float]) -> None:
        super().__init__(drawn)
        self.file = EmptyFile()
        self.rng = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rng = deque([np.random.PCG64(3)])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Tensor, batch_idx: int) -> None:
        self._drawn.values.append(np.random.Generator(self.rng[0]).random())


class DrawsLate(Draws):
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Tensor, batch_idx: int) -> None:
        self.late = getattr(self, "late", random.Random(3))
        self._drawn.values.append(self.late.random())


class DrawsAtStep2(Draws):
    """Makes a generator in the middle of an epoch."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 2:
            self.late = random.Random(2)


class DrawsInValidation(Draws):
    """Makes a generator for each validation, in the middle of epochs too."""

    def on_validation_start(self, trainer: Trainer, *args: Any) -> None:
        self.late = random.Random(2)


class DrawsAnew(Draws):
    """Makes a generator for each epoch."""

    def on_train_epoch_end(self, trainer: Trainer, *args: Any) -> None:
        self.rng = random.Random(trainer.current_epoch)


class Averages(Callback):
    """An average of the weights, which nobody saves."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.module, self.layer = pl_module, pl_module.layer
        self.average = copy.deepcopy(pl_module.layer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        for mean, value in zip(self.average.parameters(), pl_module.layer.parameters(), strict=True):
            mean.data.lerp_(value.data, 0.5)


class Odd(Callback):
    """What cannot be looked at."""

    def __init__(self) -> None:
        self.gone, self.client, self.mapping, self.names = gone(), Unready(), Failing(a=1), {Unready(): 1}


class Validates(Carries):
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.trainer.datamodule.seen.values.append(batch.item())


class ShufflesValidation(LightningDataModule):
    """Validation draws from a generator that the data module owns."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.seen = torch.Generator().manual_seed(4), Recorder([])

    def train_dataloader(self) -> DataLoader[Tensor]:
        return resumable(DataLoader(torch.arange(4.0).unsqueeze(1)))

    def val_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(torch.arange(6.0).unsqueeze(1), shuffle=True, generator=self.generator)


class SavesInValidation(Callback):
    def __init__(self, hook: str, path: Path) -> None:
        self._path = path
        setattr(self, hook, self.save)

    def save(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step == 4 and not trainer.sanity_checking:
            trainer.save_checkpoint(self._path)


class Grows(LightningDataModule):
    def __init__(self, in_collate: bool = False) -> None:
        super().__init__()
        self.batches, self._collate = 0, self.counted if in_collate else None

    def counted(self, samples: list[Tensor]) -> Tensor:
        self.batches += 1
        return torch.stack(samples) * self.batches

    def train_dataloader(self) -> DataLoader[Tensor]:
        return resumable(DataLoader(torch.arange(4.0).unsqueeze(1), collate_fn=self._collate))

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> Tensor:
        return batch if self._collate is not None else self.counted([batch])[0]


class TestInLightning:
    def test_what_changes_is_said_once(self, tmp_path: Path) -> None:
        with pytest.warns(InexactResumeWarning, match=r"no checkpoint has: hidden; outputs\. If") as said:
            fit(tmp_path, Carries(keeps=True), every_n_train_steps=3)
        assert len([w for w in said if w.category is InexactResumeWarning]) == 1

    def test_what_is_stored_or_built_or_a_result_is_not(self, tmp_path: Path) -> None:
        with nothing_said():
            fit(tmp_path, Carries(keeps=False), every_n_train_steps=1)

    def test_an_empty_list_at_the_end_of_the_epoch_is_as_at_the_beginning(self, tmp_path: Path) -> None:
        with pytest.warns(InexactResumeWarning, match=r"no checkpoint has: hidden\. If"):
            fit(tmp_path, Carries(keeps=True), every_n_epochs=1, save_on_train_epoch_end=True)

    def test_what_callbacks_change_is_said_by_their_names(self, tmp_path: Path) -> None:
        with pytest.warns(InexactResumeWarning, match=r"no checkpoint has: Scales-2\.batches; Scales\.batches\. If"):
            fit(tmp_path, Carries(keeps=False), Scales(), Scales(), every_n_train_steps=3)

    def test_a_callback_that_saves_state_itself_is_trusted(self, tmp_path: Path) -> None:
        with nothing_said():
            fit(tmp_path, Carries(keeps=False), ScalesAndSaves(), every_n_train_steps=3)

    @pytest.mark.parametrize("kind", [Draws, DrawsAndWrites])
    def test_generators_of_callbacks_go_on(self, kind: type[Draws], tmp_path: Path) -> None:
        drawn: list[float] = []
        again: list[float] = []
        with nothing_said():
            fit(tmp_path, Carries(keeps=False), kind(drawn), every_n_train_steps=1)
            path = list_checkpoints(tmp_path)[2].model_path
            fit(tmp_path / "again", Carries(keeps=False), kind(again), ckpt_path=path)
        assert again == drawn[3:]

    def test_generators_that_are_made_too_late_are_said(self, tmp_path: Path) -> None:
        fit(tmp_path, Carries(keeps=False), DrawsLate([]), every_n_train_steps=1)
        path = list_checkpoints(tmp_path)[2].model_path
        with pytest.warns(InexactResumeWarning, match=r"generators that nobody has here: DrawsLate\.late\. Make"):
            fit(tmp_path / "again", Carries(keeps=False), DrawsLate([]), ckpt_path=path)

    def test_generators_that_are_made_after_training_began_are_said(self, tmp_path: Path) -> None:
        with pytest.warns(InexactResumeWarning, match=r"made after the step .*: DrawsAtStep2\.late\. This"):
            fit(tmp_path, Carries(keeps=False), DrawsAtStep2([]), every_n_train_steps=1)

    def test_generators_that_are_made_for_each_validation_are_no_reason_to_doubt(self, tmp_path: Path) -> None:
        data = ShufflesValidation()
        with nothing_said():
            module, draws = Validates(keeps=False), DrawsInValidation([])
            fit(tmp_path, module, draws, data=data, val_check_interval=2, every_n_train_steps=1)

    def test_generators_that_are_made_anew_for_each_epoch_go_on(self, tmp_path: Path) -> None:
        drawn: list[float] = []
        again: list[float] = []
        with nothing_said():
            fit(tmp_path, Carries(keeps=False), DrawsAnew(drawn), every_n_train_steps=1)
            saved = list_checkpoints(tmp_path)[-2]
            fit(tmp_path / "again", Carries(keeps=False), DrawsAnew(again), ckpt_path=saved.model_path)
        assert again == drawn[saved.step :]
        assert again

    @pytest.mark.parametrize("hook", ["on_validation_start", "on_validation_batch_end", "on_validation_end"])
    def test_generators_that_validation_draws_from(self, hook: str, tmp_path: Path) -> None:
        whole, resumed = ShufflesValidation(), ShufflesValidation()
        path = tmp_path / "by-hand-model.pt"
        fit(tmp_path / "a", Validates(keeps=False), SavesInValidation(hook, path), data=whole)
        fit(tmp_path / "b", Validates(keeps=False), data=resumed, ckpt_path=path)
        assert resumed.seen.values[-6:] == whole.seen.values[-6:]

    def test_an_average_that_a_callback_keeps_is_said(self, tmp_path: Path) -> None:
        with pytest.warns(InexactResumeWarning, match=r"no checkpoint has: Averages\.average\. If"):
            fit(tmp_path, Carries(keeps=False), Averages(), every_n_train_steps=3)

    def test_what_cannot_be_looked_at_is_in_nobody_s_way(self, tmp_path: Path) -> None:
        with nothing_said():
            fit(tmp_path, Carries(keeps=False), Odd(), every_n_train_steps=1)

    def test_what_a_data_module_changes_is_said(self, tmp_path: Path) -> None:
        with pytest.warns(InexactResumeWarning, match=r"no checkpoint has: Grows\.batches\. If"):
            fit(tmp_path, Carries(keeps=False), data=Grows(), every_n_train_steps=3)

    def test_what_it_collates_by_goes_with_the_position(self, tmp_path: Path) -> None:
        with nothing_said():
            fit(tmp_path, Carries(keeps=False), data=Grows(in_collate=True), every_n_train_steps=3)


class HasTensor:
    def __init__(self, mean: np.ndarray) -> None:
        self._mean = mean

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"mean": torch.from_numpy(self._mean)}


def test_an_array_that_another_object_saves_as_a_tensor_is_saved() -> None:
    mean = np.arange(4.0)
    others = {"other": mean + 1, "other dtype": mean.astype(np.float32), "other shape": mean.reshape(2, 2)}
    assert saved_by_others({"mean": mean, **others}, [HasTensor(mean.copy())]) == ["mean"]
