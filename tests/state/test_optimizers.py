"""Optimizer state: matched by name, and every optimizer of torch continues in the same bits."""

import copy
import inspect
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim

from neuromanifold_gpt import load_checkpoint, save_checkpoint
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning, MissingOptimizerError, StateMismatchError
from neuromanifold_gpt.state.modules import parameter_names
from neuromanifold_gpt.state.optimizers import (
    NAMES_KEY,
    add_names,
    group_names,
    load_matched_state,
    match_by_name,
    match_optimizer_state,
    named_optimizer_state,
)

CASES = {
    "SGD": (optim.SGD, {}),
    "SGD momentum": (optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "Adam": (optim.Adam, {}),
    "Adam amsgrad": (optim.Adam, {"amsgrad": True}),
    "Adam tensor lr": (optim.Adam, {"lr": torch.tensor(0.01), "foreach": False}),
    "AdamW": (optim.AdamW, {"betas": (0.8, 0.95)}),
    "Adamax": (optim.Adamax, {}),
    "NAdam": (optim.NAdam, {}),
    "RAdam": (optim.RAdam, {}),
    "Adadelta": (optim.Adadelta, {}),
    "Adagrad": (optim.Adagrad, {"lr_decay": 0.01, "initial_accumulator_value": 0.1}),
    "Adafactor": (optim.Adafactor, {}),
    "ASGD": (optim.ASGD, {"t0": 2}),
    "RMSprop": (optim.RMSprop, {"centered": True, "momentum": 0.5}),
    "Rprop": (optim.Rprop, {}),
    "Muon": (optim.Muon, {}),
}
for _name in list(CASES):
    _class, _options = CASES[_name]
    for _switch in ("foreach", "fused"):
        if _switch in inspect.signature(_class).parameters and _switch not in _options:
            CASES[f"{_name} {_switch}"] = (_class, {**_options, _switch: True})
# torch's fused SGD on the CPU is not deterministic in bfloat16: two equal runs may differ in the momentum's last bit.
EACH_CASE = [
    pytest.param(case, dtype, id=f"{case} {str(dtype).removeprefix('torch.')}")
    for case in CASES
    for dtype in (torch.float32, torch.bfloat16)
    if (case, dtype) != ("SGD momentum fused", torch.bfloat16)
]
LBFGS = (optim.LBFGS, {"max_iter": 4, "history_size": 3, "line_search_fn": "strong_wolfe"})
BEFORE, AFTER = 3, 3


class Model(nn.Module):
    """Its parameters are declared in any order, and are the same by name in each."""

    def __init__(self, order=("first", "second", "last"), dtype=torch.float32):
        super().__init__()
        sizes = {"first": (4, 5), "second": (5, 5), "last": (5, 2)}
        for name in order:
            setattr(self, name, nn.Linear(*sizes[name]))
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                generator = torch.Generator().manual_seed(sum(name.encode()))
                parameter.copy_(torch.rand(parameter.shape, generator=generator) - 0.5)
        self.to(dtype)

    def forward(self, x):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


def make_optimizer(model, case, *, groups_reversed=False, **more):
    kind, options = CASES[case] if isinstance(case, str) else case
    matrices = {"params": [p for p in model.parameters() if p.ndim == 2], "weight_decay": 0.05}
    others = {"params": [p for p in model.parameters() if p.ndim != 2], "lr": 0.02}
    groups = [matrices] if kind is optim.Muon else [matrices, others]
    if isinstance(options.get("lr"), torch.Tensor):
        options = {**options, "lr": options["lr"].clone()}
        others.pop("lr")
    if kind is optim.LBFGS:
        groups = [{"params": list(model.parameters())}]
    if "weight_decay" not in inspect.signature(kind).parameters:
        matrices.pop("weight_decay")
    return kind(groups[::-1] if groups_reversed else groups, **{**options, **more})


def train(model, optimizer, steps):
    """Steps from ``steps.start`` on, each with data of its own; the loss of each."""
    losses = []
    dtype = model.first.weight.dtype
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.rand(8, 4, generator=generator).to(dtype)
        y = torch.rand(8, 2, generator=generator).to(dtype)

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = (model(x) - y).pow(2).mean()
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
    return losses


def by_name(model, optimizer):
    """Weights and optimizer state under the parameters' names."""
    found = {}
    for name, parameter in model.named_parameters():
        found[name] = parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{name} {key}"] = value
    for group in optimizer.param_groups:
        names = sorted(name for name, p in model.named_parameters() if any(p is other for other in group["params"]))
        found[f"group {names}"] = {key: value for key, value in group.items() if key != "params"}
    return found


def assert_same(one, other):
    """Bit for bit, and in the same types."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert sorted(one, key=str) == sorted(other, key=str)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for item, other_item in zip(one, other, strict=True):
            assert_same(item, other_item)
    else:
        assert one == other


class TestEveryOptimizer:
    def test_is_among_the_cases(self):
        classes = {
            value
            for value in vars(optim).values()
            if isinstance(value, type) and issubclass(value, optim.Optimizer) and value is not optim.Optimizer
        }
        assert classes == {kind for kind, _ in CASES.values()} | {optim.LBFGS, optim.SparseAdam}

    @pytest.mark.parametrize(("case", "dtype"), EACH_CASE)
    def test_continues_in_a_model_declared_in_another_order_with_groups_in_another_order(self, case, dtype, tmp_path):
        model = Model(dtype=dtype)
        optimizer = make_optimizer(model, case)
        train(model, optimizer, range(BEFORE))
        save_checkpoint(tmp_path, step=BEFORE, model=model, optimizers=optimizer)
        other = Model(("last", "first", "second"), dtype)
        other_optimizer = make_optimizer(other, case, groups_reversed=True)
        train(other, other_optimizer, range(50, 52))  # so that it has a state to get rid of
        load_checkpoint(tmp_path).restore(model=other, optimizers=other_optimizer)
        assert_same(by_name(other, other_optimizer), by_name(model, optimizer))

        steps = range(BEFORE, BEFORE + AFTER)
        assert train(other, other_optimizer, steps) == train(model, optimizer, steps)
        assert_same(by_name(other, other_optimizer), by_name(model, optimizer))
        assert not torch.equal(model.last.weight, Model(dtype=dtype).last.weight)

    @pytest.mark.parametrize(("case", "dtype"), [*EACH_CASE, pytest.param(LBFGS, torch.float32, id="LBFGS")])
    def test_saved_restored_and_saved_again_gives_the_same_bytes(self, case, dtype, tmp_path):
        model = Model(dtype=dtype)
        optimizer = make_optimizer(model, case)
        train(model, optimizer, range(BEFORE))
        one = save_checkpoint(tmp_path / "one", step=BEFORE, model=model, optimizers=optimizer)
        other = Model(dtype=dtype)
        other_optimizer = make_optimizer(other, case)
        load_checkpoint(one).restore(model=other, optimizers=other_optimizer)
        two = save_checkpoint(tmp_path / "two", step=BEFORE, model=other, optimizers=other_optimizer)
        assert two.optimizer_path.read_bytes() == one.optimizer_path.read_bytes()
        assert two.model_path.read_bytes() == one.model_path.read_bytes()
        both = range(BEFORE, BEFORE + 2)
        train(model, optimizer, both)
        train(other, other_optimizer, both)
        one = save_checkpoint(tmp_path / "one", step=5, model=model, optimizers=optimizer)
        two = save_checkpoint(tmp_path / "two", step=5, model=other, optimizers=other_optimizer)
        assert two.optimizer_path.read_bytes() == one.optimizer_path.read_bytes()

    @pytest.mark.parametrize("switched", ["foreach", "fused"])
    def test_keeps_the_switches_of_the_save(self, switched, tmp_path):
        model = Model()
        optimizer = make_optimizer(model, f"AdamW {switched}")
        train(model, optimizer, range(2))
        save_checkpoint(tmp_path, step=2, model=model, optimizers=optimizer)
        other = Model()
        other_optimizer = make_optimizer(other, "AdamW")
        load_checkpoint(tmp_path).restore(model=other, optimizers=other_optimizer)
        assert train(other, other_optimizer, range(2, 5)) == train(model, optimizer, range(2, 5))
        assert_same(by_name(other, other_optimizer), by_name(model, optimizer))


class TestLBFGS:
    def saved(self, directory):
        model = Model()
        optimizer = make_optimizer(model, LBFGS)
        train(model, optimizer, range(2))
        save_checkpoint(directory, step=2, model=model, optimizers=optimizer)
        return model, optimizer

    @pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_continues_in_the_same_order(self, line_search, dtype, tmp_path):
        case = (optim.LBFGS, {**LBFGS[1], "line_search_fn": line_search})
        model = Model(dtype=dtype)
        optimizer = make_optimizer(model, case)
        train(model, optimizer, range(2))
        save_checkpoint(tmp_path, step=2, model=model, optimizers=optimizer)
        other = Model(dtype=dtype)
        other_optimizer = make_optimizer(other, case)
        load_checkpoint(tmp_path).restore(model=other, optimizers=other_optimizer)
        assert train(other, other_optimizer, range(2, 6)) == train(model, optimizer, range(2, 6))
        assert_same(by_name(other, other_optimizer), by_name(model, optimizer))

    @pytest.mark.parametrize("strict", [True, False])
    def test_is_refused_in_another_order_since_its_state_is_one_vector_over_all_parameters(self, strict, tmp_path):
        self.saved(tmp_path)
        other = Model(("last", "first", "second"))
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(
            StateMismatchError, match=r"order is another one: expected first.weight; .*found last.weight"
        ):
            load_checkpoint(tmp_path).restore(model=other, optimizers=make_optimizer(other, LBFGS), strict=strict)
        assert_same(dict(other.state_dict()), dict(before))


class TestSparseAdam:
    def test_continues_in_another_order(self, tmp_path):
        class Embeddings(nn.Module):
            def __init__(self, names):
                super().__init__()
                for name in names:
                    setattr(self, name, nn.Embedding(9, 4, sparse=True))

            def forward(self, ids):
                return self.left(ids) * self.right(ids + 1)

        def steps(model, optimizer, numbers):
            for step in numbers:
                optimizer.zero_grad()
                model(torch.tensor([step % 4, 3, 3, 7])).sum().backward()
                optimizer.step()

        torch.manual_seed(0)
        model, other = Embeddings(["left", "right"]), Embeddings(["right", "left"])
        optimizer, other_optimizer = (optim.SparseAdam(list(m.parameters())) for m in (model, other))
        steps(model, optimizer, range(3))
        save_checkpoint(tmp_path, step=3, model=model, optimizers=optimizer)
        load_checkpoint(tmp_path).restore(model=other, optimizers=other_optimizer)
        for m, o in ((model, optimizer), (other, other_optimizer)):
            steps(m, o, range(3, 7))
        assert_same(by_name(other, other_optimizer), by_name(model, optimizer))


class MasterWeights(optim.Optimizer):
    """State that torch would spoil: float32 beside bfloat16 parameters, in containers, and a string."""

    def __init__(self, parameters, lr=0.01):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["master"] = parameter.float()
                    state["factors"] = {"left": torch.tensor(1 / 3), "names": ("rows", "columns")}
                    state["history"] = [torch.tensor([1 / 3]), None]
                    state["kind"] = "diagonal"
                    state["pair"] = (torch.tensor(0.1, dtype=torch.float64), 3)
                assert state["kind"] == "diagonal"
                assert state["factors"]["names"] == ("rows", "columns")
                state["factors"]["left"] += 0.1
                state["history"] = [state["history"][0] * 1.1, None]
                scale = state["factors"]["left"] * state["history"][0] * state["pair"][0].float()
                state["master"] -= group["lr"] * scale * parameter.grad.float()
                parameter.copy_(state["master"])
        return loss


class TestStateBesideParametersOfLowPrecision:
    def test_keeps_its_dtype_its_containers_and_its_strings(self, tmp_path):
        model, other = Model(dtype=torch.bfloat16), Model(("last", "second", "first"), torch.bfloat16)
        optimizer, other_optimizer = MasterWeights(model.parameters()), MasterWeights(other.parameters())
        train(model, optimizer, range(3))
        save_checkpoint(tmp_path, step=3, model=model, optimizers=optimizer)
        load_checkpoint(tmp_path).restore(model=other, optimizers=other_optimizer)
        assert other_optimizer.state[other.last.weight]["master"].dtype == torch.float32
        assert_same(by_name(other, other_optimizer), by_name(model, optimizer))
        train(model, optimizer, range(3, 6))
        train(other, other_optimizer, range(3, 6))
        assert_same(by_name(other, other_optimizer), by_name(model, optimizer))


class TestNames:
    def test_are_in_the_file_for_each_group_free_of_wrappers(self, tmp_path):
        model = torch.compile(Model(), backend="eager")
        model.first = torch.compile(model.first, backend="eager")
        optimizer = make_optimizer(model, "AdamW")
        checkpoint = save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer)
        (state,) = torch.load(checkpoint.optimizer_path, weights_only=True)["optimizer_states"]
        assert [group[NAMES_KEY] for group in state["param_groups"]] == [
            ["first.weight", "second.weight", "last.weight"],
            ["first.bias", "second.bias", "last.bias"],
        ]

    def test_of_an_optimizer_made_from_names_stay_its_own(self, tmp_path):
        def make(order):
            model = nn.ModuleDict({"inner": Model(order)})
            return model, optim.AdamW(model["inner"].named_parameters())

        model, optimizer = make(("first", "second", "last"))
        train(model["inner"], optimizer, range(2))
        save_checkpoint(tmp_path, step=2, model=model, optimizers=optimizer)
        other, other_optimizer = make(("last", "second", "first"))
        own_names = list(other_optimizer.param_groups[0][NAMES_KEY])
        assert own_names[0] == "last.weight"
        loaded = load_checkpoint(tmp_path).restore(model=other, optimizers=other_optimizer)
        assert loaded.optimizer_states[0]["param_groups"][0][NAMES_KEY][0] == "inner.first.weight"
        assert other_optimizer.param_groups[0][NAMES_KEY] == own_names
        train(model["inner"], optimizer, range(2, 4))
        train(other["inner"], other_optimizer, range(2, 4))
        for name, parameter in model["inner"].named_parameters():
            assert torch.equal(other["inner"].get_parameter(name), parameter)

    def test_are_not_left_behind_in_an_optimizer_without_names(self, tmp_path):
        model = Model()
        optimizer = make_optimizer(model, "Adam")
        save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer)
        load_checkpoint(tmp_path).restore(model=model, optimizers=optimizer)
        assert all(NAMES_KEY not in group for group in optimizer.param_groups)

    def test_of_parameters_outside_the_model_are_their_places(self, tmp_path):
        def make():
            model, temperature = Model(), nn.Parameter(torch.ones(3))
            return model, temperature, optim.Adam([{"params": model.parameters()}, {"params": [temperature]}])

        def step(model, temperature, optimizer):
            optimizer.zero_grad()
            (model(torch.ones(1, 4)).sum() * temperature.sin().sum()).backward()
            optimizer.step()

        model, temperature, optimizer = make()
        step(model, temperature, optimizer)
        save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer)
        other = make()
        loaded = load_checkpoint(tmp_path).restore(model=other[0], optimizers=other[2])
        assert loaded.optimizer_states[0]["param_groups"][1][NAMES_KEY] == ["unnamed.1.0"]
        assert_same(other[2].state[other[1]], optimizer.state[temperature])
        assert not torch.equal(other[1], temperature)  # its value is nobody's to save but the user's
        with torch.no_grad():
            other[1].copy_(temperature)
        step(model, temperature, optimizer)
        step(*other)
        assert torch.equal(other[1], temperature)
        assert_same(dict(other[0].state_dict()), dict(model.state_dict()))

    def test_need_the_model(self, tmp_path):
        model = Model()
        save_checkpoint(tmp_path, step=1, model=model, optimizers=(optimizer := make_optimizer(model, "Adam")))
        with pytest.raises(StateMismatchError, match="no model was given"):
            load_checkpoint(tmp_path).restore(optimizers=optimizer)

    def test_order_the_groups_keys_and_the_states_keys(self):
        model = Model()
        optimizer = make_optimizer(model, "AdamW")
        train(model, optimizer, range(1))
        state = optimizer.state_dict()
        shuffled = {
            "state": {key: dict(reversed(value.items())) for key, value in reversed(state["state"].items())},
            "param_groups": [dict(reversed(group.items())) for group in state["param_groups"]],
        }
        names = group_names(optimizer, parameter_names(model))
        one, two = add_names(state, names), add_names(shuffled, names)
        assert str(one) == str(two)
        assert list(one["state"]) == list(range(6))
        assert one["state"][0]["exp_avg"].data_ptr() == optimizer.state[model.first.weight]["exp_avg"].data_ptr()
        assert NAMES_KEY not in optimizer.param_groups[0]


class TestGradientsThatCameLate:
    def test_leave_parameters_without_state_that_get_it_after_the_resume(self, tmp_path):
        model, other = Model(), Model(("second", "last", "first"))
        optimizer, other_optimizer = make_optimizer(model, "Adam"), make_optimizer(other, "Adam", groups_reversed=True)
        model.second.weight.requires_grad_(False)
        train(model, optimizer, range(2))
        assert model.second.weight not in optimizer.state
        save_checkpoint(tmp_path, step=2, model=model, optimizers=optimizer)
        load_checkpoint(tmp_path).restore(model=other, optimizers=other_optimizer)
        assert other.second.weight not in other_optimizer.state
        for unfrozen in (model, other):
            unfrozen.second.weight.requires_grad_(True)
        train(model, optimizer, range(2, 4))
        train(other, other_optimizer, range(2, 4))
        assert_same(by_name(other, other_optimizer), by_name(model, optimizer))

    def test_do_not_show_in_the_bytes(self, tmp_path):
        files = []
        for number, first in enumerate(("first", "last")):
            model = Model()
            optimizer = make_optimizer(model, "SGD momentum")
            # One parameter gets its gradient, and its state, a step before the others; the values are the same.
            for names in ({first}, {"first", "second", "last"} - {first}):
                for name, parameter in model.named_parameters():
                    parameter.grad = torch.ones_like(parameter) if name.split(".")[0] in names else None
                optimizer.step()
            optimizer.zero_grad()
            torch.manual_seed(0)
            files.append(save_checkpoint(tmp_path / str(number), step=1, model=model, optimizers=optimizer))
        assert files[0].optimizer_path.read_bytes() == files[1].optimizer_path.read_bytes()


class TestSeveralOptimizers:
    def make(self, order):
        model = Model(order)
        one = optim.AdamW([*model.first.parameters(), *model.second.parameters()])
        return model, [one, optim.SGD(model.last.parameters(), lr=0.1, momentum=0.9)]

    def step(self, model, optimizers, number):
        model.zero_grad()
        model(torch.full((1, 4), float(number))).pow(2).sum().backward()
        for optimizer in optimizers:
            optimizer.step()

    def test_each_get_their_own_state(self, tmp_path):
        model, optimizers = self.make(("first", "second", "last"))
        for number in range(2):
            self.step(model, optimizers, number)
        save_checkpoint(tmp_path, step=2, model=model, optimizers=optimizers)
        other, other_optimizers = self.make(("last", "second", "first"))
        load_checkpoint(tmp_path).restore(model=other, optimizers=tuple(other_optimizers))
        for number in range(2, 4):
            self.step(model, optimizers, number)
            self.step(other, other_optimizers, number)
        for one, two in zip(optimizers, other_optimizers, strict=True):
            assert_same(by_name(other, two), by_name(model, one))

    @pytest.mark.parametrize("count", [1, 3])
    def test_have_to_be_as_many_as_at_the_save(self, count, tmp_path):
        model, optimizers = self.make(("first", "second", "last"))
        save_checkpoint(tmp_path, step=2, model=model, optimizers=optimizers)
        with pytest.raises(StateMismatchError, match=f"the state of 2 optimizers, {count} were given"):
            load_checkpoint(tmp_path).restore(model=model, optimizers=(optimizers * 2)[:count])

    def test_have_to_come_in_the_order_of_the_save(self, tmp_path):
        model, optimizers = self.make(("first", "second", "last"))
        save_checkpoint(tmp_path, step=2, model=model, optimizers=optimizers)
        with pytest.raises(StateMismatchError, match="the state of AdamW as optimizer 0, and SGD was given"):
            load_checkpoint(tmp_path).restore(model=model, optimizers=optimizers[::-1])


class TestMismatch:
    """Of parameters; an optimizer without one of the model's parameters stands for a model that has got one."""

    @pytest.fixture
    def saved(self, tmp_path):
        model = Model()
        optimizer = make_optimizer(model, "AdamW")
        train(model, optimizer, range(2))
        save_checkpoint(tmp_path, step=2, model=model, optimizers=optimizer)
        return model, optimizer, load_checkpoint(tmp_path)

    def untouched(self, loaded, model, optimizer, **options):
        """The error of a restore that must not have changed anything."""
        before = copy.deepcopy((by_name(model, optimizer), dict(model.state_dict()), torch.get_rng_state()))
        with pytest.raises(StateMismatchError) as caught:
            loaded.restore(model=model, optimizers=optimizer, **options)
        assert_same((by_name(model, optimizer), dict(model.state_dict()), torch.get_rng_state()), before)
        return str(caught.value)

    def test_added_and_removed_parameters_are_listed_and_nothing_is_changed(self, saved):
        _, _, loaded = saved
        other = Model()
        other_optimizer = optim.AdamW([other.first.weight, nn.Parameter(torch.ones(2))])
        message = self.untouched(loaded, other, other_optimizer)
        assert "missing in the checkpoint: unnamed.0.1" in message
        for name in ("first.bias", "second.weight", "second.bias", "last.weight", "last.bias"):
            assert f"not in the optimizer: {name}" in message
        assert "first.weight" not in message

    def test_a_model_that_does_not_fit_leaves_the_optimizer_as_it_was(self, saved):
        _, _, loaded = saved
        other = Model()
        other_optimizer = make_optimizer(other, "AdamW")
        other.register_buffer("new", torch.zeros(1))
        assert "missing in the checkpoint: new" in self.untouched(loaded, other, other_optimizer)

    def test_with_strict_false_the_rest_is_loaded(self, saved):
        model, optimizer, loaded = saved
        other = Model(("last", "second", "first"))
        added = nn.Parameter(torch.ones(2))
        names = ("last.weight", "first.weight", "second.weight")
        groups = [{"params": [other.get_parameter(name) for name in names]}, {"params": [other.last.bias, added]}]
        other_optimizer = optim.AdamW(groups)
        with pytest.warns(InexactResumeWarning, match="betas was"):
            loaded.restore(model=other, optimizers=other_optimizer, strict=False)
        for name in (*names, "last.bias"):
            assert_same(other_optimizer.state[other.get_parameter(name)], optimizer.state[model.get_parameter(name)])
        assert added not in other_optimizer.state
        assert other_optimizer.param_groups[1]["lr"] == 0.02

    def test_parameters_in_other_groups_are_an_error(self, saved):
        _, _, loaded = saved
        other = Model()
        groups = [[other.first.weight], [p for p in other.parameters() if p is not other.first.weight]]
        other_optimizer = optim.AdamW([{"params": group} for group in groups])
        message = self.untouched(loaded, other, other_optimizer)
        assert "the same parameters in other groups: sizes [3, 3] and [1, 5]" in message
        with pytest.warns(InexactResumeWarning, match="betas was"):
            loaded.restore(model=other, optimizers=other_optimizer, strict=False)
        assert len(other_optimizer.state) == 6

    @pytest.mark.parametrize("strict", [True, False])
    def test_another_number_of_groups_is_an_error(self, saved, strict):
        _, _, loaded = saved
        other = Model()
        assert "sizes [3, 3] and [6]" in self.untouched(loaded, other, optim.AdamW(other.parameters()), strict=strict)

    def test_groups_without_parameters_do_not_hinder_the_others(self, tmp_path):
        def make(order):
            model = Model()
            groups = [
                {"params": [model.first.weight], "lr": 0.1},
                {"params": [model.first.bias], "lr": 0.2},
                {"params": [], "lr": 0.3},
                {"params": [], "lr": 0.4},
            ]
            return model, optim.SGD([groups[place] for place in order], lr=9.0)

        model, optimizer = make([0, 1, 2, 3])
        save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer)
        for order, rates in (([1, 2, 0, 3], [0.2, 0.3, 0.1, 0.4]), ([3, 2, 1, 0], [0.3, 0.4, 0.2, 0.1])):
            other, other_optimizer = make(order)
            load_checkpoint(tmp_path).restore(model=other, optimizers=other_optimizer)
            assert [group["lr"] for group in other_optimizer.param_groups] == rates

    def test_a_checkpoint_without_optimizers_has_none_to_restore(self, tmp_path):
        model = Model()
        save_checkpoint(tmp_path, step=1, model=model)
        with pytest.raises(MissingOptimizerError, match="has no optimizer state"):
            load_checkpoint(tmp_path).restore(model=model, optimizers=make_optimizer(model, "SGD"))


