"""Optimizer state with the names of the parameters it belongs to.

torch numbers parameters by position, so a model whose parameters are declared in another order, or an optimizer with
other groups, gets moments of the wrong parameters without a word. Here each group carries ``param_names``, the list
that torch itself writes for optimizers made from ``named_parameters()``, and loading matches by these names.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning, StateMismatchError
from neuromanifold_gpt.checkpoint.foreign import clean_name
from neuromanifold_gpt.checkpoint.user_warnings import warn_user
from neuromanifold_gpt.state.modules import listed
from neuromanifold_gpt.state.rng import rank_and_world_size
from neuromanifold_gpt.state.settings import CLASS_KEY, DEFAULTS_KEY, check_classes, optimizer_settings

NAMES_KEY = "param_names"
# State of the parameter's own shape in every optimizer of torch.optim; used to check files without names.
_ELEMENTWISE = frozenset({"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "sum"})
# Marks the state of LBFGS, which belongs to all parameters in their order and lies with the first.
_WHOLE = "func_evals"
_said: WeakSet[torch.optim.Optimizer] = WeakSet()


def named_optimizer_state(
    optimizer: torch.optim.Optimizer, names: Mapping[int, str], state: dict[str, Any] | None = None
) -> dict[str, Any]:
    """``optimizer.state_dict()`` with ``param_names`` in each group and its settings, in one canonical order of keys.

    Args:
        optimizer: any ``torch.optim.Optimizer``.
        names: name of each parameter by ``id``, see :func:`modules.parameter_names`. A parameter that is not in it is
            named by its place, ``unnamed.<group>.<index>``.
        state: its state dict, where someone has gathered that already; empty on ranks that did not get it.
    """
    state = whole_state(optimizer) if state is None else state
    if not state:
        return {}
    _warn_of_addresses(optimizer, state)
    if has_own_form(state):
        return {**state, **optimizer_settings(optimizer)}
    return {**add_names(state, group_names(optimizer, names)), **optimizer_settings(optimizer)}


def whole_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """``optimizer.state_dict()``; of one whose state is spread over the ranks, such as torch's
    ``ZeroRedundancyOptimizer``, the whole on rank 0 and nothing elsewhere: every rank calls this.
    """
    gather = getattr(optimizer, "consolidate_state_dict", None)
    if gather is None:
        return optimizer.state_dict()
    gather(0)
    return optimizer.state_dict() if rank_and_world_size()[0] == 0 else {}


def _warn_of_addresses(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Once an optimizer. Its ``load_state_dict`` cannot know the parameters by their places in a process that is gone.

    Warns:
        InexactResumeWarning: some state is by ``id(parameter)``, as in the Lookahead of many projects.
    """
    addresses = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    parts = {str(key): part for key, part in state.items() if isinstance(part, dict)}
    by_address = sorted(name for name, part in parts.items() if not addresses.isdisjoint(part))
    if by_address and optimizer not in _said:
        _said.add(optimizer)
        warn_user(
            f"the state_dict() of {type(optimizer).__name__} has state by id(parameter), which is another number in "
            f"each process: {listed(by_address)}. A resume from this save cannot be exact: number the parameters as "
            "torch's own state_dict() does.",
            InexactResumeWarning,
        )


def has_own_form(state: Mapping[str, Any]) -> bool:
    """Whether it is that of an optimizer around another, in another form than torch's: it is taken as it is."""
    return not {"state", "param_groups"} <= state.keys()


def add_names(state: dict[str, Any], names: list[list[str]]) -> dict[str, Any]:
    """A copy of an optimizer's state dict with names, canonically ordered; tensors are not copied."""
    groups = [
        dict(sorted({**{key: _plain(value) for key, value in group.items()}, NAMES_KEY: group_names}.items()))
        for group, group_names in zip(state["param_groups"], names, strict=True)
    ]
    # The order in which parameters first got a gradient, or were loaded, is not part of the state.
    ordered = sorted(state["state"].items(), key=lambda item: (not isinstance(item[0], int), str(item[0]).zfill(12)))
    per_parameter = {key: dict(sorted(value.items())) if isinstance(value, dict) else value for key, value in ordered}
    return {**state, "state": per_parameter, "param_groups": groups}


def _plain(value: Any) -> Any:
    """Of a number of NumPy's, which a schedule in an array gives, that of Python."""
    return value.item() if isinstance(value, np.number | np.bool_) else value


