"""A module's state: under its author's names, whatever wraps it, and all of it or nothing."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from neuromanifold_gpt import latest_checkpoint, load_checkpoint, save_checkpoint
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning, StateMismatchError
from neuromanifold_gpt.state.module_loading import load_module_state, under_own_names
from neuromanifold_gpt.state.modules import module_state, parameter_names, unwrap


class Versioned(nn.Module):
    """Like torch's own layers that have changed: a state without a version is taken for an old one."""

    _version = 2

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(3))

    def forward(self, x):
        return x * self.scale

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *arguments):
        if (local_metadata.get("version") or 1) < 2:
            state_dict[prefix + "scale"] = state_dict[prefix + "scale"] * 100
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *arguments)


class Model(nn.Module):
    """Something of everything: buffers, a frozen parameter, an extra state."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), Versioned())
        self.head = nn.Linear(3, 2)
        self.frozen = nn.Parameter(torch.rand(2), requires_grad=False)
        self.register_buffer("mean", torch.rand(4))
        self.register_buffer("scratch", torch.rand(4), persistent=False)
        self.epochs = 0

    def forward(self, x):
        return self.head(self.body(x)) + self.frozen

    def get_extra_state(self):
        return {"epochs": self.epochs}

    def set_extra_state(self, state):
        self.epochs = state["epochs"]


NAMES = [
    *("frozen", "mean", "_extra_state"),
    *("body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"),
    *("body.1.running_mean", "body.1.running_var", "body.1.num_batches_tracked"),
    *("body.2.scale", "head.weight", "head.bias"),
]


def plain(model):
    return model


def compiled(model):
    return torch.compile(model, backend="eager")


def part_compiled(model):
    model.body = torch.compile(model.body, backend="eager")
    model.head = torch.compile(model.head, backend="eager")
    return model


def layers_compiled(model):
    for index in range(3):
        model.body[index] = torch.compile(model.body[index], backend="eager")
    return model


def both_compiled(model):
    return compiled(part_compiled(model))


def data_parallel(model):
    return nn.DataParallel(model)


def distributed(model):
    return nn.parallel.DistributedDataParallel(model)


def distributed_compiled(model):
    return distributed(compiled(model))


def compiled_distributed(model):
    return compiled(distributed(model))


def distributed_layers_compiled(model):
    return distributed(layers_compiled(model))


WRAPPERS = [plain, compiled, part_compiled, layers_compiled, both_compiled, data_parallel]
DISTRIBUTED = [distributed, distributed_compiled, compiled_distributed, distributed_layers_compiled]


def trained_model():
    """A model in which nothing is as it was made."""
    torch.manual_seed(1)
    model = Model()
    model(torch.rand(5, 3))  # the running means of the batch norm
    model.epochs = 7
    return model


def values(model):
    """The state dict under clean names, as values that ``==`` compares."""
    inner = unwrap(model)
    return {
        name.replace("_orig_mod.", ""): value.tolist() if isinstance(value, torch.Tensor) else value
        for name, value in inner.state_dict().items()
    }


@pytest.fixture(scope="module")
def process_group(tmp_path_factory):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path_factory.mktemp('group')}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def wrapped(request):
    """What makes a wrapper; a process group is there where it is needed."""
    if request.param in DISTRIBUTED:
        request.getfixturevalue("process_group")
    return request.param


every_wrapper = pytest.mark.parametrize("wrapped", [*WRAPPERS, *DISTRIBUTED], indirect=True, ids=lambda w: w.__name__)


class TestWrappers:
    @every_wrapper
    def test_leave_no_trace_in_the_names(self, wrapped):
        model = wrapped(trained_model())
        state = module_state(model)
        assert sorted(state) == sorted(NAMES)
        assert sorted(state._metadata) == sorted(Model().state_dict()._metadata)
        parameters = {name for name in NAMES if "running" not in name and "num_" not in name} - {"mean", "_extra_state"}
        assert set(parameter_names(model).values()) == parameters

    @every_wrapper
    def test_leave_no_trace_in_the_bytes(self, wrapped, tmp_path):
        bare, model = trained_model(), wrapped(trained_model())
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (bare, model)]
        state = torch.get_rng_state()
        one = save_checkpoint(tmp_path / "bare", step=1, model=bare, optimizers=optimizers[0])
        assert torch.equal(torch.get_rng_state(), state)
        other = save_checkpoint(tmp_path / "wrapped", step=1, model=model, optimizers=optimizers[1])
        assert one.model_path.read_bytes() == other.model_path.read_bytes()
        assert one.optimizer_path.read_bytes() == other.optimizer_path.read_bytes()

    @every_wrapper
    def test_take_what_any_other_has_saved(self, wrapped, tmp_path):
        target_and_saved = [(plain, wrapped), (wrapped, plain), (wrapped, part_compiled), (layers_compiled, wrapped)]
        for number, (of_target, of_saved) in enumerate(target_and_saved):
            saved = of_saved(trained_model())
            save_checkpoint(tmp_path / str(number), step=1, model=saved)
            target = of_target(Model())
            load_checkpoint(tmp_path / str(number)).restore(model=target)
            assert values(target) == values(saved)

    @every_wrapper
    def test_take_state_that_still_has_their_names(self, wrapped):
        model = wrapped(trained_model())
        target = Model()
        load_module_state(target, unwrap(model).state_dict())
        assert values(target) == values(model)

    def test_of_other_kinds_are_left_alone(self):
        model = Model()
        assert unwrap(model) is model
        assert unwrap(compiled(compiled_inner := model)) is compiled_inner
        assert unwrap(data_parallel(compiled(model))) is model

    def test_compute_the_same_after_a_restore(self, tmp_path):
        torch.manual_seed(0)
        model, target = compiled(nn.Linear(3, 2)), compiled(nn.Linear(3, 2))
        x = torch.rand(4, 3)
        expected = model(x)
        save_checkpoint(tmp_path, step=1, model=model)
        assert not torch.equal(target(x), expected)
        load_checkpoint(tmp_path).restore(model=target)
        assert torch.equal(target(x), expected)


class TestState:
    def test_has_the_live_tensors_and_no_copies(self):
        model = Model()
        assert module_state(compiled(model))["head.weight"].data_ptr() == model.head.weight.data_ptr()

    def test_of_buffers_frozen_parameters_and_extra_state_comes_back(self, tmp_path):
        model = trained_model()
        save_checkpoint(tmp_path, step=1, model=model)
        target = Model()
        assert not set(map(str, values(target).items())) & {str(("mean", model.mean.tolist())), "epochs"}
        scratch = target.scratch.clone()
        load_checkpoint(tmp_path).restore(model=target)
        assert values(target) == values(model)
        assert target.epochs == 7
        assert not target.frozen.requires_grad
        assert target.body[1].num_batches_tracked == 1
        assert torch.equal(target.scratch, scratch)

    def test_of_every_kind_keeps_dtype_shape_and_memory_format(self, tmp_path):
        class Odd(nn.Module):
            def __init__(self, fill):
                super().__init__()
                self.brief = nn.Parameter(torch.full((3,), fill, dtype=torch.bfloat16))
                self.long_ = nn.Parameter(torch.full((2, 2), fill, dtype=torch.float64))
                self.register_buffer("empty", torch.zeros(0, 3))
                self.register_buffer("number", torch.tensor(fill))
                self.register_buffer("flags", torch.tensor([True, fill > 1]))
                self.register_buffer("imaginary", torch.tensor([complex(fill, 1)]))
                images = torch.full((2, 3, 4, 4), fill).to(memory_format=torch.channels_last)
                self.register_buffer("images", images)

        save_checkpoint(tmp_path, step=1, model=Odd(2.5))
        target = Odd(0.5)
        loaded = load_checkpoint(tmp_path).restore(model=target)
        for name, expected in Odd(2.5).state_dict().items():
            for found in (target.state_dict()[name], loaded.model_state[name]):
                assert torch.equal(found, expected)
                assert (found.dtype, found.stride()) == (expected.dtype, expected.stride())

    def test_keeps_the_version_that_each_module_had(self, tmp_path):
        model = trained_model()
        save_checkpoint(tmp_path, step=1, model=model)
        state = load_checkpoint(tmp_path).model_state
        assert state._metadata == model.state_dict()._metadata
        for wrap in (plain, compiled, layers_compiled, part_compiled):
            target = wrap(Model())
            load_module_state(target, state)
            assert values(target) == values(model)

    def test_without_versions_is_loaded_as_torch_does(self):
        model, target, by_torch = trained_model(), Model(), Model()
        state = dict(model.state_dict())
        load_module_state(target, state)
        by_torch.load_state_dict(state)
        assert values(target) == values(by_torch)
        assert torch.equal(target.body[2].scale, model.body[2].scale * 100)

    def test_is_left_as_it_was_given(self):
        state = trained_model().state_dict()
        names, metadata = list(state), copy.deepcopy(state._metadata)
        for target in (Model(), layers_compiled(Model())):
            load_module_state(target, state)
        assert (list(state), state._metadata) == (names, metadata)

    def test_may_be_loaded_again_after_training_went_on(self, tmp_path):
        model = trained_model()
        save_checkpoint(tmp_path, step=1, model=model)
        loaded, target = load_checkpoint(tmp_path), Model()
        for _ in range(2):
            loaded.restore(model=target)
            assert values(target) == values(model)
            with torch.no_grad():
                for parameter in target.parameters():
                    parameter.mul_(3)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.embedding(x))


class TestTiedWeights:
    def test_are_stored_once_and_stay_tied(self, tmp_path):
        model = Tied()
        checkpoint = save_checkpoint(tmp_path, step=1, model=model)
        state = torch.load(checkpoint.model_path, weights_only=True)["state_dict"]
        assert state["head.weight"].data_ptr() == state["embedding.weight"].data_ptr()
        state = load_checkpoint(tmp_path).model_state
        assert state["head.weight"].data_ptr() == state["embedding.weight"].data_ptr()
        target = Tied()
        load_checkpoint(tmp_path).restore(model=target)
        assert target.head.weight is target.embedding.weight
        assert torch.equal(target.head.weight, model.head.weight)

    def test_have_one_name_and_one_optimizer_state(self, tmp_path):
        def steps(model, optimizer, count):
            for _ in range(count):
                optimizer.zero_grad()
                model(torch.arange(5)).pow(2).sum().backward()
                optimizer.step()

        model = Tied()
        optimizer = torch.optim.Adam(model.parameters())
        assert list(parameter_names(compiled(model)).values()) == ["embedding.weight"]
        steps(model, optimizer, 3)
        save_checkpoint(tmp_path, step=3, model=model, optimizers=optimizer)
        target = Tied()
        target_optimizer = torch.optim.Adam(target.parameters())
        load_checkpoint(tmp_path).restore(model=target, optimizers=target_optimizer)
        steps(model, optimizer, 2)
        steps(target, target_optimizer, 2)
        assert torch.equal(target.head.weight, model.head.weight)

    def test_that_are_tied_only_after_the_load_get_their_value(self, tmp_path):
        save_checkpoint(tmp_path, step=1, model=(model := Tied()))
        target = Tied()
        target.head.weight = nn.Parameter(torch.zeros(5, 3))
        load_checkpoint(tmp_path).restore(model=target)
        assert torch.equal(target.head.weight, model.head.weight)
        assert torch.equal(target.embedding.weight, model.embedding.weight)


class TestMismatch:
    def other_model(self):
        model = Model()
        model.added = nn.Linear(1, 1)
        model.head = nn.Linear(3, 4)
        del model.body[2]
        return model

    @pytest.mark.parametrize("wrap", [plain, compiled, layers_compiled])
    def test_is_an_error_that_lists_every_name_and_leaves_the_model_as_it_was(self, wrap, tmp_path):
        save_checkpoint(tmp_path, step=1, model=trained_model())
        target = self.other_model()
        target.body[0] = wrap(target.body[0]) if wrap is not layers_compiled else compiled(target.body[0])
        target = wrap(target) if wrap is compiled else target
        before, generator = values(target), torch.get_rng_state()
        with pytest.raises(StateMismatchError) as caught:
            load_checkpoint(tmp_path).restore(model=target)
        for problem in (
            "missing in the checkpoint: added.weight",
            "missing in the checkpoint: added.bias",
            "not in the model: body.2.scale",
            "head.weight: shape (2, 3) in the checkpoint, (4, 3) in the model",
            "head.bias: shape (2,) in the checkpoint, (4,) in the model",
        ):
            assert problem in str(caught.value)
        assert "frozen" not in str(caught.value)
        assert values(target) == before
        assert torch.equal(torch.get_rng_state(), generator)

    def test_of_many_names_is_not_listed_endlessly(self):
        target = nn.Sequential(*[nn.Linear(1, 1) for _ in range(50)])
        with pytest.raises(StateMismatchError, match="and 88 more") as caught:
            load_module_state(target, {})
        assert str(caught.value).count("missing in the checkpoint") == 12

    def test_with_strict_false_loads_what_fits(self, tmp_path):
        model = trained_model()
        save_checkpoint(tmp_path, step=1, model=model)
        target = Model()
        target.added = nn.Linear(1, 1)
        del target.body[2]
        added = target.added.weight.clone()
        load_checkpoint(tmp_path).restore(model=target, strict=False)
        expected = values(model)
        expected.pop("body.2.scale")
        found = values(target)
        assert found.pop("added.weight") == added.tolist()
        found.pop("added.bias")
        assert found == expected

    def test_of_a_shape_is_an_error_even_with_strict_false(self, tmp_path):
        save_checkpoint(tmp_path, step=1, model=trained_model())
        target = self.other_model()
        before = values(target)
        with pytest.raises(StateMismatchError, match=r"head.weight: shape") as caught:
            load_checkpoint(tmp_path).restore(model=target, strict=False)
        assert "added" not in str(caught.value)
        assert values(target) == before

    def test_with_a_shape_that_is_not_known_yet_is_none(self, tmp_path):
        model, target = (nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d()) for _ in range(2))
        model(torch.rand(4, 2))
        save_checkpoint(tmp_path, step=1, model=model)
        load_checkpoint(tmp_path).restore(model=target)
        assert values(target) == values(model)

    def test_of_nothing_but_an_order_is_none(self):
        model = trained_model()
        state = dict(reversed(model.state_dict().items()))
        state["body.2.scale"] = state["body.2.scale"] / 100  # without metadata, see above
        target = Model()
        load_module_state(target, state)
        assert torch.equal(target.head.weight, model.head.weight)

    def test_is_found_without_loading_anything(self):
        model = Model()
        before = values(model)
        renamed = under_own_names(layers_compiled(model), trained_model().state_dict())
        assert "body.0._orig_mod.weight" in renamed
        assert values(model) == before


class Grows(nn.Module):
    """A bank that is longer after each step."""

    def __init__(self, rows=0):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.register_buffer("bank", torch.rand(rows, 3))


class GrowsOnLoad(Grows):
    def _load_from_state_dict(self, state_dict, prefix, *arguments):
        self.bank = torch.zeros_like(state_dict[f"{prefix}bank"])
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class MadeOnLoad(GrowsOnLoad):
    """As what the first batch makes."""

    def __init__(self, rows=0):
        super().__init__(rows)
        if not rows:
            del self.bank

    def _load_from_state_dict(self, state_dict, prefix, *arguments):
        self.register_buffer("bank", torch.zeros_like(state_dict[f"{prefix}bank"]))
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class GrowsInAHook(Grows):
    def __init__(self, rows=0):
        super().__init__(rows)
        self.register_load_state_dict_pre_hook(self.resize)

    @staticmethod
    def resize(module, state_dict, prefix, *arguments):
        module.bank = torch.zeros_like(state_dict[f"{prefix}bank"])


class GrowsAsAWhole(Grows):
    def load_state_dict(self, state_dict, *arguments, **options):
        self.bank = torch.zeros_like(state_dict["bank"])
        return super().load_state_dict(state_dict, *arguments, **options)


class FailsOnLoad(Grows):
    def _load_from_state_dict(self, state_dict, prefix, *arguments):
        raise KeyError("a bank of another kind")


class TestPartsThatLoadInAWayOfTheirOwn:
    @pytest.mark.parametrize("kind", [GrowsOnLoad, MadeOnLoad, GrowsInAHook])
    @pytest.mark.parametrize("wrap", [plain, compiled])
    def test_may_resize_or_make_what_they_load(self, kind, wrap, tmp_path):
        save_checkpoint(tmp_path, step=1, model=(model := nn.Sequential(nn.Linear(3, 3), kind(5))))
        target = nn.Sequential(nn.Linear(3, 3), wrap(kind()))
        load_checkpoint(tmp_path).restore(model=target)
        assert values(target) == values(model)

    @pytest.mark.parametrize("kind", [GrowsOnLoad, MadeOnLoad, GrowsInAHook, GrowsAsAWhole])
    def test_may_be_the_model(self, kind, tmp_path):
        save_checkpoint(tmp_path, step=1, model=(model := kind(5)))
        load_checkpoint(tmp_path).restore(model=(target := kind()))
        assert values(target) == values(model)

    @pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:Please use quant_min")
    def test_observers_of_torch_are_some(self, tmp_path):
        def prepared():
            model = nn.Sequential(torch.ao.quantization.QuantStub(), nn.Linear(3, 4))
            model.qconfig = torch.ao.quantization.get_default_qat_qconfig("x86")
            return torch.ao.quantization.prepare_qat(model)

        model = prepared()
        model(torch.rand(2, 3))
        save_checkpoint(tmp_path, step=1, model=model)
        load_checkpoint(tmp_path).restore(model=(target := prepared()))
        assert target[1].weight_fake_quant.scale.shape == (4,)
        assert values(target) == values(model)

    def test_may_stand_beside_shapes_that_are_not_known_yet(self, tmp_path):
        model, target = (nn.Sequential(nn.LazyLinear(3), GrowsOnLoad(rows)) for rows in (5, 0))
        model[0](torch.rand(4, 2))
        save_checkpoint(tmp_path, step=1, model=model)
        load_checkpoint(tmp_path).restore(model=target)
        assert values(target) == values(model)

    @pytest.mark.parametrize("kind", [Grows, GrowsAsAWhole])
    def test_are_not_those_that_load_as_all_do(self, kind, tmp_path):
        save_checkpoint(tmp_path, step=1, model=nn.Sequential(kind(5)))
        with pytest.raises(StateMismatchError, match=r"0.bank: shape \(5, 3\)"):
            load_checkpoint(tmp_path).restore(model=nn.Sequential(kind()))

    @pytest.mark.parametrize(
        "layer", [nn.BatchNorm1d, lambda width: nn.utils.parametrizations.weight_norm(nn.Linear(width, 3))]
    )
    def test_are_left_as_they_were_where_another_part_does_not_fit(self, layer, tmp_path):
        save_checkpoint(tmp_path, step=1, model=nn.Sequential(GrowsOnLoad(5), layer(3)))
        before = values(target := nn.Sequential(GrowsOnLoad(), layer(4)))
        with pytest.raises(StateMismatchError, match="shape"):
            load_checkpoint(tmp_path).restore(model=target)
        assert values(target) == before

    def test_that_fail_are_a_mismatch_and_the_rest_is_as_it_was(self, tmp_path):
        save_checkpoint(tmp_path, step=1, model=nn.Sequential(nn.Linear(3, 3), FailsOnLoad(5)))
        before = values(target := nn.Sequential(nn.Linear(3, 3), FailsOnLoad(5)))
        with pytest.raises(StateMismatchError, match="a bank of another kind"):
            load_checkpoint(tmp_path).restore(model=target)
        assert values(target) == before


class TestFrozenParametersOfARestore:
    """What a loop itself sets in each step, need not be said."""

    @staticmethod
    def train(directory, *, toggles, freezes=False):
        generator, critic = nn.Linear(1, 1), nn.Linear(1, 1)
        critic.requires_grad_(not freezes)
        optimizers = [torch.optim.SGD(network.parameters(), 0.1) for network in (critic, generator)]
        parts = {"model": nn.ModuleDict({"generator": generator, "critic": critic}), "optimizers": optimizers}
        if newest := latest_checkpoint(directory):
            load_checkpoint(newest).restore(**parts)
        for network in (critic, generator):
            if toggles:
                critic.requires_grad_(network is critic)
                generator.requires_grad_(network is generator)
            parts["model"].zero_grad()
            critic(generator(torch.ones(1, 1))).sum().backward()
            for optimizer in optimizers[network is generator :][:1]:
                optimizer.step()
        save_checkpoint(directory, step=1, **parts)

    def test_that_each_step_toggles_are_not_said(self, tmp_path):
        for _ in range(3):
            self.train(tmp_path, toggles=True)  # here, a warning is an error

    def test_others_are_said_when_all_have_stepped(self, tmp_path):
        self.train(tmp_path, toggles=False)
        with pytest.warns(InexactResumeWarning, match=r"had set otherwise: critic\.weight; critic\.bias\."):
            self.train(tmp_path, toggles=False, freezes=True)

    def test_of_optimizers_without_hooks_at_once(self, tmp_path):
        model = nn.Linear(1, 1)
        save_checkpoint(tmp_path, step=1, model=model, optimizers=torch.optim.SGD(model.parameters(), 0.1))

        class Bare(torch.optim.SGD):
            def __init__(self, parameters):
                super().__init__(parameters, 0.1)
                del self._optimizer_step_post_hooks

        Bare.__name__ = "SGD"
        optimizer = Bare(model.requires_grad_(False).parameters())
        with pytest.warns(InexactResumeWarning, match="had set otherwise: weight; bias"):
            load_checkpoint(tmp_path).restore(model=model, optimizers=optimizer)


class TestFabricsWrappers:
    """Within a container: torch asks them for their state, and then loads past them."""

    def test_are_restored_and_load_into_plain_models(self, tmp_path):
        fabric = pytest.importorskip("lightning.fabric").Fabric(accelerator="cpu", devices=1)

        def networks(wrap):
            parts = {"a": wrap(nn.Sequential(Versioned(), nn.BatchNorm1d(3))), "b": wrap(nn.Linear(3, 2))}
            return nn.ModuleDict({**parts, "plain": nn.Linear(1, 1)})

        saved = networks(fabric.setup_module)
        checkpoint = save_checkpoint(tmp_path, step=1, model=saved)
        assert "a.0.scale" in load_checkpoint(checkpoint).model_state
        for wrap in (fabric.setup_module, lambda module: module):
            other = networks(wrap)
            load_checkpoint(checkpoint).restore(model=other)
            found = other.state_dict()
            assert all(torch.equal(value, found[name]) for name, value in saved.state_dict().items())

    def test_that_do_not_fit_are_told_by_name(self, tmp_path):
        fabric = pytest.importorskip("lightning.fabric").Fabric(accelerator="cpu", devices=1)
        checkpoint = save_checkpoint(tmp_path, step=1, model=nn.ModuleDict({"a": fabric.setup_module(nn.Linear(2, 2))}))
        other = nn.ModuleDict({"a": fabric.setup_module(nn.Linear(2, 2, bias=False))})
        with pytest.raises(StateMismatchError, match=r"not in the model: a\.bias"):
            load_checkpoint(checkpoint).restore(model=other)
