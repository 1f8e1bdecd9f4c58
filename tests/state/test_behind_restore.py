"""What a program of one save a process, or without loaders, loses by a resume is said behind the restore."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import warm_process

NUMBERS = "numbers that the loop carries from round to round were others at the save: "
VALUES = "values that no checkpoint has were others at the save, and stay as they are now: "

BEGINNING = """
import os, sys, torch
from torch import nn
from neuromanifold_gpt import ResumableDataLoader, latest_checkpoint, load_checkpoint, save_checkpoint

directory, saves, last = sys.argv[1], [int(step) for step in sys.argv[2].split(",")], int(sys.argv[3])
torch.manual_seed(0)
model = nn.Linear(1, 2)
optimizer = torch.optim.SGD(model.parameters(), 0.01)
parts, step = {"model": model, "optimizers": optimizer}, 0
loader = ResumableDataLoader(torch.arange(1.0, 9.0)[:, None], batch_size=2)

def restore():
    checkpoint = latest_checkpoint(directory)
    return load_checkpoint(checkpoint).restore(**parts).global_step if checkpoint else 0

def train(batch, factor=1.0):
    optimizer.zero_grad()
    (factor * model(batch)).square().mean().backward()
    optimizer.step()

def save(step):
    if step in saves:
        save_checkpoint(directory, step=step, **parts)
    if step == last:
        sys.exit(0)

"""


def said(body: str, directory: Path, *, saves: tuple[str, str], ends: tuple[int, int]) -> tuple[str, str]:
    """Of a process, and of one that resumes."""
    program = directory / "program.py"
    program.write_text(BEGINNING + body)
    results = [
        warm_process.run(program, directory / "saved", steps, last) for steps, last in zip(saves, ends, strict=True)
    ]
    assert [result.returncode for result in results] == [0, 0], results[-1].stderr
    first, second = (result.stderr for result in results)
    return first, second


WITHOUT_LOADERS = {
    "locals.main.sigma (then 1.4": """
def main():
    sigma, step = 1.0, restore()
    while True:
        train(torch.ones(1, 1), sigma)
        sigma *= 1.2
        step += 1
        save(step)
main()
""",
    "Agent.epsilon (then 0.8": """
class Agent:
    def __init__(self):
        self.epsilon = 1.0

    def learn(self):
        train(torch.ones(1, 1), self.epsilon)
        self.epsilon *= 0.9

def main():
    agent, step = Agent(), restore()
    while True:
        agent.learn()
        step += 1
        save(step)
main()
""",
    "__main__.waited (then 2, now 0)": """
step, waited = restore(), 0
while True:
    train(torch.ones(1, 1), 1 + waited)
    step, waited = step + 1, waited + 1
    save(step)
""",
}


@pytest.mark.parametrize("text", WITHOUT_LOADERS)
def test_numbers_of_a_loop_without_loaders_that_begin_again(text: str, tmp_path: Path) -> None:
    first, second = said(WITHOUT_LOADERS[text], tmp_path, saves=("2", "9"), ends=(2, 3))
    assert first == ""
    assert NUMBERS + text in second


WITHOUT_LOADERS_SET = """
class Box:
    best, count = 9.0, 0

    def state_dict(self):
        return vars(self)

    def load_state_dict(self, state):
        vars(self).update(state)

def main():
    box = Box()
    parts["stateful"] = {"box": box}
    step = restore()
    best, odd, total = box.best if step else 9.0, step % 2 == 1, 0.0
    while True:
        train(torch.ones(1, 1), best)
        step += 1
        best, odd = 0.9 * best, not odd
        box.best, box.count = best, box.count + 1
        save(step)
main()
"""


def test_numbers_that_such_a_loop_sets_by_the_checkpoint(tmp_path: Path) -> None:
    assert said(WITHOUT_LOADERS_SET, tmp_path, saves=("3", "5"), ends=(3, 6)) == ("", "")


ONE_SAVE = {
    "__main__.noise. ": """
parts["loaders"], noise = loader, torch.zeros(2, 1)
step = restore()
while True:
    for batch in loader:
        train(batch + noise)
        noise.add_(0.1)
        step += 1
        save(step)
""",
    "locals.main.losses. ": """
def main():
    parts["loaders"], losses = loader, torch.zeros(8)
    step = restore()
    while True:
        for batch in loader:
            losses[step % 8] = step + 1.0
            train(batch, 1 + losses.mean())
            step += 1
            save(step)
main()
""",
}


@pytest.mark.parametrize("text", ONE_SAVE)
@pytest.mark.parametrize("at", [3, 4])
def test_one_save_in_a_process(text: str, at: int, tmp_path: Path) -> None:
    first, second = said(ONE_SAVE[text], tmp_path, saves=(str(at), "99"), ends=(at, 6))
    assert first == ""
    assert VALUES + text in second


ANCHORS = """
class Anchors:
    def __init__(self):
        self.means = None

    def keep(self):
        self.means = [parameter.detach().clone() for parameter in model.parameters()]

    def penalty(self):
        return 1.0 if self.means is None else 1 + self.means[0].sum().item() ** 2

