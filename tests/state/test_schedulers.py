"""Learning-rate schedulers: restored through a checkpoint, they go on as if nothing had happened."""

import math

import pytest
import torch
from torch import nn, optim
from torch.optim import lr_scheduler as lrs

from neuromanifold_gpt import load_checkpoint, save_checkpoint
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning, StateMismatchError

STEPS = 14


class Warmup:
    """A schedule that remembers something: torch saves what is in such an object."""

    def __init__(self):
        self.calls = 0

    def __call__(self, step):
        self.calls += 1
        return min(1.0, self.calls / 20)


def sequential(optimizer):
    parts = [
        lrs.LinearLR(optimizer, 0.1, total_iters=4),
        lrs.CosineAnnealingLR(optimizer, 6),
        lrs.ExponentialLR(optimizer, 0.9),
    ]
    return lrs.SequentialLR(optimizer, parts, milestones=[4, 9])


def chained(optimizer):
    return lrs.ChainedScheduler([lrs.ConstantLR(optimizer, 0.1, total_iters=4), lrs.ExponentialLR(optimizer, 0.9)])


SCHEDULERS = {
    "LambdaLR": lambda o: lrs.LambdaLR(o, lambda step: 1 / (step + 1)),
    "LambdaLR of each group": lambda o: lrs.LambdaLR(o, [lambda step: 0.9**step, lambda step: math.cos(step)]),
    "LambdaLR with a memory": lambda o: lrs.LambdaLR(o, [Warmup(), Warmup()]),
    "MultiplicativeLR": lambda o: lrs.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: lrs.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o: lrs.MultiStepLR(o, [2, 5, 5, 9], 0.5),
    "ConstantLR": lambda o: lrs.ConstantLR(o, 0.3, 6),
    "LinearLR": lambda o: lrs.LinearLR(o, 0.1, 1.0, 10),
    "ExponentialLR": lambda o: lrs.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lrs.PolynomialLR(o, 10, 2.0),
    "CosineAnnealingLR": lambda o: lrs.CosineAnnealingLR(o, 5, 0.001),
    "CosineAnnealingWarmRestarts": lambda o: lrs.CosineAnnealingWarmRestarts(o, 3, 2),
    "OneCycleLR": lambda o: lrs.OneCycleLR(o, [0.1, 0.3], total_steps=STEPS + 2),
    "CyclicLR": lambda o: lrs.CyclicLR(o, 0.01, [0.1, 0.2], step_size_up=3, step_size_down=4),
    "CyclicLR of a mode": lambda o: lrs.CyclicLR(o, 0.01, 0.1, step_size_up=3, mode="exp_range", gamma=0.9),
    "CyclicLR of a function": lambda o: lrs.CyclicLR(o, 0.01, 0.1, step_size_up=3, scale_fn=lambda x: 0.9**x),
    "ReduceLROnPlateau": lambda o: lrs.ReduceLROnPlateau(o, factor=0.5, patience=1, cooldown=1, min_lr=[1e-3, 1e-2]),
    "SequentialLR": sequential,
    "ChainedScheduler": chained,
    "SWALR": lambda o: optim.swa_utils.SWALR(o, [0.01, 0.02], anneal_epochs=5),
}
OPTIMIZERS = {
    "SGD": lambda groups: optim.SGD(groups, lr=0.1, momentum=0.9),
    "AdamW": lambda groups: optim.AdamW(groups, lr=0.1),
    "AdamW tensor lr": lambda groups: optim.AdamW(groups, lr=torch.tensor(0.1), foreach=False),
}


def make(scheduler, optimizer="SGD"):
    torch.manual_seed(1)
    model = nn.Linear(3, 2)
    groups = [{"params": [model.weight]}, {"params": [model.bias], "weight_decay": 0.01}]
    if optimizer != "AdamW tensor lr":
        groups[1]["lr"] = 0.05
    made = OPTIMIZERS[optimizer](groups)
    return model, made, SCHEDULERS[scheduler](made)


