"""What can change bits is kept in the manifest, and a difference is said in one line with its reason."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from torch import nn

from neuromanifold_gpt import load_checkpoint, save_checkpoint
from neuromanifold_gpt.checkpoint.environment import current_environment, save_details, warn_if_changed
from neuromanifold_gpt.checkpoint.errors import EnvironmentChangedWarning


def test_the_same_environment_is_not_talked_about():
    environment = current_environment()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_changed(json.loads(json.dumps(environment)), current_environment())
    assert environment["torch"] == torch.__version__
    assert environment["num_threads"] == torch.get_num_threads()


@pytest.mark.parametrize("key", sorted(current_environment()))
def test_each_difference_is_named_with_both_values_and_a_reason(key):
    saved = {**current_environment(), key: "something else"}
    with pytest.warns(EnvironmentChangedWarning) as warned:
        warn_if_changed(saved, current_environment())
    (message,) = [str(warning.message) for warning in warned]
    assert f"{key} was 'something else' and is {current_environment()[key]!r} (" in message
    assert "it may change results" not in message
    assert "\n" not in message


def test_several_differences_are_one_warning_and_unknown_ones_count(recwarn):
    saved = {**current_environment(world_size=4), "future": 1}
    with pytest.warns(
        EnvironmentChangedWarning, match=r"future was 1 and is None .*world_size was 4 and is 1"
    ) as warned:
        warn_if_changed(saved, current_environment())
    assert len(warned) == 1


def test_a_resume_with_other_settings_warns_at_the_callers_line(tmp_path):
    model = nn.Linear(2, 2)
    checkpoint = save_checkpoint(tmp_path, step=1, model=model)
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.warns(EnvironmentChangedWarning, match="deterministic_algorithms was False and is True") as warned:
            load_checkpoint(checkpoint).restore(model=model)
        assert [warning.filename for warning in warned] == [__file__]
    finally:
        torch.use_deterministic_algorithms(False)


def test_it_is_in_the_manifest_and_nothing_of_it_in_the_data_files(tmp_path):
    checkpoint = save_checkpoint(tmp_path, step=1, model=nn.Linear(2, 2))
    assert checkpoint.manifest.environment == current_environment()
    details = save_details()
    assert set(checkpoint.manifest.details) == {*details, "module_values"}
    secrets = [str(value).encode() for value in (*details.values(), torch.__version__, tmp_path)]
    for path in (checkpoint.model_path, checkpoint.optimizer_path):
        content = path.read_bytes()
        assert not [secret for secret in secrets if len(secret) > 4 and secret in content]


def test_the_time_of_a_save_sorts_as_text():
    times = [save_details()["saved_at"] for _ in range(5)]
    assert times == sorted(times)
    assert all(time.endswith("+00:00") and len(time) == len("2026-01-01T00:00:00.000000+00:00") for time in times)
