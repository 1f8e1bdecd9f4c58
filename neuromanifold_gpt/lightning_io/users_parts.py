"""What users' callbacks, data module, trainer, strategy and precision plugin keep beside a state dict: generators are
stored, the rest is said.

As in modules (``state/unsaved/unsaved_values.py``), most of what changes in them is a record that nobody reads again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import numpy as np
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torchmetrics import Metric

from neuromanifold_gpt.lightning_io.loader_parts import DATA_PREFIX
from neuromanifold_gpt.lightning_io.users_attributes import (
    UsersAttributes,
    hyper_parameters_in_use,
    names_read_in_steps,
)
from neuromanifold_gpt.state.inspection.stored_values import is_single_value
from neuromanifold_gpt.state.inspection.users_objects import is_a_time, is_of_users_class
from neuromanifold_gpt.state.inspection.users_variables import users_variables
from neuromanifold_gpt.state.metrics import metrics_of
from neuromanifold_gpt.state.own_generators import by_number, generators_around
from neuromanifold_gpt.state.owned_state import OwnedState
from neuromanifold_gpt.state.unsaved.followed_values import FollowedValues, SavedValues
from neuromanifold_gpt.state.unsaved.layers import settings_of_layers
from neuromanifold_gpt.state.unsaved.optimizer_values import (
    parameters_of_no_module,
    values_of_communication_hooks,
    values_of_optimizers,
    values_of_schedulers,
)
from neuromanifold_gpt.state.unsaved.shown_values import RESULT, holds_tensors, kept_by, memory_in, shown_value
from neuromanifold_gpt.state.unsaved.unsaved_values import (
    attributes_of_parts,
    values_beside_state,
    variables_beside_state,
    without_settings_in_dicts,
)

# The hyper-parameters are in the checkpoint, but ``fit`` does not put them back.
_OF_EVERY_MODULE = frozenset({*vars(LightningModule()), "_hparams_initial"})


class UsersParts:
    """Follows the module, the callbacks and the data module of a trainer whose training begins.

    Args:
        trainer: it.
        of_position: gives the objects whose changes go with the position in the data.

    Attributes:
        metrics: torchmetrics that they keep, by path; they are stored.
    """

    def __init__(self, trainer: Trainer, of_position: Callable[[], Iterable[Any]]) -> None:
        self._trainer, self._of_position = trainer, of_position
        self._users_attributes = UsersAttributes(trainer)
        self.metrics = self._metrics()
        self._unsaved = FollowedValues(self._values())
        self._constants = FollowedValues(self._shown_constants())
        self._constants.pass_over(self._numbers_of_others())
        self._saved_constants = SavedValues({})
        self._there_at_start = {path for path, value in self._plain_values() if value is not None}
        self._is_resumed = False
        self._epochs_before: int | None = None  # the first step of a resumed process

    def look(self) -> None:
        """The first step is done: what was not there when training began, begins as it is now.

        Warns:
            InexactResumeWarning: see :meth:`warn_of_what_is_missing`.
        """
        self._unsaved.set_up(self._values(), only_none=self._is_resumed)
        self.constants()
        self._epochs_before = self._epochs_processed() if self._is_resumed else None
        self.warn_of_what_is_missing()

    def constants(self) -> dict[str, str]:
        """Numbers and tensors that have not changed since training began, or since they were first there; of texts, and
        of variables of users' Python modules, only which were not there then.

        Warns:
            InexactResumeWarning: see :meth:`restored`.
        """
        now = self._shown_constants()
        self._constants.pass_over(self._constants.changed(now))  # which is said elsewhere
        found = {path: shown for path, shown in now.items() if path not in self._constants.passed_over}
        self._saved_constants.warn_of_others(found)
        return {**dict.fromkeys(self._set_by_now() - self._there_at_start, ""), **found}

    def restored(self, constants: Mapping[str, str]) -> None:
        """Compare with :meth:`constants` of the save; of what is not there yet, when it is.

        What hooks have set by now, such as the step where this process began, counts as little as what the program
        gives.

        Args:
            constants: of the first rank; where this is another one, nothing.

        Warns:
            InexactResumeWarning: names what was otherwise at the save.
        """
        self._unsaved.set_up(self._values(), only_none=False)
        self._is_resumed = True
        self._constants.pass_over(self._numbers_of_others())
        of_parts = {path: shown for path, shown in constants.items() if not path.startswith(DATA_PREFIX)}
        module = self._trainer.lightning_module
        self._saved_constants = SavedValues(without_settings_in_dicts(of_parts, module))
        self._there_at_start -= of_parts.keys()  # a program may resume in the process that saved
        self.constants()

    def warn_of_what_is_left_out(self) -> None:
        """Say which values no checkpoint has.

        Warns:
            InexactResumeWarning: names those that have changed and were not named before; also see
                :meth:`warn_of_what_is_missing`.
        """
        self._unsaved.warn_if_changed(self._values())
        self.warn_of_what_is_missing()

    def warn_of_what_is_missing(self) -> None:
        """Say which values were there at the save, and are not in the resumed process: those that its steps read, and
        behind an epoch with its validation, which sets some, the others.

        Warns:
            InexactResumeWarning: names them.
        """
        if self._epochs_before is None or not self._saved_constants.missing(()):
            return
        missing = self._saved_constants.missing({*self._shown_constants(), *self._set_by_now()})
        is_within_epoch = self._epochs_processed() == self._epochs_before
        if is_within_epoch:
            trainer = self._trainer
            kinds = [type(trainer.lightning_module), *map(type, trainer.callbacks)]  # type: ignore[attr-defined]
            read = frozenset[str]().union(*map(names_read_in_steps, cast(Any, kinds)))
            missing = {path for path in missing if _name(path) in read}
        self._saved_constants.warn_of_missing(missing)
        if not is_within_epoch:
            self._saved_constants = SavedValues({})  # what comes again has come

    def _epochs_processed(self) -> int:
        progress: Any = self._trainer.fit_loop.epoch_progress.current
        return int(progress.processed)

    def look_again(self) -> OwnedState:
        """Hooks were called: give the generators that are there now, and note what is there as at the save."""
        if self._saved_constants.missing(()):
            self._saved_constants.note_there(self._set_by_now())
        others = {
            path: value
            for path, value in self._users_attributes.read()
            if not issubclass(type(value), Dataset | DataLoader | Sampler)  # goes with the positions of loaders
        }
        trainer = self._trainer
        schedulers = (config.scheduler for config in trainer.lr_scheduler_configs)
        others.update(by_number(optimizers=trainer.optimizers, schedulers=schedulers))
        return generators_around(
            trainer.lightning_module,
            others,
            (trainer,),
            things=[*what_trains(trainer), *self._of_position()],
        )

    def _shown_constants(self) -> dict[str, str]:
        """Numbers and tensors."""
        module = self._trainer.lightning_module
        found: dict[str, str] = {}
        if not is_overridden("on_save_checkpoint", module):
            found = values_beside_state(module, ignored=_OF_EVERY_MODULE, kept=self._saved(), as_settings=True)
        kept = self._kept() | memory_in(self._of_position())
        in_use = hyper_parameters_in_use(module)
        hyper_parameters = [(f"hparams.{name}", value) for name, value in in_use.items()]
        for path, value in [*hyper_parameters, *self._users_attributes.read()]:
            if not is_a_time(_name(path), value) and (shown := shown_value(value, kept, is_setting=True)) is not None:
                found[path] = shown
        passed_over = {} if module.strict_loading else settings_of_layers(module)  # others are to be loaded into it
        return {path: shown for path, shown in found.items() if shown != RESULT and path not in passed_over}

    def _set_by_now(self) -> set[str]:
        """Which are numbers, texts that are no paths of files, tensors, or modules."""
        return {path for path, value in self._plain_values() if _is_state(value) and not is_a_time(_name(path), value)}

    def _plain_values(self) -> list[tuple[str, Any]]:
        """Attributes, also of the module, and variables of users' Python modules."""
        trainer, module = self._trainer, self._trainer.lightning_module
        found = [*self._users_attributes.read(), *users_variables([*what_trains(trainer), *self._of_position()])]
        if not is_overridden("on_save_checkpoint", module):
            found += [(path.lstrip("."), value) for path, value, _ in attributes_of_parts(module, _OF_EVERY_MODULE)]
        return found

    def _values(self) -> dict[str, str]:
        trainer, module = self._trainer, self._trainer.lightning_module
        saved, shared = self._saved(), memory_in(self._of_position())
        kept = self._kept() | shared
        found: dict[str, str] = {}
        if not is_overridden("on_save_checkpoint", module):
            found = values_beside_state(
                module, with_followed=False, ignored=_OF_EVERY_MODULE, kept=saved, kept_memory=shared
            )
            others = parameters_of_no_module(trainer.optimizers, {id(parameter) for parameter in module.parameters()})
            found.update((path, shown_value(parameters) or "") for path, parameters in others.items())
        if trainer.strategy.model is not None:
            found.update(values_of_communication_hooks(trainer.strategy.model))
        found.update(values_of_optimizers(trainer.optimizers))
        found.update(values_of_schedulers(self._schedulers(), kept))
        found.update(variables_beside_state([*what_trains(trainer), *self._of_position()], kept, with_script=True))
        for path, value in self._users_attributes.read():
            shown = shown_value(value, kept, names_code=True, is_carried=True)
            if shown is not None and not is_a_time(_name(path), value):
                found[path] = shown
        return found

    def _numbers_of_others(self) -> list[str]:
        """Attributes of callbacks and the data module that are there, and hold no tensors."""
        return [path for path, value in self._users_attributes.read() if value is not None and not holds_tensors(value)]

    def _schedulers(self) -> list[Any]:
        return [part for config in self._trainer.lr_scheduler_configs for part in _with_parts(config.scheduler)]

    def _saved(self) -> list[Any]:
        trainer = self._trainer
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        return [*trainer.optimizers, *self._schedulers(), *callbacks, trainer.datamodule]  # type: ignore[attr-defined]

    def _kept(self) -> set[int]:
        """As for :func:`shown_value`, but for the memory of what goes with the position."""
        trainer = self._trainer
        of_the_run = (trainer, trainer.strategy, trainer.profiler, *trainer.loggers)  # type: ignore[attr-defined]
        things = (*self._saved(), *of_the_run, *self.metrics.values(), *self._of_position())
        return kept_by(trainer.lightning_module) | {id(thing) for thing in things}

    def _metrics(self) -> dict[str, Metric]:
        """Of the module, and of what else keeps some and saves nothing."""
        found = metrics_of(self._trainer.lightning_module)
        seen = {id(metric) for metric in found.values()}
        for path, value in self._users_attributes.read():
            of_it = metrics_of(value) if issubclass(type(value), nn.Module) else {}
            found.update((f"{path}.{name}", metric) for name, metric in of_it.items() if id(metric) not in seen)
        return found