def run(model, optimizer, scheduler, steps):
    """Learning rates and momenta of each step."""
    followed = []
    for step in steps:
        x = torch.rand(4, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        # A loss that falls, stands still and rises, for the scheduler that looks at it.
        metric = [5.0, 4.0, 4.0, 4.1, 4.2, 3.0, 3.0, 3.0, 3.0, 3.1, 3.2, 3.3, 3.4, 3.5][step]
        model(x).pow(2).mean().backward()
        optimizer.step()
        scheduler.step(metric) if isinstance(scheduler, lrs.ReduceLROnPlateau) else scheduler.step()
        groups = optimizer.param_groups
        followed.append([(float(group["lr"]), group.get("momentum"), group.get("betas")) for group in groups])
    return followed


@pytest.mark.filterwarnings("ignore:.*epoch parameter in `scheduler.step:UserWarning")
class TestEveryScheduler:
    def test_is_among_the_cases(self):
        classes = {
            value
            for value in vars(lrs).values()
            if isinstance(value, type) and issubclass(value, lrs.LRScheduler) and not value.__name__.startswith("_")
        } - {lrs.LRScheduler}
        assert {kind.__name__ for kind in classes} <= {name.split()[0] for name in SCHEDULERS}

    @pytest.mark.parametrize("name", SCHEDULERS)
    def test_continues_from_any_step_in_the_same_bits(self, name, tmp_path):
        model, optimizer, scheduler = make(name)
        everything = run(model, optimizer, scheduler, range(STEPS))
        assert len({str(rates) for rates in everything}) > 1
        for stop in (0, 1, 5, STEPS - 1):
            first = make(name)
            assert run(*first, range(stop)) == everything[:stop]
            save_checkpoint(tmp_path, step=stop, model=first[0], optimizers=first[1], schedulers=first[2])
            second = make(name)
            load_checkpoint(tmp_path).restore(model=second[0], optimizers=second[1], schedulers=second[2])
            assert run(*second, range(stop, STEPS)) == everything[stop:]
            assert torch.equal(second[0].weight, model.weight)
            assert torch.equal(second[0].bias, model.bias)

    @pytest.mark.parametrize("optimizer", ["AdamW", "AdamW tensor lr"])
    @pytest.mark.parametrize(
        "name", ["OneCycleLR", "LambdaLR", "SequentialLR", "ReduceLROnPlateau", "ChainedScheduler"]
    )
    def test_continues_with_another_optimizer(self, name, optimizer, tmp_path):
        first, second = make(name, optimizer), make(name, optimizer)
        run(*first, range(5))
        save_checkpoint(tmp_path, step=5, model=first[0], optimizers=first[1], schedulers=first[2])
        load_checkpoint(tmp_path).restore(model=second[0], optimizers=second[1], schedulers=second[2])
        assert run(*second, range(5, STEPS)) == run(*first, range(5, STEPS))
        assert torch.equal(second[0].weight, first[0].weight)

    @pytest.mark.parametrize("name", SCHEDULERS)
    def test_saved_restored_and_saved_again_gives_the_same_bytes(self, name, tmp_path):
        first, second = make(name), make(name)
        run(*first, range(5))
        torch.manual_seed(0)
        one = save_checkpoint(tmp_path / "1", step=5, model=first[0], optimizers=first[1], schedulers=first[2])
        load_checkpoint(one).restore(model=second[0], optimizers=second[1], schedulers=second[2])
        two = save_checkpoint(tmp_path / "2", step=5, model=second[0], optimizers=second[1], schedulers=second[2])
        assert two.optimizer_path.read_bytes() == one.optimizer_path.read_bytes()


class TestSeveralSchedulers:
    def saved(self, directory):
        model, optimizer, plateau = make("ReduceLROnPlateau")
        steps = lrs.StepLR(optimizer, 2)
        run(model, optimizer, plateau, range(6))
        steps.step()
        save_checkpoint(directory, step=6, model=model, optimizers=optimizer, schedulers=[plateau, steps])
        return model, optimizer, plateau, steps

    def test_each_get_their_own_state(self, tmp_path):
        *_, plateau, steps = self.saved(tmp_path)
        model, optimizer, other_plateau = make("ReduceLROnPlateau")
        other_steps = lrs.StepLR(optimizer, 2)
        load_checkpoint(tmp_path).restore(model=model, optimizers=optimizer, schedulers=(other_plateau, other_steps))
        assert other_plateau.state_dict() == plateau.state_dict()
        assert other_steps.state_dict() == steps.state_dict()

    @pytest.mark.parametrize("count", [1, 3])
    def test_have_to_be_as_many_as_at_the_save(self, count, tmp_path):
        model, optimizer, *schedulers = self.saved(tmp_path)
        before = [scheduler.state_dict() for scheduler in schedulers]
        with pytest.raises(StateMismatchError, match=f"the state of 2 schedulers, {count} were given"):
            load_checkpoint(tmp_path).restore(model=model, optimizers=optimizer, schedulers=(schedulers * 2)[:count])
        assert [scheduler.state_dict() for scheduler in schedulers] == before

    def test_do_not_share_anything_with_what_was_loaded(self, tmp_path):
        self.saved(tmp_path)
        loaded = load_checkpoint(tmp_path)
        before = [str(state) for state in loaded.lr_scheduler_states]
        model, optimizer, plateau = make("ReduceLROnPlateau")
        loaded.restore(model=model, optimizers=optimizer, schedulers=[plateau, lrs.StepLR(optimizer, 2)])
        run(model, optimizer, plateau, range(6, STEPS))
        plateau.min_lrs.append("changed")
        assert [str(state) for state in loaded.lr_scheduler_states] == before


@pytest.mark.filterwarnings("error")
def test_torch_does_not_take_a_restored_optimizer_for_one_that_has_never_stepped(tmp_path):
    def parts():
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        return {"model": model, "optimizers": optimizer, "schedulers": lrs.ExponentialLR(optimizer, 0.5)}

    of_run = parts()
    of_run["optimizers"].step()
    save_checkpoint(tmp_path, step=1, **of_run)  # at the end of the first epoch
    resumed = parts()
    load_checkpoint(tmp_path).restore(**resumed)
    resumed["schedulers"].step()
    assert resumed["optimizers"].param_groups[0]["lr"] == 0.05


class TestGroupsInAnotherOrder:
    """A scheduler numbers the groups, so it would give each the learning rate of another."""

    def other(self):
        model = nn.Linear(3, 2)
        optimizer = optim.SGD([{"params": [model.bias]}, {"params": [model.weight]}], lr=0.1, momentum=0.9)
        return model, optimizer

    def test_are_refused_where_there_is_a_scheduler(self, tmp_path):
        first = make("LambdaLR of each group")
        run(*first, range(3))
        save_checkpoint(tmp_path, step=3, model=first[0], optimizers=first[1], schedulers=first[2])
        model, optimizer = self.other()
        scheduler = SCHEDULERS["LambdaLR of each group"](optimizer)
        weight = model.weight.clone()
        with pytest.raises(StateMismatchError, match=r"in another order than at the save \(\[1, 0\]\)"):
            load_checkpoint(tmp_path).restore(model=model, optimizers=optimizer, schedulers=scheduler)
        assert torch.equal(model.weight, weight)
        assert optimizer.state == {}

    def test_are_fine_without(self, tmp_path):
        first = make("LambdaLR of each group")
        run(*first, range(3))
        save_checkpoint(tmp_path, step=3, model=first[0], optimizers=first[1], schedulers=first[2])
        model, optimizer = self.other()
        with pytest.warns(InexactResumeWarning, match="state that nobody takes.*: 1 schedulers"):
            load_checkpoint(tmp_path).restore(model=model, optimizers=optimizer)
        rates = [group["lr"] for group in first[1].param_groups]
        assert [group["lr"] for group in optimizer.param_groups] == rates[::-1]
