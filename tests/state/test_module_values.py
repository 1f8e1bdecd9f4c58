"""What a module changes beside its state dict."""

from __future__ import annotations

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
    assert values.changed() == {"integers": {}, "buffers": {}}
    module[0].use(3)
    changed = values.changed()
    assert changed["integers"] == {"0.calls": 3}  # no flags, no times
    assert changed["buffers"].keys() == {"0.recent"}
    assert changed["buffers"]["0.recent"].tolist() == [3, 3]


def test_a_counter_that_comes_back_to_its_beginning_stays_in_both_runs() -> None:
    module = _Counts()
    values = ModuleValues(module)
    module.use(3)
    values.changed()
    module.use(0)
    assert values.changed()["integers"] == {".calls": 0}
    resumed = _Counts()
    values_there = ModuleValues(resumed)
    values_there.restore(values.changed())
    assert values_there.changed()["integers"] == {".calls": 0}


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
    assert values.changed()["integers"] == {}
