"""Steps that a run took behind its last save and lost: the run that resumes takes them again, with the same result.

That is what *exact* means, so whatever a checkpoint lacks shows here, be it known to anybody or not. From each save on,
digests of the weights are noted in ``.nm-steps.log`` beside the checkpoint: behind each of the first hundred optimizer
steps, then behind each hundredth. They are not synced, since a kill does not lose them, and no checkpoint needs them.
The next save removes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import re
import threading
import weakref
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from neuromanifold_gpt.checkpoint.commit import Checkpoint
from neuromanifold_gpt.checkpoint.errors import InexactResumeWarning, StepsNotComparedWarning
from neuromanifold_gpt.checkpoint.naming import temporary
from neuromanifold_gpt.checkpoint.storage import open_regular
from neuromanifold_gpt.checkpoint.user_warnings import warn_user

STEPS_NAME = ".nm-steps.log"
_EACH_UP_TO = 100  # steps behind the save; then each hundredth
_LINE = re.compile(r"[0-9a-f]{16}\n")
_LOOKED_AT_PARAMETERS = 64  # of an optimizer, evenly spaced: one step carries what differs into nearly all
_LOOKED_AT_ELEMENTS = 16
logger = logging.getLogger(__name__)


class _Steps:
    """Counts the steps of some optimizers, which are known by what they train: others may wrap them."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        first_parameters = map(_first_parameter, optimizers)
        self._first_parameters = [weakref.ref(first) for first in first_parameters if first is not None]
        self._stepping: dict[int, weakref.ref[torch.optim.Optimizer]] = {}  # by identity of the first parameter
        self.number = 0

    def are_of(self, parameter: Tensor | None) -> bool:
        return parameter is not None and any(first() is parameter for first in self._first_parameters)

    def share_with(self, others: _Steps) -> bool:
        return any(self.are_of(first()) for first in others._first_parameters)

    def are_over(self) -> bool:
        return all(first() is None for first in self._first_parameters)

    def counts(self, optimizer: torch.optim.Optimizer, parameter: Tensor | None) -> bool:
        """Whether this step is one of those that are noted.

        Of an optimizer and one around it, with the same parameters, the inner one steps first, and the other may have
        no hooks until a state dict is loaded.
        """
        if parameter is None or not self.are_of(parameter):
            return False
        if self._stepping.setdefault(id(parameter), weakref.ref(optimizer))() is not optimizer:
            return False
        self.number += 1
        return self.number <= _EACH_UP_TO or self.number % 100 == 0

    def take(self, digest: str) -> None:
        """Of the weights behind the step."""
        raise NotImplementedError

    def end(self) -> None:
        """Count no more."""
        with contextlib.suppress(ValueError):
            _followed.remove(self)


class _NotedSteps(_Steps):
    """Those behind a save, from its capture on. They are written once it is complete."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__(optimizers)
        self.key = next(_keys)
        self._lines: list[str] = []
        self._path: Path | None = None
        self._pairs: list[str] = []
        self._descriptor: int | None = None
        self._is_over = False

    def take(self, digest: str) -> None:
        """Write it, or keep it until the save is complete."""
        with _lock:
            self._lines.append(f"{digest}\n")
            if self._path is not None:
                self._write()

    def saved_as(self, checkpoint: Checkpoint) -> None:
        """The save is complete."""
        with _lock:
            self._path = checkpoint.directory / STEPS_NAME
            _behind[self._path] = checkpoint.model_path
            self._pairs = [checkpoint.manifest.pair]
            for other in [steps for steps in _followed if isinstance(steps, _NotedSteps) and steps is not self]:
                if other._path == self._path and other.number == self.number and other.share_with(self):
                    self._pairs += other._pairs  # two names for the same step
                if other._path == self._path or (other.number > self.number and other.share_with(self)):
                    other.end()
            try:
                self._path.unlink(missing_ok=True)  # of the save before
            except OSError as error:
                self._give_up(error)
            self._write()

    def are_in(self, path: Path) -> bool:
        """Whether they are written to a file."""
        return self._path == path

    def _write(self) -> None:
        """From the first step on: a run that ends with a save leaves no file."""
        if self._is_over or not self._lines or self._path is None:
            return
        try:
            if self._descriptor is None:
                self._descriptor = _begun(self._path, " ".join(self._pairs) + "\n")
            text, self._lines = "".join(self._lines), []
            os.write(self._descriptor, text.encode())
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        warn_user(
            f"{self._path}: the system refused to write it ({error.strerror or error}), so the steps up to the next "
            "save will be compared with nothing if they are taken again. Checkpoints are not affected.",
            StepsNotComparedWarning,
        )
        self.end()

    def end(self) -> None:
        """Write no more."""
        super().end()
        self._is_over = True
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class _StepsAgain(_Steps):
    """Those behind a restore."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], name: str, digests: list[str]) -> None:
        super().__init__(optimizers)
        self._name = name
        self._digests = digests[::-1]

    def take(self, digest: str) -> None:
        if digest != self._digests.pop():
            self.end()
            warn_user(
                f"optimizer step {self.number} behind {self._name} has given other weights than in the run that was "
                "interrupted: this resume is not exact. Unless code, data, settings or the machine are others now, "
                "training depends on something that the checkpoint does not have.",
                InexactResumeWarning,
            )
        elif not self._digests:
            self.end()
            logger.info(
                "%d optimizer step%s behind %s: the same weights as in the run that was interrupted",
                self.number,
                "" if self.number == 1 else "s",
                self._name,
            )