class TestStateWithoutNames:
    """Of files that others wrote: by position, as torch does, but not without a look at the shapes."""

    def state(self, model, optimizer):
        train(model, optimizer, range(2))
        return copy.deepcopy(optimizer.state_dict())

    def test_is_loaded_by_position(self):
        model, other = Model(), Model()
        optimizer, other_optimizer = make_optimizer(model, "Adam"), make_optimizer(other, "Adam")
        state = self.state(model, optimizer)
        load_matched_state(other_optimizer, match_optimizer_state(other_optimizer, state, parameter_names(other)))
        other.load_state_dict(model.state_dict())
        assert_same(by_name(other, other_optimizer), by_name(model, optimizer))

    def test_of_other_group_sizes_is_an_error(self):
        model, other = Model(), Model()
        state = self.state(model, make_optimizer(model, "Adam"))
        optimizer = optim.Adam(other.parameters())
        with pytest.raises(StateMismatchError, match=r"expected groups of \[6\] parameters, found \[3, 3\]"):
            match_optimizer_state(optimizer, state, parameter_names(other))

    def test_in_another_order_is_an_error_where_a_shape_shows_it(self):
        model, other = Model(), Model(("last", "first", "second"))
        state = self.state(model, make_optimizer(model, "Adam"))
        optimizer = make_optimizer(other, "Adam")
        message = r"exp_avg of parameter 0 \(last.weight\) has shape \(5, 4\), the parameter \(2, 5\)"
        with pytest.raises(StateMismatchError, match=message):
            match_optimizer_state(optimizer, state, parameter_names(other))

    def test_in_some_groups_only_is_looked_at_as_well(self):
        model, other = Model(), Model(("last", "first", "second"))
        state = self.state(model, make_optimizer(model, "Adam"))
        state["param_groups"][1][NAMES_KEY] = ["a", "b", "c"]
        with pytest.raises(StateMismatchError, match=r"exp_avg of parameter 0 .* has shape"):
            match_optimizer_state(make_optimizer(other, "Adam"), state, parameter_names(other))


