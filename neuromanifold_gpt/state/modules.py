"""A module's state under the names that its author gave, whatever wraps it."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning
from neuromanifold_gpt.checkpoint.foreign import clean_name
from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.state.in_steps import until_done

_SHOWN_NAMES = 12


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside ``torch.compile`` and data-parallel wrappers."""
    while True:
        if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
            module = cast(nn.Module, module.module)
        elif isinstance(getattr(module, "_orig_mod", None), nn.Module):
            module = cast(nn.Module, module._orig_mod)
        else:
            return module


def distributed_wrapper(module: nn.Module) -> nn.parallel.DistributedDataParallel | None:
    """The ``DistributedDataParallel`` around a module, also inside ``torch.compile`` and Fabric's wrapper."""
    while not isinstance(module, nn.parallel.DistributedDataParallel):
        inner = getattr(module, "_orig_mod", None) or getattr(module, "_forward_module", None)
        if not isinstance(inner, nn.Module):
            return None
        module = inner
    return module


def module_state(module: nn.Module) -> dict[str, Any]:
    """``module.state_dict()``, the names free of ``_orig_mod.`` and ``module.``. The tensors are the live ones."""
    return clean_state(unwrap(module).state_dict())


def clean_state(state: dict[str, Any]) -> dict[str, Any]:
    """A state dict under clean names; type and ``_metadata`` are kept."""
    cleaned: Any = type(state)((clean_name(name), value) for name, value in state.items())
    metadata = getattr(state, "_metadata", None)
    if metadata is not None:
        # "0._orig_mod" names the compiled child itself; its own metadata stands under the clean name "0".
        cleaned._metadata = OrderedDict((clean_name(f"{name}.")[:-1], value) for name, value in metadata.items())
    return cleaned


def parameter_names(module: nn.Module) -> dict[int, str]:
    """Clean name of each parameter, by ``id``; of the names of a tied one, the first in the alphabet.

    So names do not depend on the order in which modules are declared.
    """
    names: dict[int, str] = {}
    for name, parameter in unwrap(module).named_parameters(remove_duplicate=False):
        clean = clean_name(name)
        names[id(parameter)] = min(clean, names.get(id(parameter), clean))
    return names


def warn_if_rounded(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Say which weights lose digits, since the module holds them in a narrower type than the checkpoint.

    Warns:
        InexactResumeWarning: names them.
    """
    live = {clean_name(name): value for name, value in unwrap(module).state_dict().items()}
    rounded = [
        f"{name} from {saved.dtype} to {live[name].dtype}"
        for name, saved in clean_state(dict(state)).items()
        if isinstance(saved, Tensor)
        and isinstance(live.get(name), Tensor)
        and saved.is_floating_point()
        and torch.promote_types(saved.dtype, live[name].dtype) != live[name].dtype
    ]
    if rounded:
        warn_user(
            f"weights are rounded to the model's type: {listed(rounded)}. Build the model in the precision of the "
            "save.",
            InexactResumeWarning,
        )


def module_modes(module: nn.Module) -> dict[str, list[str]]:
    """Names of the frozen parameters, of the modules in evaluation mode, and of norms that do not count batches in
    their statistics: what finetuning changes while it trains.

    A module that is in evaluation mode as a whole is being evaluated: the modes that it trains in are not known then.
    """
    module = unwrap(module)
    evaluating = [module_name(name) for name, child in module.named_modules() if not child.training]
    return {
        "frozen": sorted(clean_name(name) for name, value in module.named_parameters() if not value.requires_grad),
        "evaluating": sorted(evaluating) if module.training else [],
        "untracked": sorted(module_name(name) for name, norm in _norms(module) if not norm.track_running_stats),
    }


def _norms(module: nn.Module) -> list[tuple[str, Any]]:
    """Those with statistics of batches, by name."""
    named: list[tuple[str, Any]] = list(module.named_modules())
    return [(name, part) for name, part in named if has_batch_statistics(part)]


def has_batch_statistics(part: nn.Module) -> bool:
    """Whether it is a norm that may count batches in them."""
    return isinstance(part, torch.nn.modules.batchnorm._NormBase) and part.running_mean is not None


def restore_modes(module: nn.Module, modes: Mapping[str, list[str]]) -> list[str]:
    """Freeze and unfreeze parameters, and set the modes of parts, as :func:`module_modes` found them.

    Returns:
        the names of the parameters that were frozen or unfrozen.
    """
    module = unwrap(module)
    frozen, evaluating = set(modes["frozen"]), set(modes["evaluating"])
    changed = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad == (clean_name(name) in frozen):
            parameter.requires_grad_(not parameter.requires_grad)
            changed.append(clean_name(name))
    for name, child in module.named_modules():
        if module_name(name) in evaluating:
            child.training = False
    for name, norm in _norms(module):
        norm.track_running_stats = module_name(name) not in modes["untracked"]
    return changed


def require_module(model: object) -> None:
    """Raise a TypeError unless it is a module, such as for a plain dict of several."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model: expected a torch.nn.Module, found a {type(model).__qualname__}. Give several as "
            'nn.ModuleDict({"generator": ..., "discriminator": ...}).'
        )


def lasting_part(module: nn.Module) -> nn.Module:
    """The module; of a container, the first part that is none: programs make ``nn.ModuleDict({"G": G, "D": D})`` anew
    for each save.
    """
    module = unwrap(module)
    while type(module) in (nn.ModuleDict, nn.ModuleList) and (first := next(module.children(), None)) is not None:
        module = unwrap(first)
    return module


def warn_of_other_modes(changed: list[str]) -> None:
    """Say which parameters :func:`restore_modes` has frozen or unfrozen.

    Warns:
        InexactResumeWarning: names them, if there are any.
    """
    if changed:
        warn_user(
            "frozen and trained parameters are those of the checkpoint; this run had set otherwise: "
            f"{listed(changed)}.",
            InexactResumeWarning,
        )


def warn_of_other_modes_once_stepped(
    module: nn.Module, changed: list[str], optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """:func:`warn_of_other_modes`, when each of some optimizers has stepped, of parameters that are so all the time:
    loops with several networks freeze and unfreeze them in each step.
    """
    parameters = {clean_name(name): parameter for name, parameter in unwrap(module).named_parameters()}
    # References proper would be found in the optimizers.
    left = {name: (weakref.ref(parameters[name]), parameters[name].requires_grad) for name in changed}
    # One that wraps another may have left out super().__init__().
    hooked = [optimizer for optimizer in optimizers if hasattr(optimizer, "_optimizer_step_post_hooks")]
    to_come = WeakSet(hooked)

    def look(optimizer: torch.optim.Optimizer) -> bool:
        if optimizer not in to_come:
            return not to_come
        to_come.discard(optimizer)
        for name, (reference, was_trained) in list(left.items()):
            if (parameter := reference()) is None or parameter.requires_grad != was_trained:
                del left[name]
        if not to_come:
            warn_of_other_modes([*left])
        return not to_come

    if changed and not hooked:
        warn_of_other_modes(changed)
    elif changed:
        until_done(look)


def module_name(name: str) -> str:
    """A module's name, clean as those of its parameters."""
    return clean_name(f"{name}.")[:-1]


def listed(items: list[str]) -> str:
    """Join for a message, not endlessly."""
    more = f"; and {len(items) - _SHOWN_NAMES} more" if len(items) > _SHOWN_NAMES else ""
    return "; ".join(items[:_SHOWN_NAMES]) + more
