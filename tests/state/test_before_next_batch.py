"""What only one of two runs does, between a save or a restore and the next batch, is said."""

import itertools
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from neuromanifold_gpt import ResumableDataLoader, latest_checkpoint, load_checkpoint, save_checkpoint
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.state.rng import capture_rng_state, restore_rng_state
from tests.state.conftest import as_in_a_new_process

BATCHES = 4  # of an epoch


@pytest.fixture(autouse=True)
def own_generators():
    before = capture_rng_state()
    yield
    restore_rng_state(before)


def draw(_):
    torch.rand(1)


def validate(_):
    for _ in DataLoader(range(4)):  # its iterator draws a seed
        pass


def seed_all(number):
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


class Loop:
    """Three epochs, with hooks at each place where a program may draw; ``losses`` are those of all steps."""

    def __init__(
        self,
        directory,
        *,
        saves,
        steps=3 * BATCHES,
        dropout=0.5,
        by_next=False,
        breaks=False,
        schedule_at=None,
        **hooks,
    ):
        self.directory, self.saves, self.steps, self.by_next = directory, saves, steps, by_next
        self.breaks, self.schedule_at = breaks, schedule_at
        self.dropout, self.hooks, self.losses = dropout, hooks, {}

    def at(self, place, number=0):
        self.hooks.get(place, lambda _: None)(number)
        if place == self.schedule_at:
            self.scheduler.step()

    def save(self, step, epoch):
        save_checkpoint(self.directory, step=step, epoch=epoch, **self.parts)
        self.at("behind the save", step)

    def start(self):
        seed_all(3)
        self.model = nn.Sequential(nn.Linear(1, 8), nn.Dropout(self.dropout), nn.Linear(8, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.001)
        self.loader = ResumableDataLoader(torch.arange(2.0 * BATCHES)[:, None], 2, shuffle=True)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1, 0.9)
        self.parts = {
            "model": self.model,
            "optimizers": self.optimizer,
            "schedulers": self.scheduler,
            "loaders": self.loader,
        }
        step = 0
        if checkpoint := latest_checkpoint(self.directory):
            loaded = load_checkpoint(checkpoint)
            loaded.restore(**self.parts)
            step = loaded.global_step
        self.at("start")
        return step

    def train(self, step, batch):
        self.at("step", step)
        loss = self.model(batch).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.at("behind the step", step)
        self.losses[step + 1] = loss.item()
        if step + 1 in self.saves.get("step", ()):
            self.save(step + 1, self.loader.epoch)
        self.at("end of the step", step)
        return step + 1

    def run(self):
        step = self.start()
        for epoch in itertools.count(self.loader.epoch):
            if step >= self.steps:
                return self.losses
            self.at("epoch", epoch)
            iterator = iter(self.loader)
            if self.by_next:
                for _ in range(BATCHES - self.loader.batches_consumed):
                    self.at("round", step)
                    step = self.train(step, next(iterator))
                    if step == self.steps:
                        break
            else:
                for batch in iterator:
                    step = self.train(step, batch)
                    if step == self.steps or (self.breaks and step % BATCHES == 0):
                        break
            self.at("behind the pass", epoch)
            if "epoch" in self.saves and step % BATCHES == 0:
                self.save(step, epoch)
            self.at("behind the epoch", epoch)
        raise AssertionError


def of_two_runs(directory, stop, **options):
    """What an uninterrupted run says, what one that goes on behind ``stop`` says, and whether they are the same."""
    said, losses = [], []
    for steps, folder in ((3 * BATCHES, "whole"), (stop, "cut"), (3 * BATCHES, "cut")):
        as_in_a_new_process()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            losses.append(Loop(directory / folder, steps=steps, **options).run())
        said.append([str(w.message) for w in caught if w.category is InexactResumeWarning])
    whole, _, resumed = losses
    assert resumed
    return said[0], said[2], all(whole[step] == loss for step, loss in resumed.items())