class TestShapes:
    """A file may hold anything; torch takes it, and fails at the first step or spreads one value over all."""

    @pytest.mark.parametrize("shape", [(1,), (5, 4), ()])
    def test_state_of_another_shape_is_an_error(self, shape):
        model, other = Model(), Model()
        optimizer, other_optimizer = make_optimizer(model, "Adam"), make_optimizer(other, "Adam")
        train(model, optimizer, range(1))
        state = copy.deepcopy(named_optimizer_state(optimizer, parameter_names(model)))
        state["state"][1]["exp_avg_sq"] = torch.zeros(shape)
        with pytest.raises(StateMismatchError, match=r"exp_avg_sq of parameter 1 \(second.weight\) has shape"):
            match_optimizer_state(other_optimizer, state, parameter_names(other))

    def test_an_optimizer_from_elsewhere_may_have_its_own(self):
        class FactoredAdam(optim.Adam):
            """Stands for one that keeps something smaller under the same name."""

        FactoredAdam.__module__ = "elsewhere"
        model = Model()
        optimizer = FactoredAdam(model.parameters())
        train(model, optimizer, range(1))
        state = copy.deepcopy(named_optimizer_state(optimizer, parameter_names(model)))
        state["state"][0]["exp_avg_sq"] = torch.zeros(2)
        matched = match_optimizer_state(optimizer, state, parameter_names(model))
        assert matched["state"][0]["exp_avg_sq"].shape == (2,)


