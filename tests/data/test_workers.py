"""What data workers are told, and what they are started with, is the same behind a resume."""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, get_worker_info

from neuromanifold_gpt import ResumableDataLoader, latest_checkpoint, load_checkpoint, resumable, save_checkpoint
from neuromanifold_gpt.data.errors import DataOrderWarning

SIZE, BATCH, WORKERS = 22, 4, 2


class Samples(Dataset[torch.Tensor]):
    scale, offset, level = 1.0, 0.0, 0

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.tensor(self.scale * i + self.offset + 100 * self.level)


class Told(Samples):
    """Depends on which worker it is in."""

    def __getitem__(self, i: int) -> torch.Tensor:
        info = get_worker_info()
        assert info is not None
        assert info.dataset is self
        drawn = np.random.default_rng([info.seed, i]).normal()
        return super().__getitem__(i) + drawn + 1000 * info.id


def configure(worker: int) -> None:
    info = get_worker_info()
    assert info is not None
    dataset: Any = info.dataset
    dataset.scale, dataset.offset = 10.0 + worker, float(torch.rand(()) + np.random.rand())


def configure_part(worker: int) -> None:
    info = get_worker_info()
    assert info is not None
    info.dataset.dataset.scale = 10.0 + worker  # type: ignore[attr-defined]


def ours(dataset: Any, **options: Any) -> Any:
    return ResumableDataLoader(dataset, BATCH, **{"num_workers": WORKERS, **options})


def around(dataset: Any, **options: Any) -> Any:
    return resumable(DataLoader(dataset, BATCH, **{"num_workers": WORKERS, **options}))


KINDS = pytest.mark.parametrize("kind", [ours, around])


def batches(loader: Any) -> list[list[float]]:
    return [batch.tolist() for batch in loader]


@pytest.mark.parametrize(("kind", "context"), [(ours, "fork"), (around, "fork"), (around, "spawn")])
def test_worker_init_fn_configures_the_dataset_of_its_worker(
    kind: Callable[..., Any], context: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))  # where spawned processes look for this module
    part = Subset(Samples(), range(SIZE))
    options: dict[str, Any] = {"worker_init_fn": configure_part, "multiprocessing_context": context}
    options["num_workers"] = 1 if context == "spawn" else WORKERS  # spawned ones take a while to import torch
    stock = DataLoader(part, BATCH, **options)
    assert batches(kind(part, **options)) == batches(stock)