WITHIN = {"step": (2, 5, 8, 10)}
INEXACT_BEHIND_THE_SAVE = {
    "draws in the for": {"saves": WITHIN, "stop": 3, "hooks": {"behind the save": draw}},
    "seeds in the for": {"saves": WITHIN, "stop": 3, "hooks": {"behind the save": lambda _: seed_all(7)}},
    "validates behind the save of an epoch": {
        "saves": {"epoch": True},
        "stop": 5,
        "hooks": {"behind the epoch": validate},
    },
    "draws in the for behind an epoch's last batch": {
        "saves": {"step": (4, 8)},
        "stop": 5,
        "hooks": {"behind the save": draw},
    },
}
INEXACT_BEHIND_THE_RESTORE = {
    "seeds": {"saves": WITHIN, "stop": 3, "hooks": {"start": lambda _: seed_all(7)}},
    "draws": {"saves": WITHIN, "stop": 3, "hooks": {"start": draw}},
    "validates": {"saves": WITHIN, "stop": 3, "hooks": {"start": validate}},
    "seeds each epoch": {"saves": WITHIN, "stop": 3, "hooks": {"epoch": seed_all}},
    "draws for each epoch": {"saves": WITHIN, "stop": 3, "hooks": {"epoch": draw}},
    "draws at an epoch's end": {"saves": {"step": (4, 8)}, "stop": 5, "hooks": {"start": draw}},
}
EXACT = {
    "saves in the for": {"saves": WITHIN, "stop": 3},
    "saves behind the pass": {"saves": {"epoch": True}, "stop": 5},
    "draws in each step": {"saves": WITHIN, "stop": 3, "hooks": {"step": draw}},
    "validates behind the pass, before the save": {
        "saves": {"epoch": True},
        "stop": 5,
        "hooks": {"behind the pass": validate},
    },
    "validates behind a pass at whose last batch it saves": {
        "saves": {"step": (4, 8)},
        "stop": 5,
        "hooks": {"behind the pass": validate},
    },
    "validates behind a pass that it leaves at its last batch": {
        "saves": {"step": (4, 8)},
        "stop": 5,
        "breaks": True,
        "hooks": {"behind the pass": validate},
    },
    "seeds each epoch, saves behind it": {"saves": {"epoch": True}, "stop": 5, "hooks": {"epoch": seed_all}},
    "seeds each epoch, saves at its last batch": {"saves": {"step": (4, 8)}, "stop": 5, "hooks": {"epoch": seed_all}},
    "draws for each epoch, saves behind it": {"saves": {"epoch": True}, "stop": 5, "hooks": {"epoch": draw}},
    "draws before each batch": {"saves": WITHIN, "stop": 3, "by_next": True, "hooks": {"round": draw}},
    "seeds before each step": {"saves": WITHIN, "stop": 3, "hooks": {"start": draw, "step": seed_all}},
    "draws nothing in training": {
        "saves": WITHIN,
        "stop": 3,
        "dropout": 0.0,
        "hooks": {"start": validate, "behind the save": draw},
    },
    "draws from another generator": {
        "saves": WITHIN,
        "stop": 3,
        "hooks": {"start": lambda _: random.random(), "behind the save": lambda _: random.random()},
    },
}


def case(options):
    options = dict(options)
    return {**options, **options.pop("hooks", {})}


@pytest.mark.parametrize("name", INEXACT_BEHIND_THE_SAVE)
def test_what_only_the_run_that_goes_on_draws_is_said_once(name, tmp_path):
    whole, resumed, is_exact = of_two_runs(tmp_path, **case(INEXACT_BEHIND_THE_SAVE[name]))
    assert not is_exact
    for said in (whole, resumed):
        assert len(said) == 1
        assert "between save_checkpoint and the next batch" in said[0]