class TestFunctions:
    def test_naming_a_state_copies_no_tensor_and_changes_nothing(self):
        model = Model()
        optimizer = make_optimizer(model, "Adam")
        train(model, optimizer, range(1))
        before = copy.deepcopy(optimizer.state_dict())
        named = named_optimizer_state(optimizer, parameter_names(model))
        assert_same(optimizer.state_dict(), before)
        assert named["state"][3]["exp_avg"] is optimizer.state[model.first.bias]["exp_avg"]

    def test_matching_by_name_leaves_the_saved_state_alone(self):
        model, other = Model(), Model(("last", "first", "second"))
        optimizer = make_optimizer(model, "Adam")
        train(model, optimizer, range(1))
        state = named_optimizer_state(optimizer, parameter_names(model))
        before = copy.deepcopy(state)
        names = group_names(make_optimizer(other, "Adam", groups_reversed=True), parameter_names(other))
        matched = match_by_name(state, names)
        assert_same(state, before)
        assert [group["params"] for group in matched["param_groups"]] == [[0, 1, 2], [3, 4, 5]]
        assert matched["param_groups"][0]["lr"] == 0.02
        assert matched["state"][0] is state["state"][5]

    def test_state_that_belongs_to_no_parameter_is_kept(self, tmp_path):
        model = Model()
        optimizer = make_optimizer(model, "Adam")
        train(model, optimizer, range(1))
        optimizer.state["calls"] = {"count": 3}
        optimizer.state["seen"] = torch.tensor([1.0, 2.0])
        save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer)
        other = Model(("last", "first", "second"))
        other_optimizer = make_optimizer(other, "Adam")
        load_checkpoint(tmp_path).restore(model=other, optimizers=other_optimizer)
        assert other_optimizer.state["calls"] == {"count": 3}
        assert torch.equal(other_optimizer.state["seen"], torch.tensor([1.0, 2.0]))
        assert_same(by_name(other, other_optimizer), by_name(model, optimizer))


