"""Users' own kinds of ``DataLoader``, without state: what they count goes on, and other samples are said."""

from __future__ import annotations

import warnings
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from neuromanifold_gpt import ResumableDataLoader, SeparatedCheckpoint, resumable
from neuromanifold_gpt.checkpoint.errors import CheckpointWarning
from neuromanifold_gpt.data.errors import DataOrderWarning
from neuromanifold_gpt.lightning_io.loader_parts import OwnedByLoaders

from .toy import NoisySamples, ToyModule, by_step, contents, fit

pytestmark = [
    pytest.mark.filterwarnings("ignore::neuromanifold_gpt.data.errors.ReadAgainWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]


class Counts(DataLoader):
    """Its batches depend on how many there were before, in this epoch and in all; so does its order."""

    epoch = 0

    def __init__(self, dataset: Any, batch_size: int, **options: Any) -> None:
        super().__init__(dataset, batch_size, shuffle=True, **options)
        self.seen, self.draws = 0, torch.Generator().manual_seed(3)

    def __iter__(self) -> Any:
        self.epoch += 1
        for x, y, ids in super().__iter__():
            self.seen += 1
            yield x * self.epoch + 0.01 * self.seen, y + torch.rand(1, generator=self.draws), ids


def test_what_an_iterator_counts_of_its_workers_is_not_put_back() -> None:
    """It would wait for what they do not owe it; persistent workers make an attribute of it."""

    class Own(DataLoader):
        passes = 0

    loader = Own(range(8), 2, num_workers=1, persistent_workers=True)
    owned = OwnedByLoaders([loader]).parts["0.loader"]
    assert len(list(loader)) == 4
    owned.look_again()
    assert loader._iterator is not None
    assert not [path for path, _ in owned.attributes() if "_iterator." in path]


class Masks(DataLoader):
    """Draws whole numbers from the global generator, in which the model draws too."""

    def __iter__(self) -> Any:
        for x, y, ids in super().__iter__():
            yield x, y, ids * torch.randint(0, 2, ids.shape)


class KeepsItsIterator(DataLoader):
    """And so its workers, and their seed."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, sampler=Endless(), **options)
        self.iterator = super().__iter__()

    def __len__(self) -> int:
        return 7

    def __iter__(self) -> Any:
        return islice(self.iterator, 7)


class Around:
    """No loader itself, but around one of this package; it counts what it gives."""

    def __init__(self, dataset: Any, batch_size: int, **options: Any) -> None:
        self.loaders = {"main": ResumableDataLoader(dataset, batch_size, shuffle=True, seed=2, **options)}
        self.given = 0

    def __len__(self) -> int:
        return len(self.loaders["main"])

    def __iter__(self) -> Any:
        for x, y, ids in self.loaders["main"]:
            self.given += 1
            yield x, y + 0.01 * self.given, ids


class AroundWrapped(Around):
    def __init__(self, dataset: Any, batch_size: int, **options: Any) -> None:
        super().__init__(dataset, batch_size)
        self.loaders["main"] = resumable(DataLoader(dataset, batch_size, shuffle=True, **options), seed=2)


class Endless(torch.utils.data.Sampler[int]):
    def __iter__(self) -> Any:
        return cycle(range(26))


class Shuffles(DataLoader):
    """Within a window, by the global generator."""

    def __iter__(self) -> Any:
        ahead: list[Any] = []
        for batch in super().__iter__():
            ahead.append(batch)
            if len(ahead) == 4:
                yield ahead.pop(int(torch.randint(0, 4, ())))
        yield from ahead


def run(directory: Path, kind: Any, path: Path | None = None, **options: Any) -> Any:
    saver = SeparatedCheckpoint(directory, every_n_train_steps=1, save_top_k=-1)
    module = ToyModule()
    module.train_dataloader = lambda: kind(NoisySamples(), 4, **options)  # type: ignore[method-assign]
    return fit(saver, module=module, loaders=False, validate=False, ckpt_path=path, max_steps=16)[1].history


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", [Counts, Masks, Around, AroundWrapped])
def test_goes_on_where_it_was(kind: Any, workers: int, tmp_path: Path) -> None:
    whole = run(tmp_path / "a", kind, num_workers=workers)
    saved = by_step(tmp_path / "a")
    for step in (7, 10):
        with warnings.catch_warnings():
            warnings.simplefilter("error", CheckpointWarning)
            warnings.simplefilter("error", DataOrderWarning)
            assert run(tmp_path / f"b{step}", kind, saved[step].model_path, num_workers=workers) == whole[step:]
        assert contents(by_step(tmp_path / f"b{step}")[16]) == contents(saved[16]), f"from step {step}"


@pytest.mark.filterwarnings("ignore:a resume of this training cannot be exact. the order of Endless")
@pytest.mark.parametrize(("kind", "workers"), [(Shuffles, 0), (KeepsItsIterator, 1)])
def test_one_that_has_come_to_other_samples_is_said(kind: Any, workers: int, tmp_path: Path) -> None:
    whole = run(tmp_path / "a", kind, num_workers=workers)
    said = f"this resume is not exact: {kind.__name__}, begun again, has come to other"
    with pytest.warns(CheckpointWarning, match=said):
        again = run(tmp_path / "b", kind, by_step(tmp_path / "a")[10].model_path, num_workers=workers)
    assert again != whole[10:]
    assert len(again) == len(whole[10:])
