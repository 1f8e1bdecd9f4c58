"""Two ranks: they save together, rank 0 writes, and each continues with its own random numbers."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import neuromanifold_gpt
from neuromanifold_gpt import list_checkpoints, load_checkpoint, save_checkpoint
from neuromanifold_gpt.checkpoint.errors import EnvironmentChangedWarning
from neuromanifold_gpt.state.rng import RandomStateWarning, capture_rng_state, restore_rng_state

SCRIPT = '''
import json
import os
import random
import resource
import sys
import time
import warnings
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt import CheckpointError, ResumableDataLoader, list_checkpoints, load_checkpoint, save_checkpoint

folder, rank = sys.argv[1], int(sys.argv[2])
report = {}
dist.init_process_group(
    "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=100)
)


def seed(number):
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def make(start, of_parameters=torch.optim.Adam):
    seed(start)
    inner = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    model = nn.parallel.DistributedDataParallel(inner)
    optimizer = of_parameters(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    loader = ResumableDataLoader([[float(i)] for i in range(14)], 2, shuffle=True, seed=3, collate_fn=torch.tensor)
    return dict(model=model, optimizers=optimizer, schedulers=scheduler, loaders=loader)


def train(parts, step, directory):
    """To step 5, through the end of an epoch of four; the numbers that this rank drew."""
    drawn = []
    while step < 5:
        for x in parts["loaders"]:
            parts["optimizers"].zero_grad()
            drawn.append(random.random() + np.random.randn())
            (parts["model"](x) - drawn[-1]).pow(2).mean().backward()
            parts["optimizers"].step()
            parts["schedulers"].step()
            step += 1
            if step in (3, 5):
                checkpoint = save(f"{folder}/{directory}", step, parts)
                report[f"{directory} {step}"] = [str(checkpoint.model_path), checkpoint.manifest.pair]
            if step == 5:
                break
    return drawn


def save(directory, step, parts):
    """On rank 1 no file can be written meanwhile."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, unlimited[1]))
    try:
        return save_checkpoint(directory, step=step, **parts)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)


parts = make(11)
seed(100 + rank)
report["drawn"] = train(parts, 0, "whole")
parts = make(77)  # everything else than before
seed(200)
loaded = load_checkpoint(list_checkpoints(f"{folder}/whole")[0])
step = loaded.restore(**parts).global_step
report["drawn after the restore"] = train(parts, step, "resumed")

def sharded(parameters, lr):
    return ZeroRedundancyOptimizer(parameters, torch.optim.Adam, lr=lr)


parts = make(11, sharded)
seed(100 + rank)
train(parts, 0, "sharded")
parts = make(77, sharded)
train(parts, load_checkpoint(list_checkpoints(f"{folder}/sharded")[0]).restore(**parts).global_step, "sharded, resumed")
parts = make(77)

try:
    save(f"{folder}/a file/below", 9, parts)
except CheckpointError as error:
    report["error"] = f"{type(error).__name__}: {error}"
report["after the error"] = str(save(f"{folder}/after", 9, parts).name)

class Total:
    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


parts = {**make(77), "stateful": {"average": Total(1)} if rank == 0 else {}}
save_checkpoint(f"{folder}/averaged", step=1, **parts)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    load_checkpoint(f"{folder}/averaged").restore(**parts)
report["of an average on rank 0"] = [str(warning.message) for warning in caught]


def said_of_two_saves(model, **totals):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(2):
            save_checkpoint(f"{folder}/differences", step=step, model=model, stateful=totals)
            for name, total in totals.items():
                total.value += 1 if rank == 0 or name != "of rank 0" else 0
    return [str(warning.message) for warning in caught if warning.category is InexactResumeWarning]


report["of other totals"] = said_of_two_saves(
    nn.utils.skip_init(nn.Linear, 0, 0), alike=Total(1), own=Total(rank), **{"of rank 0": Total(1)}
)
report["of other weights"] = said_of_two_saves(nn.Linear(1, rank + 1))
inner = nn.Sequential(nn.BatchNorm1d(1))
model = nn.parallel.DistributedDataParallel(inner)
inner[0].running_mean += rank
report["of other buffers"] = said_of_two_saves(inner)

model = nn.Linear(1, 1)
one_rank = load_checkpoint(f"{folder}/one rank")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    one_rank.restore(model=model)
report["warnings"] = sorted(type(warning.message).__name__ for warning in caught)
report["numbers"] = []
for _ in range(2):
    with warnings.catch_warnings(action="ignore"):
        one_rank.restore(model=model)
    report["numbers"].append([random.random(), np.random.rand(), torch.rand(()).item()])

json.dump(report, open(f"{folder}/report{rank}.json", "w"))
open(f"{folder}/done{rank}", "w").close()
while not all(os.path.exists(f"{folder}/done{other}") for other in range(2)):
    time.sleep(0.01)
