"""How a state dict goes into a module, whose parts may be wrapped or load in their own way: whole, or not at all."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from neuromanifold_gpt.checkpoint.errors import CheckpointError, StateMismatchError
from neuromanifold_gpt.checkpoint.foreign import clean_name
from neuromanifold_gpt.state.modules import clean_state, listed, module_name, unwrap


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
            _load_parts_in_turn(inner, renamed, strict=strict)
    except StateMismatchError:
        for name, value in inner.state_dict().items():
            if name in before and value.shape == before[name].shape:
                value.copy_(before[name])
        raise


def _load_parts_in_turn(module: nn.Module, state: dict[str, Any], *, strict: bool) -> None:
    """``load_state_dict``, also of parts that have their own, as they have their ``state_dict``: Fabric's wrappers.

    torch asks parts for their ``state_dict``, and then loads into what they hold without asking.
    """
    wrappers: dict[str, nn.Module] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        if name and _has_own_pair(type(part)) and not name.startswith(tuple(f"{other}." for other in wrappers)):
            wrappers[name] = part
    for name, part in wrappers.items():
        part.load_state_dict(_taken_out(state, f"{name}."), strict=strict)
    with _without(module, wrappers):
        module.load_state_dict(state, strict=strict)


@contextmanager
def _without(module: nn.Module, names: Collection[str]) -> Iterator[None]:
    """As if it had not some of its parts, so that torch does not look into them."""
    owners = {name: module.get_submodule(name.rpartition(".")[0]) for name in names}
    parts = [(owner, owner._modules) for owner in owners.values()]
    try:
        for name, owner in owners.items():
            owner._modules = {key: part for key, part in owner._modules.items() if key != name.rpartition(".")[2]}
        yield
    finally:
        for owner, with_all in reversed(parts):
            owner._modules = with_all


def _taken_out(state: dict[str, Any], prefix: str) -> Any:
    """What is in a part, by the names that it has there."""
    names = [name for name in state if name.startswith(prefix)]
    part: Any = OrderedDict((name.removeprefix(prefix), state.pop(name)) for name in names)
    metadata = getattr(state, "_metadata", {}).items()
    of_part = ((f"{name}.", value) for name, value in metadata)
    part._metadata = OrderedDict((name.removeprefix(prefix)[:-1], v) for name, v in of_part if name.startswith(prefix))
    return part


def _has_own_pair(kind: type[nn.Module]) -> bool:
    return kind.state_dict is not nn.Module.state_dict and kind.load_state_dict is not nn.Module.load_state_dict


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
        names = {name: module_name(name) for name, _ in module.named_modules(remove_duplicate=False)}
        of_own_names = {own: metadata[name] for own, name in names.items() if name in metadata}
        renamed._metadata = OrderedDict({**metadata, **of_own_names})
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
