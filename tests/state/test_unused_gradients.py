"""A save in the middle of an accumulation window stores the gradients, and one after a step does not."""

from __future__ import annotations

import pytest
import torch
from torch import nn, optim

from neuromanifold_gpt import load_checkpoint, save_checkpoint
from neuromanifold_gpt.state.unused_gradients import unused_gradients


def make() -> tuple[nn.Module, optim.Optimizer]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    return model, optim.AdamW(model.parameters(), lr=0.1)


def backward(model: nn.Module, number: int) -> None:
    (model(torch.full((3, 4), 0.5 + number)) ** 2).sum().backward()


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


@pytest.mark.parametrize("where", ["compiled", "inference mode"])
def test_where_a_step_cannot_be_noted_too_many_are_given(where):
    model, optimizer = make()
    backward(model, 0)
    if where == "compiled":
        torch.compile(optimizer.step, backend="eager")()
    else:
        with torch.inference_mode():
            assert set(unused_gradients(model, [optimizer])) == ALL
        optimizer.step()
    assert set(unused_gradients(model, [optimizer])) == (ALL if where == "compiled" else set())


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
    assert bool(loaded.gradients[0]) == (stop % 4 != 0)
    loaded.restore(model=other, optimizers=other_optimizer)
    again = save_checkpoint(tmp_path / "again", step=stop, model=other, optimizers=other_optimizer)
    assert again.optimizer_path.read_bytes() == loaded.checkpoint.optimizer_path.read_bytes()
    train(model, optimizer, range(stop, 12))
    train(other, other_optimizer, range(stop, 12))
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
