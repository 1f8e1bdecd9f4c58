"""A save in the middle of an accumulation window stores the gradients, and one after a step does not."""

from __future__ import annotations

import copy
import gc
import threading
import warnings

import pytest
import torch
from torch import nn, optim

from neuromanifold_gpt import load_checkpoint, save_checkpoint
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.state.gradients import capture_gradients


def make() -> tuple[nn.Module, optim.Optimizer]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    return model, optim.AdamW(model.parameters(), lr=0.1)


def backward(model: nn.Module, number: int, features: int = 4) -> None:
    (model(torch.full((3, features), 0.5 + number)) ** 2).sum().backward()


def unused_gradients(model: nn.Module, optimizers: list[optim.Optimizer]) -> dict[str, torch.Tensor]:
    return capture_gradients(model, optimizers)["unused"]


ALL = {"0.weight", "0.bias", "1.weight", "1.bias"}


@pytest.mark.parametrize("windows", range(3))
@pytest.mark.parametrize("set_to_none", [True, False])
def test_what_was_added_since_the_last_step_is_unused(windows, set_to_none):
    model, optimizer = make()
    for window in range(windows):
        optimizer.zero_grad(set_to_none)
        backward(model, window)
        optimizer.step()
        assert unused_gradients(model, [optimizer]) == {}
    optimizer.zero_grad(set_to_none)
    for number in range(2):
        backward(model, number)
        assert set(unused_gradients(model, [optimizer])) == ALL


def test_evaluation_after_the_step_changes_nothing():
    model, optimizer = make()
    backward(model, 0)
    optimizer.step()
    with torch.no_grad():
        model(torch.ones(1, 4))
    with torch.inference_mode():
        model(torch.ones(1, 4))
    assert unused_gradients(model, [optimizer]) == {}


def test_several_optimizers_are_told_apart():
    """Of a GAN, say: what the second update adds to the gradients of the first network."""
    model, _ = make()
    first, second = (optim.SGD(part.parameters(), lr=0.1) for part in model)
    backward(model, 0)
    first.step()
    second.step()
    assert unused_gradients(model, [first, second]) == {}
    second.zero_grad()
    backward(model, 1)
    second.step()
    assert set(unused_gradients(model, [first, second])) == {"0.weight", "0.bias"}


def test_parameters_of_no_optimizer_may_be_used_by_the_loop_itself():
    model, _ = make()
    optimizer = optim.SGD(model[1].parameters(), lr=0.1)
    backward(model, 0)
    optimizer.step()
    assert set(unused_gradients(model, [optimizer])) == {"0.weight", "0.bias"}


def test_a_closure_uses_what_it_computes():
    model, _ = make()
    optimizer = optim.LBFGS(model.parameters())

    def closure() -> float:
        optimizer.zero_grad()
        backward(model, 0)
        return 0.0

    optimizer.step(closure)
    assert unused_gradients(model, [optimizer]) == {}


def test_a_compiled_step_is_not_noted_and_so_too_many_are_given():
    model, optimizer = make()
    backward(model, 0)
    torch.compile(optimizer.step, backend="eager")()
    assert set(unused_gradients(model, [optimizer])) == ALL


def test_graphs_and_threads_do_not_matter():
    """Two graphs before one step; a gradient set by hand; one that another thread computes."""
    model, optimizer = make()
    losses = [model[0](torch.rand(3, 4)).sum() for _ in range(2)]
    losses[0].backward()
    optimizer.step()
    optimizer.zero_grad()
    losses[1].backward()
    assert set(unused_gradients(model, [optimizer])) == {"0.weight", "0.bias"}
    optimizer.step()
    assert unused_gradients(model, [optimizer]) == {}
    model[0].bias.grad = torch.ones(5)
    thread = threading.Thread(target=backward, args=(model[1:], 1), kwargs={"features": 5})
    thread.start()
    thread.join()
    assert set(unused_gradients(model, [optimizer])) == {"0.bias", "1.weight", "1.bias"}


def test_a_copy_of_a_model_has_used_what_the_model_has():
    model, optimizer = make()
    backward(model, 0)
    optimizer.step()
    assert capture_gradients(copy.deepcopy(model))["unused"] == {}


def test_sparse_gradients_are_left_out_and_said(tmp_path):
    model = nn.Embedding(4, 3, sparse=True)
    optimizer = optim.SparseAdam(model.parameters())
    model(torch.tensor([1, 2])).sum().backward()
    with pytest.warns(InexactResumeWarning, match="sparse gradients .*: weight"):
        save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer)
    optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error", InexactResumeWarning)
        save_checkpoint(tmp_path, step=2, model=model, optimizers=optimizer)


def test_gradients_come_back_in_the_type_of_the_parameter(tmp_path):
    model, optimizer = make()
    backward(model, 0)
    save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer)
    other, other_optimizer = make()
    other.to(torch.bfloat16)
    with pytest.warns(InexactResumeWarning, match="rounded"):
        load_checkpoint(tmp_path).restore(model=other, optimizers=other_optimizer)
    assert other[0].weight.grad.dtype is torch.bfloat16


