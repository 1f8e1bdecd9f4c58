"""Attributes of users' callbacks, data module, loggers, and of their own kinds of trainer, loop and plugins."""

from __future__ import annotations

import functools
import sys
import types
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any, cast

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset

from neuromanifold_gpt.state.inspection.kept_variables import attributes_set_by, codes_of, variables_of_users_classes
from neuromanifold_gpt.state.inspection.plain_reading import (
    all_attributes,
    bases_of,
    module_name_of,
    variables_of_class,
)
from neuromanifold_gpt.state.inspection.users_objects import is_of_users_class, is_users_module
from neuromanifold_gpt.state.owned_state import OwnedState

_OF_EVERY_DATA_MODULE = frozenset({*vars(LightningDataModule()), "_hparams", "_hparams_initial"})
_BUILDING_METHODS = frozenset(
    {"__init__", "setup", "prepare_data", "configure_model", "configure_optimizers", "configure_callbacks"}
    | {f"{kind}_dataloader" for kind in ("train", "val", "test", "predict")}
)
_HOOKS_OF_STEPS = frozenset(
    {"training_step", "forward", "on_train_batch_start", "on_before_zero_grad", "optimizer_zero_grad", "backward"}
    | {"on_before_backward", "on_after_backward", "on_before_optimizer_step", "optimizer_step"}
    | {"configure_gradient_clipping"}
)
_TRAINERS = "lightning.pytorch.trainer"
_SAVING_HOOKS = ("state_dict", "on_save_checkpoint", "save_checkpoint")


class UsersAttributes:
    """Those of a trainer whose training begins."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        data: LightningDataModule | None = trainer.datamodule  # type: ignore[attr-defined]
        self._has_data_module = (
            data is not None and _saves_nothing(data, LightningDataModule) and not _goes_with_position(data, trainer)
        )
        things = [trainer.lightning_module, data, *trainer.callbacks]  # type: ignore[attr-defined]
        self._read_of_loggers = _names_beside("logger", things) | _names_beside("loggers", things)
        kinds = [cast(Any, type(thing)) for thing in things]
        self._set_beside_trainer = frozenset[str]().union(*map(_names_set_beside_trainer, kinds))

    def read(self) -> Iterator[tuple[str, Any]]:
        """Give them with their paths, ``TheirCallback.best``, as they are now."""
        seen: Counter[str] = Counter()
        callbacks: list[Callback] = self._trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            if _saves_nothing(callback, Callback) and not isinstance(callback, Checkpoint):
                name = type(callback).__name__
                seen[name] += 1
                owner = name if seen[name] == 1 else f"{name}-{seen[name]}"
                yield from ((f"{owner}.{attribute}", value) for attribute, value in all_attributes(callback).items())
        if self._has_data_module:
            data: LightningDataModule = self._trainer.datamodule  # type: ignore[attr-defined]
            own = {name: value for name, value in all_attributes(data).items() if name not in _OF_EVERY_DATA_MODULE}
            yield from ((f"{type(data).__name__}.{attribute}", value) for attribute, value in own.items())
        for logger in filter(is_of_users_class, self._trainer.loggers):  # a record, unless somebody reads it
            own = {name: value for name, value in all_attributes(logger).items() if name in self._read_of_loggers}
            yield from ((f"{type(logger).__name__}.{attribute}", value) for attribute, value in own.items())
        loop, strategy = self._trainer.fit_loop, self._trainer.strategy
        of_the_run = (self._trainer, strategy, self._trainer.precision_plugin, strategy.accelerator)
        for part in (*of_the_run, loop, loop.epoch_loop):
            names = _names_of_users_classes(cast(Any, type(part)))
            if part is self._trainer:
                names |= self._set_on_trainer()
            if names:
                own = {name: value for name, value in all_attributes(part).items() if name in names}
                yield from ((f"{type(part).__name__}.{attribute}", value) for attribute, value in own.items())

    def _set_on_trainer(self) -> frozenset[str]:
        """Attributes that it has since users' methods set them (``self.trainer.beta = ...``)."""
        there = self._set_beside_trainer & vars(self._trainer).keys()
        return there - _names_set_by_lightning() if there else there


def hyper_parameters_in_use(module: LightningModule) -> dict[str, Any]:
    """Those in ``module.hparams`` that methods read which are called while training goes on.

    What layers, optimizers and loaders are built with shows in these.
    """
    kept, read = module.hparams, _names_beside("hparams", [module])
    return {name: value for name, value in kept.items() if name in read} if isinstance(kept, Mapping) else {}


@functools.cache
def names_read_in_steps(kind: type) -> frozenset[str]:
    """Attributes that a step reads and does not set, as names tell, in users' classes: in the hooks of a module or
    callback up to the optimizer's step, and in what they call.
    """
    methods = _methods_of_users(kind)
    codes = [code for name in _called_by(_HOOKS_OF_STEPS, methods) for code in methods[name]]
    is_set = {name for code in codes for name in attributes_set_by(code)}
    return frozenset(name for code in codes for name in code.co_names) - is_set


