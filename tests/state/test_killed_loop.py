"""A plain training loop, killed again and again, ends in the bytes of one that was left alone."""

import random
import time

import pytest

from neuromanifold_gpt import latest_checkpoint, list_checkpoints, load_checkpoint

from ..warm_process import WarmProcess

STEPS, SAVE_EVERY, STOPPED_AT = 26, 3, 5

pytestmark = pytest.mark.slow  # the matrix of tests/exactness kills loops in the suite
LOOP = '''
"""What a user writes: dropout, augmentation in workers, a schedule, a scaler, an average of the weights."""

import os
import random
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from neuromanifold_gpt import ResumableDataLoader, latest_checkpoint, load_checkpoint, save_checkpoint

directory, log_path, steps, save_every = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])


class Augmented(torch.utils.data.Dataset):
    def __len__(self):
        return 38

    def __getitem__(self, i):
        x = torch.full((6,), i / 38) + 0.1 * torch.randn(6) + random.gauss(0, 0.1) + np.random.randn() * 0.1
        return i, x, x.sin().sum()


random.seed(7)
np.random.seed(7)
torch.manual_seed(7)
loader = ResumableDataLoader(Augmented(), batch_size=4, shuffle=True, seed=5, num_workers=2, drop_last=True)
model = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.3), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=200)
scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=5)
average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
parts = dict(
    model=model, optimizers=optimizer, schedulers=scheduler, loaders=loader,
    stateful={"scaler": scaler, "average": average},
)
step = 0
newest = latest_checkpoint(directory)
if newest is not None:
    step = load_checkpoint(newest).restore(**parts).global_step
log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
while step < steps:
    for ids, x, y in loader:
        time.sleep(0.01)  # long enough to be killed in time
        optimizer.zero_grad()
        noise = random.random() + np.random.rand() + np.random.randn()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.mse_loss(model(x + 0.01 * noise)[:, 0], y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        average.update_parameters(model)
        step += 1
        rate = optimizer.param_groups[0]["lr"]
        os.write(log, f"{step} {loss.item().hex()} {rate.hex()} {scaler.get_scale()} {ids.tolist()}\\n".encode())
        if step % save_every == 0 or step == steps:
            save_checkpoint(directory, step=step, epoch=loader.epoch, **parts)
        if step == steps:
            break
'''


def start(script, directory, steps=STEPS):
    """The loop in a process of its own. Its output goes to files: workers may outlive it and hold pipes open."""
    directory.mkdir(exist_ok=True)
    with (directory / "errors").open("a") as errors:
        arguments = [directory / "checkpoints", directory / "log", steps, SAVE_EVERY]
        return WarmProcess(script, *arguments, stdout=errors, merged=True)


def finish(process, directory):
    assert process.wait(timeout=120) == 0, (directory / "errors").read_text()


def log_lines(directory):
    log = directory / "log"
    return log.read_bytes().decode().splitlines() if log.exists() else []


def kill_after(process, directory, lines, delay_sec):
    """Kill it a moment after it has logged so many more lines, wherever it is by then: in a step, or in a save.

    Returns whether there was a process to kill.
    """
    wanted = len(log_lines(directory)) + lines
    deadline = time.monotonic() + 120
    while len(log_lines(directory)) < wanted and process.poll() is None:
        assert time.monotonic() < deadline, (directory / "errors").read_text()
        time.sleep(0.001)
    time.sleep(delay_sec)
    process.kill()
    return process.wait(timeout=60) == -9


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("loop") / "loop.py"
    path.write_text(LOOP)
    return path


@pytest.fixture(scope="module")
def uninterrupted(script, tmp_path_factory):
    directory = tmp_path_factory.mktemp("uninterrupted")
    finish(start(script, directory), directory)
    return directory


@pytest.fixture(scope="module")
def killed(script, tmp_path_factory):
    """Stopped once at an end of its own, then killed, then left alone."""
    directory = tmp_path_factory.mktemp("killed")
    finish(start(script, directory, steps=STOPPED_AT), directory)
    choose = random.Random(3)
    kills = sum(
        kill_after(start(script, directory), directory, choose.randint(2, 7), choose.random() * 0.01) for _ in range(3)
    )
    assert kills >= 2
    finish(start(script, directory), directory)
    return directory


def test_the_model_file_and_the_optimizer_file_are_the_same_bytes(uninterrupted, killed):
    ends = [latest_checkpoint(directory / "checkpoints") for directory in (uninterrupted, killed)]
    assert [end.step for end in ends] == [STEPS, STEPS]
    assert ends[0].model_path.read_bytes() == ends[1].model_path.read_bytes()
    assert ends[0].optimizer_path.read_bytes() == ends[1].optimizer_path.read_bytes()
    assert ends[0].manifest.pair == ends[1].manifest.pair


def test_so_are_those_of_every_checkpoint_on_the_way(uninterrupted, killed):
    one, other = (
        {checkpoint.step: checkpoint.manifest.files for checkpoint in list_checkpoints(directory / "checkpoints")}
        for directory in (uninterrupted, killed)
    )
    assert list(one) == [*range(SAVE_EVERY, STEPS, SAVE_EVERY), STEPS]
    del other[STOPPED_AT]  # where the other did not save
    assert other == one


def test_every_step_had_the_same_loss_rate_scale_and_samples(uninterrupted, killed):
    expected = log_lines(uninterrupted)
    assert [line.split()[0] for line in expected] == [str(step) for step in range(1, STEPS + 1)]
    found = log_lines(killed)
    assert len(found) > STEPS  # some steps were done again
    for line in found:
        step = int(line.split()[0])
        assert line == expected[step - 1]
    assert {line.split()[0] for line in found} == {line.split()[0] for line in expected}


def test_the_loop_was_worth_the_test(uninterrupted):
    lines = log_lines(uninterrupted)
    assert len({line.split()[1] for line in lines}) == STEPS  # losses
    assert len({line.split()[2] for line in lines}) == STEPS  # learning rates
    assert len({line.split()[3] for line in lines}) > 1  # scales
    loaded = load_checkpoint(uninterrupted / "checkpoints")
    assert loaded.epoch == 2  # 26 steps, 9 batches an epoch
    assert set(loaded.stateful_states) == {"scaler", "average"}
    assert not loaded.stateful_states["average"]["module.0.weight"].equal(loaded.model_state["0.weight"])