def test_parameters_of_an_optimizer_that_are_not_the_model_s_have_gradients_too(tmp_path):
    def parts() -> tuple[nn.Module, nn.Parameter, optim.Optimizer]:
        model, _ = make()
        extra = nn.Parameter(torch.ones(2))
        return model, extra, optim.SGD([*model.parameters(), extra], lr=0.1)

    model, extra, optimizer = parts()
    (model(torch.ones(1, 4)) * extra).sum().backward()
    save_checkpoint(tmp_path, step=1, model=model, optimizers=optimizer)
    other, other_extra, other_optimizer = parts()
    load_checkpoint(tmp_path).restore(model=other, optimizers=other_optimizer)
    assert torch.equal(other_extra.grad, extra.grad)


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("stop", range(1, 6))
def test_half_of_the_parameters_at_a_time(stop, set_to_none, tmp_path):
    """With zeros for gradients, Adam moves the half that is not used by its momentum; without gradients it does not."""

    def train(model: nn.Module, optimizer: optim.Optimizer, steps: range) -> None:
        for number in steps:
            optimizer.zero_grad(set_to_none)
            (model[number % 2](torch.ones(3, 4 + number % 2)) ** 2).sum().backward()
            optimizer.step()

    model, optimizer = make()
    train(model, optimizer, range(stop))
    save_checkpoint(tmp_path, step=stop, model=model, optimizers=optimizer)
    other, other_optimizer = make()
    load_checkpoint(tmp_path).restore(model=other, optimizers=other_optimizer)
    train(model, optimizer, range(stop, 8))
    train(other, other_optimizer, range(stop, 8))
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))


def test_a_loop_that_steps_and_does_not_zero_asks_for_all(tmp_path):
    def train(model: nn.Module, optimizer: optim.Optimizer, steps: range) -> None:
        for number in steps:
            if number % 4 == 0:
                optimizer.zero_grad()
            backward(model, number)
            optimizer.step()

    model, optimizer = make()
    train(model, optimizer, range(6))
    save_checkpoint(tmp_path, step=6, model=model, optimizers=optimizer, save_gradients=True)
    other, other_optimizer = make()
    load_checkpoint(tmp_path).restore(model=other, optimizers=other_optimizer)
    train(model, optimizer, range(6, 10))
    train(other, other_optimizer, range(6, 10))
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("stop", range(1, 10))
def test_a_loop_that_is_interrupted_anywhere_in_a_window_goes_on_exactly(stop, tmp_path):
    def train(model: nn.Module, optimizer: optim.Optimizer, batches: range) -> None:
        for number in batches:
            if number % 4 == 0:
                optimizer.zero_grad()
            backward(model, number)
            if number % 4 == 3:
                optimizer.step()

    model, optimizer = make()
    train(model, optimizer, range(stop))
    save_checkpoint(tmp_path, step=stop, model=model, optimizers=optimizer)
    other, other_optimizer = make()
    loaded = load_checkpoint(tmp_path)
    assert bool(loaded.gradients[0]["unused"]) == (stop % 4 != 0)
    loaded.restore(model=other, optimizers=other_optimizer)
    again = save_checkpoint(tmp_path / "again", step=stop, model=other, optimizers=other_optimizer)
    assert again.optimizer_path.read_bytes() == loaded.checkpoint.optimizer_path.read_bytes()
    train(model, optimizer, range(stop, 12))
    train(other, other_optimizer, range(stop, 12))
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


class TestOfFurtherModelsAndOptimizers:
    """A critic, given to ``stateful`` with its optimizer, or only its optimizer is."""

    @pytest.mark.parametrize("given", [("critic", "optimizer"), ("optimizer",), ("critic",)])
    def test_go_on_in_the_middle_of_a_window(self, given, tmp_path):
        model, optimizer = make()
        critic, critic_optimizer = make()
        further = {"critic": critic, "optimizer": critic_optimizer}
        backward(critic, 1)
        critic_optimizer.step()
        critic_optimizer.zero_grad()
        backward(critic, 2)
        save_checkpoint(
            tmp_path, step=1, model=model, optimizers=optimizer, stateful={key: further[key] for key in given}
        )
        expected = [parameter.grad.clone() for parameter in critic.parameters()]
        for module in (model, critic):
            module.zero_grad()
        load_checkpoint(tmp_path).restore(
            model=model, optimizers=optimizer, stateful={key: further[key] for key in given}
        )
        for parameter, gradient in zip(critic.parameters(), expected, strict=True):
            assert torch.equal(parameter.grad, gradient)
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_that_a_step_has_used_are_not_stored(self):
        model, optimizer = make()
        critic, critic_optimizer = make()
        backward(critic, 1)
        critic_optimizer.step()
        captured = capture_gradients(model, [optimizer], {"critic": critic, "optimizer": critic_optimizer})
        assert captured == {"unused": {}, "used": [f"stateful.critic.{name}" for name in sorted(ALL)]}