@functools.cache
def functions_of_save_hook(kind: type) -> list[types.FunctionType]:
    """``on_save_checkpoint`` of users' classes, and the methods that it may call."""
    names = _called_by({"on_save_checkpoint"}, _methods_of_users(kind))
    found = (value for name, value in variables_of_users_classes(kind) if name in names)
    return [value for value in found if isinstance(value, types.FunctionType)]


def _names_beside(word: str, things: Iterable[Any]) -> set[str]:
    """All names, and texts, in those methods of users' classes that use ``word`` while training goes on."""
    found: set[str] = set()
    for thing in things:
        for codes in _methods_in_training(cast(Any, type(thing))):
            if any(word in code.co_names for code in codes):
                names = (name for code in codes for name in (*code.co_names, *code.co_consts))
                found.update(name for name in names if isinstance(name, str))
    return found


@functools.cache
def _names_set_beside_trainer(kind: type) -> frozenset[str]:
    """Attributes, of whatever, that those methods of users' classes set which use a trainer, or are given one."""
    given = vars(Callback) if issubclass(kind, Callback) else ()  # hooks, whatever they call it
    named = ((name, code) for name, codes in _methods_of_users(kind).items() for code in codes)
    using = (code for name, code in named if name in given or "trainer" in (*code.co_names, *code.co_varnames))
    return frozenset(name for code in using for name in attributes_set_by(code))


@functools.cache
def _names_set_by_lightning() -> frozenset[str]:
    """Attributes, of whatever, that its trainer, and the connectors around that, set."""
    modules = [module for name, module in [*sys.modules.items()] if name.startswith(f"{_TRAINERS}.")]
    things = [thing for module in modules for thing in vars(module).values()]
    classes = [thing for thing in things if isinstance(thing, type) and thing.__module__.startswith(_TRAINERS)]
    functions = [thing for thing in things if isinstance(thing, types.FunctionType)]
    methods = (value for kind in classes for value in variables_of_class(kind).values())
    return frozenset(name for value in (*functions, *methods) for name in attributes_set_by(value))


@functools.cache
def _methods_in_training(kind: type) -> list[list[types.CodeType]]:
    """The hooks of users' classes but for those that build something, and what these may call; each with what it has
    within it."""
    methods = _methods_of_users(kind)
    hooks = {name for base in bases_of(kind) if not is_users_module(module_name_of(base)) for name in vars(base)}
    return [methods[name] for name in sorted(_called_by(hooks - _BUILDING_METHODS, methods))]


def _called_by(names: Set[str], methods: Mapping[str, list[types.CodeType]]) -> set[str]:
    """Some methods, as far as there are such, and those that they may call."""
    called: set[str] = set()
    left = names & methods.keys()
    while left:
        called |= left
        used = {name for method in left for code in methods[method] for name in code.co_names}
        left = (used & methods.keys()) - called
    return called


def _methods_of_users(kind: type) -> dict[str, list[types.CodeType]]:
    methods: dict[str, list[types.CodeType]] = {}
    for name, value in variables_of_users_classes(kind):
        methods.setdefault(name, []).extend(codes_of(value.fget if isinstance(value, property) else value))
    return methods


def _saves_nothing(thing: Any, base: type) -> bool:
    hooks = ("state_dict", "on_save_checkpoint")
    inherited = all(getattr(type(thing), hook, None) is getattr(base, hook, None) for hook in hooks)
    return inherited and is_of_users_class(thing)


@functools.cache
def _names_of_users_classes(kind: type) -> frozenset[str]:
    """Attributes of a class that users' classes set, and not those of Lightning that they are derived from.

    None where users' classes save themselves.
    """
    of_users: set[str] = set()
    of_others: set[str] = set()
    for base in bases_of(kind):
        is_users = is_users_module(module_name_of(base))
        if is_users and any(hook in variables_of_class(base) for hook in _SAVING_HOOKS):
            return frozenset()
        names = of_users if is_users else of_others
        names.update(name for value in variables_of_class(base).values() for name in attributes_set_by(value))
    return frozenset(of_users - of_others)


def _goes_with_position(data: LightningDataModule, trainer: Trainer) -> bool:
    """Whether a loader that makes its batches in this process holds it, by its ``collate_fn``, say."""
    loaders = [loader for loader in tree_leaves(trainer.train_dataloader) if isinstance(loader, DataLoader)]
    here = [loader for loader in loaders if not loader.num_workers and not isinstance(loader.dataset, IterableDataset)]
    return any(thing is data for loader in here for thing in OwnedState({"loader": loader}).objects())