def main():
    parts["loaders"], anchors = loader, Anchors()
    step = restore()
    while True:
        for batch in loader:
            train(batch, anchors.penalty())
            step += 1
            save(step)
        if loader.epoch == 1:
            anchors.keep()
main()
"""


def test_what_is_none_again(tmp_path: Path) -> None:
    first, second = said(ANCHORS, tmp_path, saves=("2,6", "7"), ends=(6, 7))
    assert first == ""
    assert VALUES + "Anchors.means. " in second


STATEFUL_MODULE = """
class Remembers(nn.Module):
    def __init__(self):
        super().__init__()
        self.target, self.fixed = torch.zeros(2), torch.ones(2)
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, batch):
        self.target = 0.9 * self.target + batch.mean()
        self.mean += self.target
        return self.target.sum().item()

def main():
    parts["loaders"], remembers = loader, Remembers()
    parts["stateful"] = {"remembers": remembers}
    step = restore()
    while True:
        for batch in loader:
            train(batch, remembers(batch))
            step += 1
            save(step)
main()
"""


def test_what_the_state_of_a_stateful_module_leaves_out(tmp_path: Path) -> None:
    first, _ = said(STATEFUL_MODULE, tmp_path, saves=("2,3", "9"), ends=(3, 5))
    assert "values change in training that no checkpoint has: Remembers.target. " in first
    (tmp_path / "once").mkdir()
    _, second = said(STATEFUL_MODULE, tmp_path / "once", saves=("3", "9"), ends=(3, 5))
    assert VALUES + "Remembers.target. " in second


RATE = "settings of an optimizer, such as its learning rate, were changed between "


def loop(*, before: str = "pass", at_epoch: str = "pass", behind_step: str = "pass", behind_save: str = "pass") -> str:
    return f"""
parts["loaders"] = loader
step = restore()
{before}
while True:
    {at_epoch}
    for batch in loader:
        train(batch)
        step += 1
        {behind_step}
        save(step)
        {behind_save}
"""


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("loader.epoch == 1", RATE + "restore() and the first batch"),
        ("loader.epoch == 1 and not loader.batches_consumed", ""),
    ],
)
def test_a_learning_rate_that_is_changed_by_epochs(condition: str, expected: str, tmp_path: Path) -> None:
    body = loop(at_epoch=f'if {condition}: optimizer.param_groups[0]["lr"] *= 0.1')
    first, second = said(body, tmp_path, saves=("6", "9"), ends=(6, 9))
    assert first == ""
    assert (expected in second) if expected else (second == "")


def test_a_learning_rate_that_is_changed_behind_the_save(tmp_path: Path) -> None:
    body = loop(behind_save='optimizer.param_groups[0]["lr"] = 0.01 / (1 + step)')
    first, _ = said(body, tmp_path, saves=("2", "9"), ends=(5, 6))
    assert RATE + "save_checkpoint and the next batch" in first


RATE_OF_EACH_STEP = """
parts["loaders"] = loader
step = restore()
iterator = iter(loader)
while True:
    for group in optimizer.param_groups:
        group["lr"] = 0.01 / (1 + step // 3)
    try:
        batch = next(iterator)
    except StopIteration:
        iterator = iter(loader)
        batch = next(iterator)
    train(batch)
    step += 1
    save(step)
"""


def test_a_learning_rate_of_each_step_is_no_change(tmp_path: Path) -> None:
    assert said(RATE_OF_EACH_STEP, tmp_path, saves=("2,5", "6,7"), ends=(6, 9)) == ("", "")


LEFT_IN_EVALUATION = loop(at_epoch="model.train()", behind_step="if step % 2 == 0: model.eval()")
SAVED_IN_EVALUATION = loop(behind_step="model.eval()", behind_save="model.train()")
TRAINED_IN_EVALUATION = loop(before="model.eval()")


def test_a_model_that_an_evaluation_has_left_in_its_mode(tmp_path: Path) -> None:
    first, second = said(LEFT_IN_EVALUATION, tmp_path, saves=("2,6", "10"), ends=(6, 11))  # epochs of four
    assert "the model was saved, and is trained on, in evaluation mode" in first
    assert "the model was saved, and is trained on, in evaluation mode" in second


@pytest.mark.parametrize("body", [SAVED_IN_EVALUATION, TRAINED_IN_EVALUATION])
def test_modes_that_a_resumed_program_has_too(body: str, tmp_path: Path) -> None:
    assert said(body, tmp_path, saves=("2,3,6", "10"), ends=(7, 12)) == ("", "")


SHUFFLED_LIST = """
import random

def main():
    order, waited, step = list(range(8)), 0, restore()
    random.seed(step)
    while True:
        random.shuffle(order)
        for index in order:
            train(torch.full((1, 1), index + 1.0 + waited))
            step, waited = step + 1, waited + 1
            save(step)
main()
"""


def test_two_looks_at_the_first_step(tmp_path: Path) -> None:
    _, second = said(SHUFFLED_LIST, tmp_path, saves=("3", "99"), ends=(3, 5))
    assert NUMBERS + "locals.main.waited (then 3, now 0)" in second
    assert VALUES + "locals.main.order. " in second
