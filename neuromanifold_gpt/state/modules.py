"""A module's state under the names that its author gave, whatever wraps it."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from neuromanifold_gpt.checkpoint.errors import CheckpointError, InexactResumeWarning, StateMismatchError
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


def load_module_state(module: nn.Module, state: dict[str, Any], *, strict: bool = True) -> None:
    """Load ``state`` by name.

    Raises:
        StateMismatchError: see :func:`under_own_names`; nothing has been changed then. Or a module's own code has
            failed: tensors that it has not replaced are as they were.
    """
    inner = unwrap(module)
    renamed = under_own_names(inner, state, strict=strict)
    live = inner.state_dict() if _prefixes_of_own_loading(inner) else {}
    before = {name: value.clone() for name, value in live.items() if isinstance(value, Tensor) and not is_lazy(value)}
    try:
        with errors_as_mismatch():
            inner.load_state_dict(renamed, strict=strict)
    except StateMismatchError:
        for name, value in inner.state_dict().items():
            if name in before and value.shape == before[name].shape:
                value.copy_(before[name])
        raise


@contextmanager
def errors_as_mismatch() -> Iterator[None]:
    """Around a ``load_state_dict``, which may be of users' own.

    Raises:
        StateMismatchError: it has failed.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise StateMismatchError(f"the checkpoint does not fit the model: {type(error).__name__}: {error}") from error


def under_own_names(
    module: nn.Module, state: dict[str, Any], *, strict: bool = True, is_loading: bool = False
) -> dict[str, Any]:
    """``state``, its names clean or not, under the names that ``module`` itself uses; of the same type, with
    ``_metadata``.

    Parts that load in a way of their own may make or resize what they load: their own code decides what fits.

    Args:
        module: it is to be loaded into.
        state: that is loaded.
        strict: see below.
        is_loading: the module's own code, and hooks, have had their turn, if not those of its parts.

    Raises:
        StateMismatchError: lists every name that is missing, unexpected or of another shape. With ``strict=False``
            only a shape that differs is an error, and unexpected names are left out.
    """
    live, state = module.state_dict(), clean_state(state)
    own_names = {clean_name(name): name for name in live}
    prefixes = {clean: own for clean, own in _prefixes_of_own_loading(module).items() if own or not is_loading}
    ordinary = [name for name in {**own_names, **state} if not name.startswith(tuple(prefixes))]
    _check_fit({name: live[own] for name, own in own_names.items()}, state, ordinary, strict=strict)
    for clean, own in reversed(prefixes.items()):  # the innermost first
        new = [name for name in state if name.startswith(clean) and name not in own_names]
        own_names.update((name, own + name.removeprefix(clean)) for name in new)
    renamed: Any = OrderedDict((own_names[name], value) for name, value in state.items() if name in own_names)
    metadata = getattr(state, "_metadata", None)
    if metadata is not None:  # by it, modules know which version of them wrote the state
        names = {name: _module_name(name) for name, _ in module.named_modules(remove_duplicate=False)}
        renamed._metadata = OrderedDict((own, metadata[name]) for own, name in names.items() if name in metadata)
    return renamed


def _check_fit(live: Mapping[str, Any], state: Mapping[str, Any], names: list[str], *, strict: bool) -> None:
    problems = []
    if strict:
        problems += [f"missing in the checkpoint: {name}" for name in names if name not in state]
        problems += [f"not in the model: {name}" for name in names if name not in live]
    for name in names:
        saved, here = state.get(name), live.get(name)
        if not isinstance(saved, Tensor) or not isinstance(here, Tensor) or is_lazy(here):
            continue
        if saved.shape != here.shape:
            problems.append(f"{name}: shape {tuple(saved.shape)} in the checkpoint, {tuple(here.shape)} in the model")
    if problems:
        raise StateMismatchError(
            f"the checkpoint does not fit the model: {listed(problems)}. Build the model with the checkpoint's "
            "configuration, or load what fits with strict=False."
        )


def _prefixes_of_own_loading(module: nn.Module) -> dict[str, str]:
    """Of the names in parts whose classes or hooks have code of their own for loading: clean and own prefix."""
    own = {
        name: _hooks_are_own(part) or not _is_ordinary(type(part)._load_from_state_dict)
        for name, part in module.named_modules(remove_duplicate=False)
    }
    own[""] = own[""] or not _is_ordinary(type(module).load_state_dict)  # of parts, nobody calls it
    prefixes = [f"{name}." if name else "" for name, loads_itself in own.items() if loads_itself]
    return {clean_name(prefix): prefix for prefix in prefixes}


def _hooks_are_own(part: nn.Module) -> bool:
    hooks = [getattr(hook, "hook", hook) for hook in part._load_state_dict_pre_hooks.values()]
    return not all(_is_ordinary(getattr(hook, "func", hook)) for hook in hooks)


def _is_ordinary(function: Any) -> bool:
    """Whether it leaves shapes as they are: of torch's layers, metrics, and this package."""
    return str(getattr(function, "__module__", "")).startswith(("torch.nn.", "torchmetrics.", "neuromanifold_gpt."))


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
    """Names of the frozen parameters and of the modules in evaluation mode: what finetuning changes while it trains.

    A module that is in evaluation mode as a whole is being evaluated: the modes that it trains in are not known then.
    """
    module = unwrap(module)
    evaluating = [_module_name(name) for name, child in module.named_modules() if not child.training]
    return {
        "frozen": sorted(clean_name(name) for name, value in module.named_parameters() if not value.requires_grad),
        "evaluating": sorted(evaluating) if module.training else [],
    }


def restore_modes(module: nn.Module, modes: Mapping[str, list[str]]) -> list[str]:
    """Freeze and unfreeze parameters, and set evaluation modes, as :func:`module_modes` found them.

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
        if _module_name(name) in evaluating:
            child.training = False
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


def _module_name(name: str) -> str:
    return clean_name(f"{name}.")[:-1]


def listed(items: list[str]) -> str:
    """Join for a message, not endlessly."""
    more = f"; and {len(items) - _SHOWN_NAMES} more" if len(items) > _SHOWN_NAMES else ""
    return "; ".join(items[:_SHOWN_NAMES]) + more
