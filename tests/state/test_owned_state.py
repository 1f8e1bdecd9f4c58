"""State that users' own objects keep."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import LightningDataModule, Trainer

from neuromanifold_gpt.state.owned_state import OwnedState


class _CollatesItself(LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.batches = 0

    def collate(self, samples: list[Any]) -> Any:
        self.batches += 1
        return samples


@pytest.fixture
def data_module() -> _CollatesItself:
    module = _CollatesItself()
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    return module


def test_a_trainer_that_is_reached_is_nobodys_state(data_module: _CollatesItself) -> None:
    owned = OwnedState({"collate_fn": data_module.collate})
    data_module.collate([])
    data_module.trainer.fit_loop.epoch_progress.current.ready = 7
    assert owned.changed_values() == {"collate_fn.self.batches": 1}
    owned.restore_values({"collate_fn.self.batches": 5})
    assert data_module.batches == 5
    assert data_module.trainer.fit_loop.epoch_progress.current.ready == 7


def test_an_object_that_took_the_place_of_none_stays() -> None:
    thing = SimpleNamespace(file=None, count=0)
    owned = OwnedState({"dataset": thing})
    opened = thing.file = object()
    thing.count = 3
    owned.restore_values({"dataset.count": 2})
    assert (thing.file, thing.count) == (opened, 2)
    owned.restore_values({})
    assert (thing.file, thing.count) == (opened, 0)


def test_attributes_of_functions_count():
    def collate(samples):
        collate.calls += 1
        return samples

    collate.calls = 0
    owned = OwnedState({"collate_fn": collate})
    collate([])
    assert owned.changed_values() == {"collate_fn.calls": 1}
    owned.restore_values({})
    assert collate.calls == 0