class TestALoopThatDoesNotZero:
    """What the save leaves out, since a step has used it, is part of the next step there."""

    def train(self, directory, zero, steps=3, micro_batches=2, **save):
        model, optimizer = make()
        for step in range(1, steps + 1):
            for number in range(micro_batches):
                backward(model, number)
            optimizer.step()
            if zero is not None and not (zero == "every second step" and step % 2):
                optimizer.zero_grad(set_to_none=zero != "in place")
            if step == 1:
                save_checkpoint(directory, step=step, model=model, optimizers=optimizer, **save)

    @pytest.mark.parametrize("zero", [None, "every second step"])
    @pytest.mark.parametrize("micro_batches", [1, 3])
    def test_is_told_once(self, zero, micro_batches, tmp_path):
        with pytest.warns(InexactResumeWarning, match=r"1\.bias, for one.*save_gradients=True") as said:
            self.train(tmp_path, zero, micro_batches=micro_batches)
        assert len(said) == 1

    def test_is_told_also_beside_an_optimizer_whose_gradients_are_zeroed(self, tmp_path):
        model, optimizer = make()
        critic = nn.Linear(4, 1)
        further = {"critic": critic, "optimizer": optim.SGD(critic.parameters(), lr=0.1)}
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for step in range(2):
                critic.zero_grad()
                for module, its_optimizer in ((model, optimizer), (critic, further["optimizer"])):
                    backward(module, step)
                    its_optimizer.step()
                save_checkpoint(tmp_path, step=step, model=model, optimizers=optimizer, stateful=further)
        assert ["1.bias, for one" in str(w.message) for w in said if w.category is InexactResumeWarning] == [True]

    @pytest.mark.parametrize("zero", ["set to none", "in place"])
    @pytest.mark.parametrize("micro_batches", [1, 3])
    def test_others_are_not(self, zero, micro_batches, tmp_path):
        with warnings.catch_warnings():
            warnings.simplefilter("error", InexactResumeWarning)
            self.train(tmp_path, zero, micro_batches=micro_batches)
            self.train(tmp_path / "all", None, save_gradients=True)

    @pytest.mark.parametrize("zeroes", [True, False])
    def test_a_resumed_one_is_told_too(self, zeroes, tmp_path):
        self.train(tmp_path, None, steps=1)
        model, optimizer = make()
        load_checkpoint(tmp_path).restore(model=model, optimizers=optimizer)
        if zeroes:
            optimizer.zero_grad(set_to_none=False)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            backward(model, 0)
            optimizer.step()
        assert [w.category for w in said] == ([] if zeroes else [InexactResumeWarning])

    @pytest.mark.parametrize("set_to_none", [True, False])
    def test_a_gan_zeroes_what_the_other_update_has_added(self, set_to_none, tmp_path):
        model, _ = make()
        generator, critic = (optim.SGD(part.parameters(), lr=0.1) for part in model)
        with warnings.catch_warnings():
            warnings.simplefilter("error", InexactResumeWarning)
            for step in range(1, 5):
                for optimizer in (critic, generator):  # each backward pass reaches both networks
                    optimizer.zero_grad(set_to_none)
                    backward(model, step)
                    optimizer.step()
                save_checkpoint(tmp_path, step=step, model=model, optimizers=[generator, critic])

    def test_zeros_through_data_are_zeros(self, tmp_path):
        model, optimizer = make()
        with warnings.catch_warnings():
            warnings.simplefilter("error", InexactResumeWarning)
            for step in range(1, 4):
                backward(model, step)
                optimizer.step()
                save_checkpoint(tmp_path, step=step, model=model, optimizers=optimizer)
                for parameter in model.parameters():
                    parameter.grad.data.zero_()

    def test_nothing_stays_on_parameters_or_gradients(self, tmp_path):
        model, _ = make()
        for step in range(1, 4):
            optimizer = optim.SGD(model.parameters(), lr=0.1)
            backward(model, step)
            optimizer.step()
            save_checkpoint(tmp_path, step=step, model=model, optimizers=optimizer)
            del optimizer
            gc.collect()
        assert [len(parameter._backward_hooks or ()) for parameter in model.parameters()] == [0] * 4
        torch.save({name: parameter.grad for name, parameter in model.named_parameters()}, tmp_path / "gradients")
        assert len(torch.load(tmp_path / "gradients", weights_only=True)) == 4

    def test_a_compiled_model_is_trained_as_before(self, tmp_path):
        losses = []
        for saves in (False, True):
            model, optimizer = make()
            compiled = torch.compile(model, backend="aot_eager")
            for step in range(1, 5):
                optimizer.zero_grad()
                backward(compiled, step)
                optimizer.step()
                if saves:
                    save_checkpoint(tmp_path, step=step, model=compiled, optimizers=optimizer)
            losses.append(model[0].weight.tolist())
        assert losses[0] == losses[1]