def group_names(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> list[list[str]]:
    """Names of the parameters of each group."""
    return [
        [names.get(id(parameter), f"unnamed.{g}.{i}") for i, parameter in enumerate(group["params"])]
        for g, group in enumerate(optimizer.param_groups)
    ]


def match_optimizer_state(
    optimizer: torch.optim.Optimizer, state: Mapping[str, Any], names: Mapping[int, str], *, strict: bool = True
) -> dict[str, Any]:
    """``state`` for ``optimizer``, matched by parameter name; by position where the file has no names.

    Raises:
        StateMismatchError: lists parameters that are only on one side or in another group; with ``strict=False`` they
            start without state. Or it is the state of another class of optimizers, or has not the parameters' shapes.
    """
    check_classes("optimizer", [optimizer], [state.get(CLASS_KEY)])
    if has_own_form(state):
        return dict(state)
    matched = match_by_name(state, group_names(optimizer, names), strict=strict)
    # Optimizers from elsewhere may keep something else under these names; matched by position, it is safer to ask.
    if type(optimizer).__module__.startswith("torch.optim.") or not has_names(state):
        _check_shapes(matched, optimizer, names)
    return matched


def load_matched_state(optimizer: torch.optim.Optimizer, matched: Mapping[str, Any]) -> None:
    """Load what :func:`match_optimizer_state` returned.

    Tensors keep the dtype they were saved with (torch alone would cast moments to the parameter's). They may share
    memory with ``matched`` afterwards.
    """
    optimizer.load_state_dict(without_names(matched))
    keep_saved_dtypes(optimizer, matched)


def without_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without ``param_names``, which torch would otherwise put into the optimizer's groups.

    What is loaded takes out of it what other ranks have, if the optimizer is sharded.
    """
    if has_own_form(state):
        return {key: value for key, value in state.items() if key not in (CLASS_KEY, DEFAULTS_KEY)}
    groups = [{key: value for key, value in group.items() if key != NAMES_KEY} for group in state["param_groups"]]
    return {**state, "state": dict(state["state"]), "param_groups": groups}


def keep_saved_dtypes(optimizer: torch.optim.Optimizer, loaded: Mapping[str, Any]) -> None:
    """Undo what torch's ``load_state_dict(loaded)`` does to values: it casts tensors to the parameter's dtype, and
    takes strings apart.
    """
    if has_own_form(loaded):
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    # One that wraps another may have none, or numbers for keys, and a tensor compares with those element by element.
    states = {id(key): state for key, state in getattr(optimizer, "state", {}).items() if isinstance(key, Tensor)}
    for index, parameter in enumerate(parameters):
        state = states.get(id(parameter)) or {}  # sharded, it is that of another rank
        for key, saved in loaded["state"].get(index, {}).items():
            if key in state:
                state[key] = _as_saved(state[key], saved)


def _as_saved(cast: Any, saved: Any) -> Any:
    if isinstance(saved, Tensor) and isinstance(cast, Tensor):
        return cast if cast.dtype == saved.dtype else saved.to(cast.device)
    if isinstance(saved, dict) and isinstance(cast, dict):
        return {key: _as_saved(value, saved.get(key)) for key, value in cast.items()}
    if isinstance(saved, list | tuple) and type(cast) is type(saved) and len(cast) == len(saved):
        return type(saved)(map(_as_saved, cast, saved))
    return saved if isinstance(saved, str) else cast


def match_by_name(state: Mapping[str, Any], current: list[list[str]], *, strict: bool = True) -> dict[str, Any]:
    """Renumber saved state to the order of ``current``, the names of each group's parameters.

    Raises:
        StateMismatchError: see :func:`match_optimizer_state`.
    """
    saved_groups = state["param_groups"]
    if not has_names(state):
        _check_counts(saved_groups, current)
        return dict(state)
    # torch writes names as well, of compiled modules with their prefix.
    saved_groups = [{**group, NAMES_KEY: [clean_name(name) for name in group[NAMES_KEY]]} for group in saved_groups]
    state = {**state, "param_groups": saved_groups}
    saved_names = [group[NAMES_KEY] for group in saved_groups]
    problems = _differences(saved_names, current)
    if problems and (strict or len(saved_groups) != len(current)):
        raise StateMismatchError(
            f"the optimizer state does not fit the optimizer: {listed(problems)}. Build the optimizer as at the "
            "save, or keep the number of groups and load what fits with strict=False."
        )
    if saved_names != current and any(isinstance(entry, dict) and _WHOLE in entry for entry in state["state"].values()):
        saved_order, order = [[name for names in groups for name in names] for groups in (saved_names, current)]
        raise StateMismatchError(
            "the optimizer state is one vector over all parameters (LBFGS), and their order is another one: "
            f"expected {listed(saved_order)}, found {listed(order)}. Build the optimizer as at the save."
        )
    number_of = {
        name: number for group in saved_groups for name, number in zip(group[NAMES_KEY], group["params"], strict=True)
    }
    matched_state: dict[Any, Any] = {key: value for key, value in state["state"].items() if not isinstance(key, int)}
    matched_groups, next_number = [], 0
    for place, names in zip(group_places(state, current), current, strict=True):
        numbers = range(next_number, next_number := next_number + len(names))
        for number, name in zip(numbers, names, strict=True):
            if number_of.get(name) in state["state"]:
                matched_state[number] = state["state"][number_of[name]]
        matched_groups.append({**saved_groups[place], "params": list(numbers), NAMES_KEY: names})
    return {**state, "state": matched_state, "param_groups": matched_groups}


def group_places(state: Mapping[str, Any], current: list[list[str]]) -> list[int]:
    """For each current group, the place of the saved one with the same parameters; its own where that is not clear."""
    places: dict[frozenset[str], list[int]] = defaultdict(list)
    for place, group in enumerate(state["param_groups"]):
        places[frozenset(group.get(NAMES_KEY) or ())].append(place)
    if Counter(map(frozenset, current)) != {names: len(there) for names, there in places.items()}:
        return list(range(len(current)))
    return [places[frozenset(names)].pop(0) for names in current]


def has_names(state: Mapping[str, Any]) -> bool:
    """Whether state has to be matched by name."""
    return all(group.get(NAMES_KEY) is not None for group in state["param_groups"])


def check_group_order(optimizer: torch.optim.Optimizer, state: Mapping[str, Any], names: Mapping[int, str]) -> None:
    """Refuse groups in another order than at the save: learning-rate schedulers number them.

    Raises:
        StateMismatchError: they are.
    """
    places = [] if has_own_form(state) else group_places(state, group_names(optimizer, names))
    if places != sorted(places):
        raise StateMismatchError(
            f"the optimizer's groups are in another order than at the save ({places}), and learning-rate schedulers "
            "number them. Build the optimizer as at the save."
        )


def _differences(saved: list[list[str]], current: list[list[str]]) -> list[str]:
    in_saved, in_current = {n for names in saved for n in names}, {n for names in current for n in names}
    problems = [f"missing in the checkpoint: {name}" for name in sorted(in_current - in_saved)]
    problems += [f"not in the optimizer: {name}" for name in sorted(in_saved - in_current)]
    if not problems and sorted(map(sorted, saved)) != sorted(map(sorted, current)):
        problems.append(
            f"the same parameters in other groups: sizes {list(map(len, saved))} and {list(map(len, current))}"
        )
    return problems


def _check_counts(saved_groups: list[dict[str, Any]], current: list[list[str]]) -> None:
    saved_sizes, sizes = [len(group["params"]) for group in saved_groups], [len(names) for names in current]
    if saved_sizes != sizes:
        raise StateMismatchError(
            "the optimizer state, which has no parameter names, does not fit the optimizer: expected groups of "
            f"{sizes} parameters, found {saved_sizes}. Build the optimizer with the groups that it had at the save."
        )


def _check_shapes(state: Mapping[str, Any], optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    all_names = [name for group in group_names(optimizer, names) for name in group]
    guess = "" if has_names(state) else "It has no parameter names, and their order was probably another one. "
    for number, (parameter, name) in enumerate(zip(parameters, all_names, strict=True)):
        if is_lazy(parameter):  # the model's state gives it a shape
            continue
        for key, value in state["state"].get(number, {}).items():
            if key in _ELEMENTWISE and isinstance(value, Tensor) and value.shape != parameter.shape:
                raise StateMismatchError(
                    f"the optimizer state does not fit the optimizer: {key} of parameter {number} ({name}) has shape "
                    f"{tuple(value.shape)}, the parameter {tuple(parameter.shape)}. {guess}Build model and optimizer "
                    "as at the save."
                )
