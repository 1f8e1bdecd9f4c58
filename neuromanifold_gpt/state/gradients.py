"""Gradients, which a save in the middle of an accumulation window must not lose.

After a step, gradients mostly stay until the loop zeroes them; storing them would cost half of what the moments of Adam
cost. So a hook on every optimizer, there from the import of this module, marks each gradient that a step has used, with
its version: one that is added to later has another version, and one that takes its place has no mark. Of used
gradients only the names are stored: the next thing that a loop does to them is to zero them. One that does not is told.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.checkpoint.foreign import clean_name
from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.state import steps_taken_again
from neuromanifold_gpt.state.modules import listed, unwrap
from neuromanifold_gpt.state.unsaved.gradient_additions import follow, note_step

_MARK = "_version_at_step"


def capture_gradients(
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer] = (),
    stateful: Mapping[str, Any] | None = None,
    *,
    all_of_them: bool = False,
    none_of_them: bool = False,
) -> dict[str, Any]:
    """The gradients of a model and of what else its optimizers have, by clean name. The tensors are the live ones.

    Args:
        module: the model.
        optimizers: their parameters that are not the model's are named by their place.
        stateful: of these, modules and optimizers count as well.
        all_of_them: a loop that goes on adding to gradients after it has used them needs them all.
        none_of_them: all are used, though a step of the user's own may not have marked them.

    Returns:
        ``{"unused": {name: gradient}, "used": [name]}``. Where a step could not be marked, inside ``torch.compile`` or
        before this module was imported, gradients count as unused.

    Warns:
        InexactResumeWarning: there are unused sparse gradients, which cannot be stored. At the next step, if it uses
            gradients that were not zeroed since.
    """
    unused: dict[str, Tensor] = {}
    used: dict[str, Tensor] = {}
    sparse: list[str] = []
    for name, parameter in _parameters(module, optimizers, stateful or {}):
        gradient = parameter.grad
        if gradient is None:
            continue
        if none_of_them or (_is_used(gradient) and not all_of_them):
            used[name] = parameter
        elif gradient.layout is torch.strided:
            unused[name] = gradient
        else:
            sparse.append(name)
    for owners in (optimizers, [*_optimizers_in(stateful or {}).values()]):
        follow(used, owners)
    if sparse:
        warn_user(
            f"sparse gradients that no optimizer has used are not stored, so a resume from this save loses them: "
            f"{listed(sparse)}. Save behind the step, or zero them before the save.",
            InexactResumeWarning,
        )
    return {"unused": unused, "used": list(used)}


def restore_gradients(
    module: nn.Module,
    saved: dict[str, Any],
    optimizers: Sequence[torch.optim.Optimizer] = (),
    stateful: Mapping[str, Any] | None = None,
) -> None:
    """Put back what :func:`capture_gradients` found: unused gradients, zeros for used ones, none for the others."""
    names, used = set(saved["used"]), {}
    for name, parameter in _parameters(module, optimizers, stateful or {}):
        parameter.grad = None
        if name in saved["unused"]:
            parameter.grad = saved["unused"][name].to(parameter.device, parameter.dtype, copy=True)
        elif name in names:
            parameter.grad = torch.zeros_like(parameter)
            _mark(parameter.grad)
            used[name] = parameter
    for owners in (optimizers, [*_optimizers_in(stateful or {}).values()]):
        follow(used, owners)


def _parameters(
    module: nn.Module, optimizers: Sequence[torch.optim.Optimizer], stateful: Mapping[str, Any]
) -> Iterator[tuple[str, nn.Parameter | Tensor]]:
    """Each once, of the first that has it."""
    seen: set[int] = set()
    for name, parameter in _all_parameters(module, optimizers, stateful):
        if id(parameter) not in seen:
            seen.add(id(parameter))
            yield name, parameter


def _all_parameters(
    module: nn.Module, optimizers: Sequence[torch.optim.Optimizer], stateful: Mapping[str, Any]
) -> Iterator[tuple[str, nn.Parameter | Tensor]]:
    yield from _parameters_of_module(module)
    for number, optimizer in enumerate(optimizers):
        yield from _parameters_of_optimizer(f"optimizer.{number}", optimizer)
    for key, value in sorted(stateful.items()):
        if isinstance(value, nn.Module):
            yield from ((f"stateful.{key}.{name}", parameter) for name, parameter in _parameters_of_module(value))
    for key, optimizer in sorted(_optimizers_in(stateful).items()):
        yield from _parameters_of_optimizer(f"stateful.{key}", optimizer)


def _parameters_of_module(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Of the names of a tied one the first in the alphabet comes first, whatever the order of modules."""
    named = unwrap(module).named_parameters(remove_duplicate=False)
    return sorted(((clean_name(name), parameter) for name, parameter in named), key=operator.itemgetter(0))


def _parameters_of_optimizer(prefix: str, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for g, group in enumerate(optimizer.param_groups):
        for i, parameter in enumerate(group["params"]):
            yield f"{prefix}.{g}.{i}", parameter


def _optimizers_in(stateful: Mapping[str, Any]) -> dict[str, torch.optim.Optimizer]:
    return {key: value for key, value in stateful.items() if isinstance(value, torch.optim.Optimizer)}


def _is_used(gradient: Tensor) -> bool:
    return not gradient.is_inference() and getattr(gradient, _MARK, None) == gradient._version


def _mark(gradient: Tensor) -> None:
    if not gradient.is_inference():
        setattr(gradient, _MARK, gradient._version)


def _mark_used(optimizer: torch.optim.Optimizer, _args: tuple[Any, ...], _kwargs: dict[Any, Any]) -> None:
    """Some 0.3 µs a parameter."""
    if torch.compiler.is_compiling():
        return
    note_step(optimizer)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                _mark(parameter.grad)
    steps_taken_again.note_step(optimizer)


register_optimizer_step_post_hook(_mark_used)