@pytest.mark.parametrize("name", INEXACT_BEHIND_THE_RESTORE)
def test_what_only_the_resumed_run_draws_is_said_once(name, tmp_path):
    whole, resumed, is_exact = of_two_runs(tmp_path, **case(INEXACT_BEHIND_THE_RESTORE[name]))
    assert not is_exact
    assert not whole
    assert len(resumed) == 1
    assert "between restore() and the first batch" in resumed[0]


@pytest.mark.parametrize("name", EXACT)
def test_what_both_draw_or_nobody_uses_is_not_said(name, tmp_path):
    whole, resumed, is_exact = of_two_runs(tmp_path, **case(EXACT[name]))
    assert is_exact
    assert not whole
    assert not resumed


def test_what_only_the_resumed_run_draws_before_an_epoch_is_said_at_the_next_one(tmp_path):
    whole, resumed, is_exact = of_two_runs(tmp_path, saves={"epoch": True}, stop=5, start=lambda _: seed_all(7))
    assert not is_exact
    assert not whole
    assert len(resumed) == 1
    assert "between restore() and the first batch" in resumed[0]


def test_in_a_for_nothing_else_needs_to_be_known(tmp_path):
    with pytest.warns(InexactResumeWarning, match="between save_checkpoint and the next batch") as said:
        Loop(tmp_path, saves=WITHIN, epoch=seed_all, **{"behind the save": draw}).run()
    assert len(said) == 1


def test_the_generators_are_named_and_so_is_the_line(tmp_path):
    def both(_):
        random.random()
        torch.rand(1)

    with pytest.warns(InexactResumeWarning, match=r"seeded \(random, torch\), between save") as said:
        Loop(tmp_path, saves=WITHIN, step=both, **{"behind the save": both}).run()
    assert said[0].filename == __file__


@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")
class TestSchedulers:
    """They are stepped at one place of the loop, whose model draws nothing."""

    EXACT = (
        ("behind the step", WITHIN, 3),
        ("step", WITHIN, 3),  # before the optimizer, as was usual once
        ("epoch", {"epoch": True}, 5),
        ("behind the pass", {"epoch": True}, 5),
        ("behind the pass", {"step": (4, 8)}, 5),
    )

    @pytest.mark.parametrize(("place", "saves", "stop"), EXACT)
    def test_that_both_runs_step_are_not_said(self, place, saves, stop, tmp_path):
        whole, resumed, is_exact = of_two_runs(tmp_path, saves=saves, stop=stop, dropout=0.0, schedule_at=place)
        assert is_exact
        assert not whole
        assert not resumed

    def test_that_are_stepped_behind_the_save_are_said(self, tmp_path):
        said = of_two_runs(tmp_path, saves=WITHIN, stop=3, dropout=0.0, schedule_at="end of the step")
        assert not said[2]
        for warned in said[:2]:
            assert len(warned) == 1
            assert "a scheduler was stepped between save_checkpoint and the next batch" in warned[0]

    def test_that_are_stepped_behind_the_save_of_an_epoch_are_said_by_the_resumed_run(self, tmp_path):
        where = {"saves": {"epoch": True}, "schedule_at": "behind the epoch"}
        whole, resumed, is_exact = of_two_runs(tmp_path, **where, stop=5, dropout=0.0)
        assert not is_exact
        assert not whole  # it may be stepped at an epoch's start, for all that is known
        assert len(resumed) == 1
        assert "a scheduler was stepped between save_checkpoint and the next batch" in resumed[0]

    @pytest.mark.parametrize("place", ["start", "epoch"])
    def test_that_are_stepped_behind_the_restore_are_said(self, place, tmp_path):
        whole, resumed, is_exact = of_two_runs(tmp_path, saves=WITHIN, stop=3, dropout=0.0, schedule_at=place)
        assert not is_exact
        assert not whole
        assert len(resumed) == 1
        assert "a scheduler was stepped between restore() and the first batch" in resumed[0]
