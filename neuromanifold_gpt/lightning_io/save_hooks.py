"""What users' ``on_save_checkpoint`` saves, read off their code: to call them, as often as one likes, is not for us."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any, cast

from lightning.pytorch import Trainer
from torch import nn

from neuromanifold_gpt.lightning_io.users_attributes import functions_of_save_hook
from neuromanifold_gpt.state.inspection.plain_reading import all_attributes
from neuromanifold_gpt.state.inspection.users_objects import is_a_time, is_of_users_class
from neuromanifold_gpt.state.unsaved.shown_values import shown_value


def shown_of_save_hooks(trainer: Trainer) -> dict[str, str]:
    """What shows the attributes and variables that ``on_save_checkpoint`` of the module, its callbacks and the data
    module names, or what it calls; see :func:`shown_value`.
    """
    users = (trainer.lightning_module, trainer.datamodule, *trainer.callbacks)  # type: ignore[attr-defined]
    kept = {id(thing) for thing in (trainer, trainer.strategy, *trainer.loggers, *users)}
    found: dict[str, str] = {}
    for user in users:
        for name, value in _values_named(user):
            if not is_a_time(name.rpartition(".")[2], value) and (shown := shown_value(value, kept)) is not None:
                found[f"{name} in on_save_checkpoint of {type(user).__name__}"] = shown
    return found


def _values_named(user: Any) -> Iterator[tuple[str, Any]]:
    for function in functions_of_save_hook(cast(Any, type(user))):
        names = function.__code__.co_names
        found = {f"self.{name}": value for name, value in _attributes(user).items() if name in names}
        with contextlib.suppress(ValueError):  # a variable of the function around it that is not set yet
            variables = inspect.getclosurevars(function)
            found.update({**variables.nonlocals, **variables.globals})
        for path, value in found.items():
            yield path, value
            within = _attributes(value) if is_of_users_class(value) else {}
            yield from ((f"{path}.{name}", part) for name, part in within.items() if name in names)


def _attributes(thing: Any) -> dict[str, Any]:
    parts = thing._modules if isinstance(thing, nn.Module) else {}
    return {**all_attributes(thing), **parts}