def _with_parts(scheduler: Any) -> list[Any]:
    """A scheduler, and those whose states torch's ``SequentialLR`` and ``ChainedScheduler`` save with their own."""
    return [scheduler, *getattr(scheduler, "_schedulers", ())]


def what_trains(trainer: Trainer) -> list[Any]:
    """The parts of the module, the optimizers, the callbacks and the data module."""
    others = (*trainer.optimizers, *trainer.callbacks, trainer.datamodule)  # type: ignore[attr-defined]
    return [*trainer.lightning_module.modules(), *others]


def that_save_state(trainer: Trainer) -> list[Any]:
    """Of users' data module and callbacks those with a ``state_dict`` of theirs."""
    data, callbacks = trainer.datamodule, trainer.callbacks  # type: ignore[attr-defined]
    found = [data] if data is not None and type(data).state_dict is not LightningDataModule.state_dict else []
    found += [callback for callback in callbacks if type(callback).state_dict is not Callback.state_dict]
    return [thing for thing in found if is_of_users_class(thing)]


def _is_state(value: Any) -> bool:
    kind = type(value)  # isinstance() would ask proxies
    if value is None or (issubclass(kind, str) and "/" in value):
        return False
    return is_single_value(value) or issubclass(kind, Tensor | np.ndarray | nn.Module)


def _name(path: str) -> str:
    return path.rpartition(".")[2]
