"""What must hold in a directory of checkpoints, whatever happened to the process that wrote there."""

from __future__ import annotations

import warnings
from pathlib import Path

from neuromanifold_gpt import latest_checkpoint, list_checkpoints, verify_checkpoint

from ..checkpoint.small_saves import files_of_checkpoints, names_in
from .scenarios import Kind, Scenario
from .tiny_training import LAST_STEP, Bytes, TinyTraining, bytes_of, undisturbed


class LossError(Exception):
    """Something that was promised does not hold."""


def require(condition: object, what: str) -> None:
    """Raises :class:`LossError`; unlike ``assert``, never switched off."""
    if not condition:
        raise LossError(what)


def inventory(directory: Path) -> dict[str, Kind]:
    """The complete checkpoints of a directory, each of them intact and, byte for byte, that of an undisturbed run."""
    found = {}
    for checkpoint in list_checkpoints(directory):
        verify_checkpoint(checkpoint)
        kind = checkpoint.step, checkpoint.model_only
        require(is_exact(bytes_of(checkpoint), kind), f"{checkpoint.name} has other bytes than step {kind}")
        found[checkpoint.name] = kind
    return found


def is_exact(found: Bytes, kind: Kind) -> bool:
    """Whether these are the bytes of an undisturbed run."""
    step, model_only = kind
    if model_only and found.optimizer is None and found.model == undisturbed()[step, False].model:
        return True  # saved whole; a policy has removed its optimizer file since
    return found == undisturbed()[kind]


def nothing_is_lost(directory: Path, scenario: Scenario, before: dict[str, Kind]) -> dict[str, Kind]:
    """Each checkpoint that was complete is there still, or what was to replace it; and the newest one is found.

    Returns:
        the inventory.
    """
    found = inventory(directory)
    added = {(name.strip(), kind) for name, kind in scenario.adds.items()}
    for name, kind in before.items():
        allowed = {kind, *(new for added_name, new in added if added_name == name)}
        allowed |= {(kind[0], True)} if name in scenario.may_be_thinned else set()
        gone = name in scenario.removes and name not in found
        require(gone or found.get(name) in allowed, f"{name} {kind} is lost: found {found}")
    for name, kind in found.items():
        thinned = name in scenario.may_be_thinned and before.get(name) == (kind[0], False) and kind[1]
        require(before.get(name) == kind or thinned or (name, kind) in added, f"nobody saved {name} {kind}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        newest = latest_checkpoint(directory)
    newest_step = max(step for step, _ in found.values())
    require(newest is not None and newest.step == newest_step, f"latest_checkpoint gives {newest} of {found}")
    return found


def training_goes_on(directory: Path, scenario: Scenario, found: dict[str, Kind]) -> None:
    """A new process resumes, does again what was interrupted, trains to the end: to the bytes of an undisturbed run."""
    scenario.started(directory)()
    newest = latest_checkpoint(directory, resumable=True)
    require(newest is not None, "nothing to resume from")
    last = TinyTraining().resume(newest).train_until(LAST_STEP).save(directory)
    require(bytes_of(last) == undisturbed()[LAST_STEP, False], "the run ends in other bytes")
    after = inventory(directory)
    lost = set(found) - set(after) - scenario.removes
    require(not lost, f"{lost} lost by the next writer")
    for name, kind in scenario.adds.items():
        require(f"{name} " in scenario.adds or after.get(name.strip()) == kind, f"{name} {kind} was not saved: {after}")
    require(policy_is_done(scenario, after), f"not done: {scenario.removes} gone, {scenario.thins} thin: {after}")
    left = names_in(directory) - files_of_checkpoints(directory)
    require(not left, f"left over: {sorted(left)}")


def policy_is_done(scenario: Scenario, found: dict[str, Kind]) -> bool:
    """Whether what was to go is gone, and what was to keep its model file only has no other."""
    return not scenario.removes & set(found) and all(found[name][1] for name in scenario.thins)


def still_holds(directory: Path, scenario: Scenario, before: dict[str, Kind]) -> dict[str, Kind]:
    """Both of the above; returns what was found before training went on."""
    found = nothing_is_lost(directory, scenario, before)
    training_goes_on(directory, scenario, found)
    return found