@KINDS
@pytest.mark.parametrize("seed_samples", [True, False])
def test_batches_go_on_in_the_workers_that_they_would_have_had(kind: Callable[..., Any], seed_samples: bool) -> None:
    def made() -> Any:
        if kind is ours:
            return kind(Told(), worker_init_fn=configure, shuffle=True, seed=3, seed_samples=seed_samples)
        return resumable(
            DataLoader(Told(), BATCH, num_workers=WORKERS, worker_init_fn=configure, shuffle=True),
            seed=3,
            seed_samples=seed_samples,
        )

    loader, whole, states = made(), [], []
    for _ in range(2):
        for batch in loader:
            whole.append(batch.tolist())
            states.append(loader.state_between_passes())
    for number in (1, 4, len(whole) // 2, len(whole) - 2):
        again = made()
        again.load_state_dict(states[number - 1])
        rest = batches(again) + (batches(again) if number < len(whole) // 2 else [])
        assert rest == whole[number:], f"behind batch {number}"


@KINDS
@pytest.mark.parametrize("persistent_workers", [False, True])
def test_what_changes_here_reaches_the_workers_of_the_next_epoch(
    kind: Callable[..., Any], persistent_workers: bool
) -> None:
    def trained(loader: Any, epochs: int) -> list[Any]:
        seen = []
        for _ in range(epochs):
            for batch in loader:
                loader.dataset.level += 1
                seen.append((batch.tolist(), loader.dataset.level, loader.state_between_passes()))
        return seen

    def made() -> Any:
        return kind(Samples(), persistent_workers=persistent_workers)

    whole = trained(made(), 3)
    per_epoch = len(whole) // 3
    for number in (per_epoch - 1, per_epoch, per_epoch + 2):
        again = made()
        again.load_state_dict(whole[number - 1][2])
        assert trained(again, 3 - number // per_epoch) == whole[number:], f"behind batch {number}"


def test_what_changed_here_is_still_known_before_the_next_batch() -> None:
    loader = ours(Samples())
    for batch, _ in zip(loader, range(2), strict=False):
        loader.dataset.level += int(len(batch) > 0)
    state = loader.state_dict()
    assert state["values_here"] == {"dataset.level": 2}
    again = ours(Samples())
    again.load_state_dict(state)
    assert again.state_dict() == state


def test_what_changed_here_has_no_workers_to_be_kept_from_is_said() -> None:
    loader = ours(Samples())
    for _ in zip(loader, range(2), strict=False):
        loader.dataset.level += 1
    again = ResumableDataLoader(Samples(), BATCH)
    again.load_state_dict(loader.state_dict())
    with pytest.warns(DataOrderWarning, match="Resume with workers"):
        batches(again)
    assert again.dataset.level == 2


class Pops:
    """Takes a key out of each sample, and makes its generator late."""

    own: Any = None

    def __call__(self, samples: list[dict[str, Any]]) -> torch.Tensor:
        if self.own is None:
            self.own = np.random.default_rng(0)
        return torch.stack([sample.pop("value") for sample in samples]) + self.own.normal()


class Dicts(Samples):
    def __getitem__(self, i: int) -> Any:
        return {"value": super().__getitem__(i)}


class DictStream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([Dicts()[i] for i in range(SIZE)])


@pytest.mark.parametrize("dataset", [Dicts, DictStream])
def test_collate_functions_may_take_something_out_of_samples(dataset: Any) -> None:
    def made() -> Any:
        return resumable(DataLoader(dataset(), BATCH, collate_fn=Pops()))

    loader = made()
    states, whole = [], []
    for batch in loader:
        states.append(loader.state_between_passes())
        whole.append(batch.tolist())
    again = made()
    again.load_state_dict(states[1])
    assert batches(again) == whole[2:]


class Noise:
    own: Any = None

    def drawn(self) -> float:
        if self.own is None:
            self.own = np.random.default_rng(torch.initial_seed())
        return float(self.own.normal())


NOISE = Noise()
rng: Any = None


class InAModule(Samples):
    def __getitem__(self, i: int) -> torch.Tensor:
        global rng
        if rng is None:
            rng = np.random.default_rng(torch.initial_seed())
        return super().__getitem__(i) + rng.normal()


class InItsClass(Samples):
    rng: Any = None

    def __getitem__(self, i: int) -> torch.Tensor:
        if InItsClass.rng is None:
            InItsClass.rng = np.random.default_rng(torch.initial_seed())
        return super().__getitem__(i) + InItsClass.rng.normal()


class InAnObject(Samples):
    def __getitem__(self, i: int) -> torch.Tensor:
        return super().__getitem__(i) + NOISE.drawn()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("samples", [InAModule, InItsClass, InAnObject])
def test_generators_that_are_made_late_and_elsewhere_are_seeded(samples: type[Samples], workers: int) -> None:
    def made() -> Any:
        global rng
        rng = InItsClass.rng = NOISE.own = None  # as in a new process
        return ResumableDataLoader(samples(), BATCH, shuffle=True, seed=3, num_workers=workers)

    loader, whole, states = made(), [], []
    for _ in range(2):
        for batch in loader:
            whole.append(batch.tolist())
            states.append(loader.state_between_passes())
    for number in (1, 6, 8):
        again = made()
        again.load_state_dict(states[number - 1])
        rest = batches(again) + (batches(again) if number < len(whole) // 2 else [])
        assert rest == whole[number:], f"behind batch {number}"


def test_what_the_loop_draws_from_one_that_samples_make_goes_on(tmp_path: Path) -> None:
    def trained(directory: Path, steps: int) -> list[Any]:
        global rng
        rng, seen = None, []  # as in a new process
        model, loader = torch.nn.Linear(1, 1), ResumableDataLoader(InAModule(), BATCH, shuffle=True, seed=3)
        parts: dict[str, Any] = {"model": model, "optimizers": torch.optim.SGD(model.parameters(), 0.1)}
        first = 0
        if newest := latest_checkpoint(directory):
            first = load_checkpoint(newest).restore(**parts, loaders=loader).global_step or 0
        for step, batch in enumerate(itertools.islice(loader, steps - first), first + 1):
            seen.append((batch.tolist(), rng.normal()))
            save_checkpoint(directory, **parts, loaders=loader, step=step)
        return seen

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = trained(tmp_path / "a", 5)
        assert trained(tmp_path / "b", 3) == whole[:3]
        assert trained(tmp_path / "b", 5) == whole[3:]


made_generators: list[random.Random] = []


class KeepsThemAll(Samples):
    asked = 0

    def __getitem__(self, i: int) -> torch.Tensor:
        self.asked += 1
        made_generators.append(random.Random(i))
        return super().__getitem__(i)


def test_samples_that_make_a_generator_each_are_not_made_again_and_again() -> None:
    dataset = KeepsThemAll()
    for _ in range(2):
        batches(ResumableDataLoader(dataset, BATCH))
    assert dataset.asked <= 2 * (SIZE + 4 * BATCH)


class WithADefault(Samples):
    def noise(self, rng: np.random.Generator = np.random.default_rng(3)) -> float:  # noqa: B008
        return float(rng.normal())

    def __getitem__(self, i: int) -> torch.Tensor:
        return super().__getitem__(i) + self.noise()


@pytest.mark.parametrize("workers", [0, 2])
def test_generators_in_defaults_of_methods_are_seeded(workers: int) -> None:
    def made() -> Any:
        return ResumableDataLoader(WithADefault(), BATCH, shuffle=True, seed=3, num_workers=workers)

    loader = made()
    whole, state = batches(loader), loader.state_dict()
    next(iter(loader))
    again = made()
    again.load_state_dict({**state, "epoch": 0})
    assert batches(again) == whole


mean = 0.0


class Normalized(Samples):
    def __getitem__(self, i: int) -> torch.Tensor:
        global mean
        value = super().__getitem__(i)
        mean = 0.9 * mean + 0.1 * value.item()
        return value - mean


def test_numbers_around_that_samples_change_in_workers_are_said() -> None:
    with pytest.warns(DataOrderWarning, match=r"test_workers\.mean changes in the workers"):
        batches(ours(Normalized()))


class Level(Dataset[float]):
    """Samples depend on what the loop sets, in an attribute of the class at first, and counts."""

    strength = 0

    def __init__(self, counted: Any) -> None:
        self.counted = counted

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, i: int) -> float:
        return i + 100.0 * self.strength + 10000.0 * self.counted.step


@pytest.mark.parametrize("counts_before", [False, True])
@pytest.mark.parametrize("persistent_workers", [False, True])
def test_what_the_loop_sets_again_does_not_reach_workers_that_it_did_not_reach(
    persistent_workers: bool, counts_before: bool, tmp_path: Path
) -> None:
    def trained(folder: Path, steps: int) -> list[Any]:
        counted, seen = SimpleNamespace(step=0), []
        dataset, model = Level(counted), torch.nn.Linear(1, 1)
        loader = ResumableDataLoader(dataset, BATCH, num_workers=1, persistent_workers=persistent_workers)
        if checkpoint := latest_checkpoint(folder):
            loaded = load_checkpoint(checkpoint)
            counted.step = loaded.global_step if counts_before else 0
            loaded.restore(model=model, loaders=loader)
            counted.step = loaded.global_step
        for epoch in range(loader.epoch, 3):
            dataset.strength = epoch
            for batch in loader:
                counted.step += 1
                seen.append((batch.tolist(), dataset.strength, counted.step))
                if counted.step == steps:
                    save_checkpoint(folder, step=steps, model=model, loaders=loader)
                    return seen
        return seen

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = trained(tmp_path / "whole", 15)
        parts = [step for last in (2, 6, 9, 15) for step in trained(tmp_path / "parts", last)]
    assert parts == whole