class KeepsATable(optim.SGD):
    """As the first RAdam, whose groups have a table that each step fills."""

    def __init__(self, parameters, lr=0.01):
        super().__init__(parameters, lr=lr)
        self.defaults["buffer"] = [[None, None] for _ in range(2)]
        for group in self.param_groups:
            group["buffer"] = self.defaults["buffer"]

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            group["buffer"][0] = [1, 0.5]


class TestSettings:
    def restored(self, tmp_path, build_saved, build):
        model = nn.Linear(2, 1)
        optimizer = build_saved(model.parameters())
        model(torch.ones(2)).backward()
        optimizer.step()
        save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer)
        target = nn.Linear(2, 1)
        load_checkpoint(tmp_path).restore(model=target, optimizers=(other := build(target.parameters())))
        return other

    def test_tables_that_an_optimizer_fills_are_none(self, tmp_path):
        with warnings.catch_warnings():
            warnings.simplefilter("error", InexactResumeWarning)
            restored = self.restored(tmp_path, KeepsATable, KeepsATable)
        assert restored.param_groups[0]["buffer"] == [[1, 0.5], [None, None]]

    def test_lists_are_some(self, tmp_path):
        with pytest.warns(InexactResumeWarning, match=r"betas was \[0.9, 0.95\] at the save and is \[0.8, 0.95\]"):
            self.restored(
                tmp_path,
                lambda parameters: optim.AdamW(parameters, betas=[0.9, 0.95]),
                lambda parameters: optim.AdamW(parameters, betas=[0.8, 0.95]),
            )


