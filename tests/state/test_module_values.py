"""What a module changes beside its state dict."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor, nn

from neuromanifold_gpt.state.module_values import ModuleValues


class _Counts(nn.Module):
    constant: Tensor
    recent: Tensor

    def __init__(self, steps: int = 5) -> None:
        super().__init__()
        self.steps, self.calls, self.ready, self.seconds = steps, 0, False, 0.0
        self.layer = nn.Dropout(0.1)
        self.register_buffer("constant", torch.ones(2), persistent=False)
        self.register_buffer("recent", torch.zeros(2), persistent=False)

    def use(self, calls: int) -> None:
        self.calls, self.ready, self.seconds = calls, True, 0.5
        self.recent += calls


def test_only_what_changed_is_kept() -> None:
    module = nn.Sequential(_Counts())
    values = ModuleValues(module)
    assert values.changed() == {"numbers": {}, "buffers": {}}
    module[0].use(3)
    changed = values.changed()
    assert changed["numbers"] == {"0.calls": 3}  # no flags: a process may have set them of its own
    assert changed["buffers"].keys() == {"0.recent"}
    assert changed["buffers"]["0.recent"].tolist() == [3, 3]


class _Anneals(nn.Module):
    """Numbers of many kinds, of which clocks have made some."""

    def __init__(self) -> None:
        super().__init__()
        self.rate, self.scale, self.limit = 1.0, np.float32(1), float("nan")
        self.mean = self.best = None
        self.step_sec, self.began, self.speed = 0.0, 0.0, 0.0

    def use(self) -> None:
        self.rate *= 0.9
        self.scale *= np.float32(1.1)
        self.mean, self.best = np.float64(2), 0.3
        self.step_sec = 0.25
        self._measure()

    def _measure(self) -> None:
        self.began = time.time()
        self.speed = 1 / (time.time() - self.began + 1)


def _clock() -> float:
    return time.time()


def test_fractions_are_kept_and_what_a_clock_has_shown_is_not() -> None:
    module = _Anneals()
    values = ModuleValues(module)
    module.use()
    changed = values.changed()
    assert changed["numbers"].keys() == {".rate", ".scale", ".mean", ".best"}
    resumed = _Anneals()
    ModuleValues(resumed).restore(changed)
    for name in ("rate", "scale", "mean", "best"):
        value, expected = getattr(resumed, name), getattr(module, name)
        assert (type(value), value) == (type(expected), expected)
    assert (resumed.began, resumed.speed, resumed.step_sec) == (0, 0, 0)


def test_a_clock_that_another_function_reads() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.began = 0.0

        def use(self) -> None:
            self.began = _clock()

    module = Looks()
    values = ModuleValues(module)
    module.use()
    assert values.changed()["numbers"] == {}


def test_a_counter_that_comes_back_to_its_beginning_stays_in_both_runs() -> None:
    module = _Counts()
    values = ModuleValues(module)
    module.use(3)
    values.changed()
    module.use(0)
    assert values.changed()["numbers"] == {".calls": 0}
    resumed = _Counts()
    values_there = ModuleValues(resumed)
    values_there.restore(values.changed())
    assert values_there.changed()["numbers"] == {".calls": 0}


def test_restored_beside_the_configuration_of_the_resumed_program() -> None:
    module = _Counts()
    values = ModuleValues(module)
    module.use(4)
    resumed = _Counts(steps=9)
    buffer = resumed.recent
    ModuleValues(resumed).restore(values.changed())
    assert (resumed.calls, resumed.steps, resumed.ready) == (4, 9, False)
    assert resumed.recent is buffer  # whoever else refers to it sees the value
    assert buffer.tolist() == [4, 4]


def test_a_buffer_that_was_replaced_by_a_longer_one() -> None:
    module = _Counts()
    values = ModuleValues(module)
    module.recent = torch.arange(3.0)
    resumed = _Counts()
    ModuleValues(resumed).restore(values.changed())
    assert resumed.recent.tolist() == [0, 1, 2]
    assert "recent" not in resumed.state_dict()


def test_metrics_and_layers_of_torch_keep_track_themselves() -> None:
    module = nn.Sequential(nn.BatchNorm1d(2))
    values = ModuleValues(module)
    module[0].num_features = 3
    assert values.changed()["numbers"] == {}