_followed: list[_Steps] = []
_keys = itertools.count()
_lock = threading.RLock()  # a save may be completed by another thread than the one that trains
_known_here: set[str] = set()  # what this process has saved or restored
_behind: dict[Path, Path] = {}  # the model file of the save that the steps in a file are behind


def note_steps(optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """From the capture of a save on.

    Returns:
        A key, for :func:`steps_are_behind`.
    """
    for steps in [steps for steps in _followed if steps.are_over()]:
        steps.end()
    noted = _NotedSteps(optimizers)
    _followed.append(noted)
    return noted.key


def steps_are_behind(checkpoint: Checkpoint, key: int) -> None:
    """The save whose steps have that key is complete.

    Warns:
        StepsNotComparedWarning: they cannot be written.
    """
    _known_here.add(checkpoint.manifest.pair)
    for steps in [steps for steps in _followed if isinstance(steps, _NotedSteps) and steps.key == key]:
        steps.saved_as(checkpoint)


def forget_steps(model_path: Path) -> None:
    """A checkpoint is about to be removed: the steps behind it, if none was saved since, can be taken again no more."""
    path = model_path.with_name(STEPS_NAME)
    with _lock:
        if _behind.get(path) == model_path:
            for steps in [steps for steps in _followed if isinstance(steps, _NotedSteps) and steps.are_in(path)]:
                steps.end()
            path.unlink(missing_ok=True)


def compare_steps(checkpoint: Checkpoint, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """From a restore on, with those that another process has noted behind the same save.

    A program that returns to a checkpoint of its own, because of a spike in the loss, say, need not do the same again.

    Warns:
        StepsNotComparedWarning: they cannot be read.
        InexactResumeWarning: at the first step with another result.
    """
    for steps in [steps for steps in _followed if steps.share_with(_Steps(optimizers))]:
        steps.end()
    digests = [] if checkpoint.manifest.pair in _known_here else _noted_behind(checkpoint)
    _known_here.add(checkpoint.manifest.pair)
    if digests:
        _followed.append(_StepsAgain(optimizers, checkpoint.name, digests))


def note_step(optimizer: torch.optim.Optimizer) -> None:
    """To be called after each step."""
    first = _first_parameter(optimizer) if _followed else None
    if first is not None and first.is_cuda and torch.cuda.is_current_stream_capturing():
        return  # of a CUDA graph, in which nothing can be read; this was not run on a GPU
    counting = [steps for steps in [*_followed] if steps.counts(optimizer, first)]
    if counting:
        digest = _digest_of_weights(optimizer)
        for steps in counting:
            steps.take(digest)


def _begun(path: Path, head: str) -> int:
    """A descriptor of a new file: not in place, since another process may write there."""
    descriptor = os.open(temporary(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.write(descriptor, head.encode())
    temporary(path).replace(path)
    return descriptor


def _noted_behind(checkpoint: Checkpoint) -> list[str]:
    path = checkpoint.directory / STEPS_NAME
    try:
        with open_regular(path) as file:
            head, *lines = file.read().decode("ascii", errors="replace").splitlines(keepends=True) or [""]
    except FileNotFoundError:
        return []
    except OSError as error:
        warn_user(
            f"{path}: the system refused to read it ({error.strerror or error}), so what is trained again is not "
            "compared with what the interrupted run had trained.",
            StepsNotComparedWarning,
        )
        return []
    is_whole = [_LINE.fullmatch(line) is not None for line in lines]
    whole = lines[: is_whole.index(False)] if False in is_whole else lines  # the last one may be torn
    return [line.strip() for line in whole] if checkpoint.manifest.pair in head.split() else []


def _first_parameter(optimizer: torch.optim.Optimizer) -> Tensor | None:
    return next((parameter for group in optimizer.param_groups for parameter in group["params"]), None)


def _digest_of_weights(optimizer: torch.optim.Optimizer) -> str:
    """Of some elements of some parameters: 0.2 ms at most, and on an accelerator one synchronization."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for parameter in parameters[:: max(1, len(parameters) // _LOOKED_AT_PARAMETERS)]:
        if type(parameter) in (Tensor, nn.Parameter) and parameter.layout is torch.strided and not parameter.is_meta:
            by_kind[parameter.device, parameter.dtype].append(_some_elements(parameter.detach()))
    digest = hashlib.blake2b(digest_size=8)
    for elements in by_kind.values():
        digest.update(torch.cat(elements).view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()


def _some_elements(tensor: Tensor) -> Tensor:
    count = min(_LOOKED_AT_ELEMENTS, tensor.numel())
    if count and tensor.is_contiguous():
        return tensor.as_strided((count,), (tensor.numel() // count,))
    return tensor.reshape(-1)[:: max(1, tensor.numel() // max(1, count))][:count]