class Wraps:
    """Another optimizer, as many Lookahead wrappers do: not derived from torch's, and without ``state``."""

    def __init__(self, optimizer):
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups

    def state_dict(self):
        return self.optimizer.state_dict()

    def load_state_dict(self, state):
        self.optimizer.load_state_dict(state)
        self.param_groups = self.optimizer.param_groups


def test_a_wrapper_without_state_is_restored(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    saved = save_checkpoint(tmp_path, step=1, model=model, optimizers=[Wraps(optimizer)])
    other = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    load_checkpoint(saved).restore(model=model, optimizers=[Wraps(other)])
    assert other.state[model.weight]["momentum_buffer"].equal(optimizer.state[model.weight]["momentum_buffer"])


class Around(torch.optim.Optimizer):
    """Whose state has another form than torch's, as ``Lookahead`` of some libraries."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.base, self.param_groups, self.defaults = base, base.param_groups, base.defaults

    def step(self, closure: Any = None) -> Any:
        return self.base.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"around": {"step": 1}, "base": self.base.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state.keys() == {"around", "base"}
        self.base.load_state_dict(state["base"])


class WithGroups(Around):
    """Whose state has torch's groups, and the rest under other names, as ``Lookahead`` of other libraries."""

    def state_dict(self) -> dict[str, Any]:
        state = self.base.state_dict()
        return {"fast_state": state["state"], "slow_state": {}, "param_groups": state["param_groups"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.base.load_state_dict({"state": state["fast_state"], "param_groups": state["param_groups"]})


@pytest.mark.parametrize("kind", [Around, WithGroups])
def test_one_whose_state_has_another_form_is_taken_as_it_is(kind: type[Around], tmp_path: Path) -> None:
    def trained(steps: int, checkpoint: Any = None) -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        model = nn.Linear(2, 1)
        optimizer = kind(torch.optim.Adam(model.parameters(), 0.1))
        if checkpoint is not None:
            load_checkpoint(checkpoint).restore(model=model, optimizers=optimizer)
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.ones(1, 2)).square().sum().backward()
            optimizer.step()
        return model, save_checkpoint(tmp_path, step=steps, model=model, optimizers=optimizer)

    whole = trained(4)[0]
    again = trained(2, trained(2)[1])[0]
    assert all(map(torch.equal, again.state_dict().values(), whole.state_dict().values()))


class ByAddress(torch.optim.SGD):
    """As the Lookahead of many projects: it saves its slow weights by ``id(parameter)``, and finds them never again."""

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        slow = {(id(key) if isinstance(key, torch.Tensor) else key): value for key, value in self.state.items()}
        return {**state, "state": {}, "slow_state": slow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict({**state, "state": {}})
        self.state.update(state["slow_state"])


def test_state_by_addresses_is_said_once_and_restored_as_it_is(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    optimizer = ByAddress(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    with pytest.warns(InexactResumeWarning, match=r"ByAddress has state by id\(parameter\), .*: slow_state\. "):
        saved = save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer)
    save_checkpoint(tmp_path, step=2, model=model, optimizers=optimizer)  # here, a warning is an error
    load_checkpoint(saved).restore(model=model, optimizers=optimizer)
    assert {*optimizer.state} == {*map(id, model.parameters())}