dist.destroy_process_group()
'''


@pytest.fixture(scope="module")
def one_rank_numbers():
    """What one process draws after its save."""
    return []


@pytest.fixture(scope="module")
def folder(tmp_path_factory, one_rank_numbers):
    folder = tmp_path_factory.mktemp("two")
    (folder / "a file").touch()
    before = capture_rng_state()
    save_checkpoint(folder / "one rank", step=1, model=nn.Linear(1, 1))
    one_rank_numbers.extend([random.random(), np.random.rand(), torch.rand(()).item()])
    restore_rng_state(before)
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(neuromanifold_gpt.__file__).parents[1]),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    arguments = [[sys.executable, "-c", SCRIPT, str(folder), str(rank)] for rank in range(2)]
    processes = [subprocess.Popen(argument, env=environment) for argument in arguments]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return folder


@pytest.fixture(scope="module")
def reports(folder):
    return [json.loads((folder / f"report{rank}.json").read_text()) for rank in range(2)]


def test_one_rank_writes_and_both_get_the_checkpoint(folder, reports):
    assert [checkpoint.step for checkpoint in list_checkpoints(folder / "whole")] == [3, 5]
    for name in ("whole 3", "whole 5", "resumed 5"):
        assert reports[0][name] == reports[1][name]
    assert sorted(path.name for path in (folder / "resumed").iterdir()) == [
        "checkpoint-step000005-model.pt",
        "checkpoint-step000005-optimizer.pt",
        "checkpoint-step000005.json",
    ]


def test_it_holds_the_generators_of_both(folder):
    states = load_checkpoint(folder / "whole").rng_states
    assert len(states) == 2
    assert not torch.equal(states[0]["torch"], states[1]["torch"])
    assert not torch.equal(states[0]["python"][1], states[1]["python"][1])
    assert not torch.equal(states[0]["numpy"][1], states[1]["numpy"][1])


def test_each_rank_draws_on(reports):
    for rank in range(2):
        assert reports[rank]["drawn after the restore"] == reports[rank]["drawn"][3:]
    assert reports[0]["drawn"] != reports[1]["drawn"]


@pytest.mark.parametrize("names", [("whole", "resumed"), ("sharded", "sharded, resumed")], ids=["whole", "sharded"])
def test_a_resumed_run_ends_in_the_same_bytes(folder, names):
    whole, resumed = (list_checkpoints(folder / name)[-1] for name in names)
    assert resumed.model_path.read_bytes() == whole.model_path.read_bytes()
    assert resumed.optimizer_path.read_bytes() == whole.optimizer_path.read_bytes()


def test_of_a_sharded_optimizer_the_whole_is_saved(folder):
    [state], [as_one] = (load_checkpoint(folder / name).optimizer_states for name in ("sharded", "whole"))
    assert [sorted(of_it) for of_it in state["state"].values()] == [["exp_avg", "exp_avg_sq", "step"]] * 4
    for number, of_it in as_one["state"].items():
        assert all(torch.equal(of_it[key], state["state"][number][key]) for key in of_it)


def test_names_are_free_of_the_wrapper(folder):
    loaded = load_checkpoint(folder / "whole")
    assert list(loaded.model_state) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert loaded.optimizer_states[0]["param_groups"][0]["param_names"] == list(loaded.model_state)


def test_a_save_that_fails_is_an_error_on_both_and_keeps_none_waiting(reports):
    assert reports[0]["error"] == reports[1]["error"]
    assert reports[0]["error"].startswith("CheckpointWriteError: ")
    assert [report["after the error"] for report in reports] == ["checkpoint-step000009"] * 2


def test_what_differs_by_rank_is_said_once_by_the_one_that_saves(reports):
    [totals], [weights] = reports[0]["of other totals"], reports[0]["of other weights"]
    assert "only that of rank 0 is saved: own. " in totals
    assert "only that of rank 0 is saved: the model's parameters. " in weights
    assert reports[0]["of other buffers"] == []
    assert not any(said for of_things, said in reports[1].items() if of_things.startswith("of other"))


def test_an_average_on_rank_0_is_missed_by_nobody(reports):
    assert [report["of an average on rank 0"] for report in reports] == [[], []]


def test_one_rank_continues_with_the_generators_of_the_first_and_says_what_differs(folder):
    loaded = load_checkpoint(folder / "whole")
    model = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    before = capture_rng_state()
    try:
        with (
            pytest.warns(RandomStateWarning, match="of 2 ranks were saved, 1 ranks are here"),
            pytest.warns(EnvironmentChangedWarning, match="world_size was 2 and is 1"),
        ):
            loaded.restore(model=model)
        assert torch.equal(torch.get_rng_state(), loaded.rng_states[0]["torch"])
    finally:
        restore_rng_state(before)


def test_two_ranks_after_one_draw_different_numbers_the_same_each_time(reports, one_rank_numbers):
    assert reports[0]["numbers"] == [one_rank_numbers, one_rank_numbers]
    first, second = reports[1]["numbers"]
    assert first == second
    assert not set(first) & set(one_rank_numbers)
    for report in reports:
        assert report["warnings"] == ["EnvironmentChangedWarning", "RandomStateWarning"]
