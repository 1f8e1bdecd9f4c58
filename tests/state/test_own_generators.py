"""Generators that are not the global ones: given to stateful=, and in variables of users' Python modules."""

from __future__ import annotations

import importlib
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from neuromanifold_gpt import load_checkpoint, resumable, save_checkpoint
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning, StateMismatchError

KINDS: dict[str, tuple[Callable[[], Any], Callable[[Any], float]]] = {
    "random.Random": (lambda: random.Random(1), lambda generator: generator.gauss(0, 1)),
    "numpy.random.Generator": (lambda: np.random.default_rng(1), lambda generator: generator.normal()),
    "numpy.random.RandomState": (lambda: np.random.RandomState(1), lambda generator: generator.normal()),
    "numpy.random.PCG64": (lambda: np.random.PCG64(1), lambda generator: generator.random_raw()),
    "torch.Generator": (
        lambda: torch.Generator().manual_seed(1),
        lambda generator: float(torch.randn((), generator=generator)),
    ),
}
USERS_CODE = """
import random
from dataclasses import dataclass, field

system = random.SystemRandom()
rng = random.Random(1)
same = [rng]
count = 0
last_time = 0.0

class Draws:
    rng = random.Random(2)

@dataclass
class Config:
    rng: random.Random = field(default_factory=lambda: random.Random(3))

config = Config()

def draw():
    return rng.random(), Draws.rng.random(), config.rng.random()
"""


def model_and_optimizer() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(1, 1)
    return model, torch.optim.SGD(model.parameters(), 0.1)


@pytest.fixture
def users_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    (tmp_path / "users_code.py").write_text(USERS_CODE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("users_code")
    sys.modules.pop("users_code", None)


class TestGivenToStateful:
    @pytest.mark.parametrize("kind", KINDS)
    def test_go_on(self, kind: str, tmp_path: Path) -> None:
        make, draw = KINDS[kind]
        model, optimizer = model_and_optimizer()
        generator = make()
        draw(generator)
        save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer, stateful={"rng": generator})
        expected = [draw(generator), draw(generator)]
        resumed = make()
        load_checkpoint(tmp_path).restore(model=model, optimizers=optimizer, stateful={"rng": resumed})
        assert [draw(resumed), draw(resumed)] == expected

    def test_alone_too(self, tmp_path: Path) -> None:
        generator = random.Random(1)
        generator.random()
        save_checkpoint(tmp_path, step=1, model=nn.Linear(1, 1), stateful={"rng": generator})
        resumed = random.Random(7)
        load_checkpoint(tmp_path).restore(stateful={"rng": resumed})
        assert resumed.random() == generator.random()

    def test_but_not_saved(self, tmp_path: Path) -> None:
        save_checkpoint(tmp_path, step=1, model=nn.Linear(1, 1))
        with pytest.raises(StateMismatchError, match=r"no state of \['rng'\]"):
            load_checkpoint(tmp_path).restore(stateful={"rng": random.Random(1)})

    def test_but_not_given_again(self, tmp_path: Path) -> None:
        model, optimizer = model_and_optimizer()
        save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer, stateful={"rng": random.Random(1)})
        with pytest.warns(InexactResumeWarning, match="generators that nobody has here: rng"):
            load_checkpoint(tmp_path).restore(model=model, optimizers=optimizer)

    def test_what_has_no_state_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match=r"stateful: .* found a dict"):
            save_checkpoint(tmp_path, step=1, model=nn.Linear(1, 1), stateful={"counts": {}})  # type: ignore[dict-item]
        assert not list(tmp_path.iterdir())


class TestOfPythonModules:
    def test_go_on(self, users_code: ModuleType, tmp_path: Path) -> None:
        model, optimizer = model_and_optimizer()
        users_code.draw()
        save_checkpoint(tmp_path / "run", step=1, model=model, optimizers=optimizer)
        expected = users_code.draw()
        load_checkpoint(tmp_path / "run").restore(model=model, optimizers=optimizer)
        assert users_code.draw() == expected

    def test_are_stored_once(self, users_code: ModuleType, tmp_path: Path) -> None:
        save_checkpoint(tmp_path / "run", step=1, model=nn.Linear(1, 1))
        stored = [path for path in load_checkpoint(tmp_path / "run").own_generators[0] if "users_code" in path]
        assert stored == ["users_code.rng", "users_code.Draws.rng", "users_code.config.rng"]

    def test_are_missed(self, users_code: ModuleType, tmp_path: Path) -> None:
        model, optimizer = model_and_optimizer()
        save_checkpoint(tmp_path / "run", step=1, model=model, optimizers=optimizer)
        del users_code.rng, users_code.same
        users_code.Draws.rng = np.random.default_rng(1)  # type: ignore[attr-defined]
        with pytest.warns(InexactResumeWarning, match=r"nobody has here: users_code.Draws.rng; users_code.rng\."):
            load_checkpoint(tmp_path / "run").restore(model=model, optimizers=optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("error", InexactResumeWarning)
            load_checkpoint(tmp_path / "run").restore(model=model)

    def test_values_are_not_stored_but_said(self, users_code: ModuleType, tmp_path: Path) -> None:
        model = nn.Linear(1, 1)
        save_checkpoint(tmp_path / "run", step=1, model=model)
        users_code.count, users_code.last_time = 1, 2.0
        users_code.draw()
        with pytest.warns(InexactResumeWarning, match=r"no checkpoint has: users_code.count\."):
            save_checkpoint(tmp_path / "run", step=2, model=model)

    def test_those_of_the_script_are_its_own_affair(
        self, users_code: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "__main__", users_code)
        monkeypatch.delitem(sys.modules, "users_code")
        model = nn.Linear(1, 1)
        save_checkpoint(tmp_path / "run", step=1, model=model)
        users_code.count = 1
        with warnings.catch_warnings():
            warnings.simplefilter("error", InexactResumeWarning)
            save_checkpoint(tmp_path / "run", step=2, model=model)


class Lazily(Sampler[int]):
    """Draws while it goes on, from what others draw from."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def __len__(self) -> int:
        return 12

    def __iter__(self) -> Iterator[int]:
        left = list(range(12))
        while left:
            yield left.pop(int(torch.randint(len(left), (), generator=self.generator)))


class Noisy(Dataset[float]):
    """Makes itself a new generator when it is told to."""

    def __init__(self) -> None:
        self.rng = random.Random(1)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> float:
        return self.rng.random()


class TestThatSeveralDrawFrom:
    def test_a_sampler_leaves_them_alone_and_they_the_sampler(self) -> None:
        generator = torch.Generator().manual_seed(3)
        loader = resumable(DataLoader(range(12), 2, sampler=Lazily(generator)), seed=1)
        undisturbed = [batch.tolist() for batch in loader]
        loader.set_epoch(0)
        disturbed, drawn = [], []
        for batch in loader:
            disturbed.append(batch.tolist())
            drawn.append(torch.rand((), generator=generator))
        alone = torch.Generator().manual_seed(3)
        assert disturbed == undisturbed
        assert drawn == [torch.rand((), generator=alone) for _ in drawn]

    def test_samples_leave_them_alone(self) -> None:
        data = Noisy()
        expected = random.Random(1).random()
        list(resumable(DataLoader(data, 2)))  # type: ignore[arg-type]
        assert data.rng.random() == expected

    def test_one_that_is_made_anew_is_followed(self) -> None:
        data = Noisy()
        loader = resumable(DataLoader(data, 2), seed=1)
        first = [batch.tolist() for batch in loader]
        loader.set_epoch(0)
        data.rng = random.Random(5)
        assert [batch.tolist() for batch in loader] == first
