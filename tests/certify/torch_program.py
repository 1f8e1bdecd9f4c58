"""A small torch program that keeps neither position nor random numbers in its checkpoints, but computes them.

``python torch_program.py OUT [--bug=NAME]`` trains, resuming with one bug. ``torch_program.py --each DIRECTORY BUG
...`` writes the traces of an undisturbed run, of one that ends at step 10, and of a resume with each bug.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
from torch import nn

STEPS, SAVE, SAMPLES, BATCH = 20, 5, 64, 4


class Training:
    def __init__(self):
        torch.manual_seed(1)
        torch.set_num_threads(1)
        self.x = torch.randn(SAMPLES, 4)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.97)
        self.step, self.shift, self.order, self.scale, self.lost_rng = 0, 0, 7, 1.0, False

    def train_step(self):
        position = self.step + self.shift
        ids = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(self.order + position // 16))
        batch = self.x[ids[position % 16 * BATCH : (position % 16 + 1) * BATCH]]
        torch.manual_seed(100 + self.step + 1000 * self.lost_rng)
        loss = (self.model(batch) - batch.sum(1, keepdim=True)).square().mean()
        self.optimizer.zero_grad()
        (loss * self.scale).backward()
        rate = self.scheduler.get_last_lr()[0]
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1
        return {"step": self.step, "loss": loss.item(), "lr": rate}

    def content(self):
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "step": self.step,
        }

    def restore(self, content, bug, older):
        self.model.load_state_dict((older if bug == "wrong_weights" else content)["model"])
        if bug == "batch_norm":
            self.model[1].reset_running_stats()
        if bug != "optimizer":
            self.optimizer.load_state_dict(content["optimizer"])
        self.scheduler.load_state_dict(content["scheduler"])
        self.step = content["step"]
        if bug == "optimizer":
            self.optimizer.param_groups[0]["lr"] = self.scheduler.get_last_lr()[0]
        for state in self.optimizer.state.values():
            for name in {"momentum": ["exp_avg"], "exp_avg_sq": ["exp_avg_sq"], "step_counter": ["step"]}.get(bug, []):
                state[name].zero_()
        if bug == "scheduler":
            self.scheduler.step()
        if bug == "weight_decay":
            self.optimizer.param_groups[0]["weight_decay"] = 0.5
        self.shift = {"data_restarted": -self.step, "data_skipped": 2, "batch_repeated": -1}.get(bug, 0)
        self.order = 77 if bug == "other_order" else 7
        self.scale = 2.0 if bug == "gradients" else 1.0
        self.lost_rng = bug == "rng"


def train(out, bug, until=STEPS):
    training = Training()
    found = sorted(out.glob("ckpt_*.pt"))
    if found:
        training.restore(torch.load(found[-1]), bug, torch.load(found[0]))
    with (out / "log.jsonl").open("a") as log:
        while training.step < until:
            log.write(json.dumps(training.train_step()) + "\n")
            log.flush()
            time.sleep(0.003)
            if training.step % SAVE == 0:
                path = out / f"ckpt_{training.step:03d}.pt"
                torch.save(training.content(), path.with_suffix(".tmp"))
                path.with_suffix(".tmp").replace(path)


def in_a_child(directory, name, out, bug, until=STEPS):
    """Train in a forked process, whose trace goes into a directory of its own."""
    (directory / name).mkdir()
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0, name
        return
    [trace] = [hook.__self__ for hook in torch.nn.modules.module._global_forward_pre_hooks.values()]
    trace._record = {}
    trace._path = str(directory / name / "rank0-1.jsonl")
    train(out, bug, until)
    os._exit(0)


def each(directory, bugs):
    Training().train_step()  # what torch imports with its first step is imported once
    out = directory / "out"
    out.mkdir()
    in_a_child(directory, "before", out, "", 10)
    for bug in ["none", *bugs]:
        copy = directory / f"out-{bug}"
        copy.mkdir()
        for path in out.glob("ckpt_*.pt"):
            (copy / path.name).write_bytes(path.read_bytes())
        in_a_child(directory, bug, copy, bug)
    fresh = directory / "out-undisturbed"
    fresh.mkdir()
    in_a_child(directory, "undisturbed", fresh, "")


if __name__ == "__main__":
    if sys.argv[1] == "--each":
        each(Path(sys.argv[2]), sys.argv[3:])
    else:
        train(Path(sys.argv[1]), "".join(sys.argv[2:]).removeprefix("--bug="))
