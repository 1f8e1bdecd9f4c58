"""Look at the checkpoints of a program that was stopped: which are whole, and which are half-written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuromanifold_gpt.certify.artifacts import (
    Unit,
    artifact_at,
    find_artifacts,
    is_artifact_name,
    is_readable,
    read_tree,
    step_in_content,
    units_of,
    without_numbers,
)
from neuromanifold_gpt.certify.compare import RunFiles
from neuromanifold_gpt.certify.errors import UnreadableError
from neuromanifold_gpt.certify.names import is_lock_name
from neuromanifold_gpt.certify.trees import leaves

_STATE_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".npz", ".npy", ".pkl", ".pickle", ".bin", ".json")


@dataclass(frozen=True)
class HalfWritten:
    """A file that was being written, or that others are missing beside."""

    relative: str
    size_bytes: int
    why: str

    def __str__(self) -> str:
        return f"{self.relative} ({self.size_bytes} bytes, {self.why})"


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint that is whole. ``leaves``: how many values it holds, tensors and others."""

    name: str
    step: int | None
    files: tuple[str, ...]
    leaves: int = 0

    @property
    def is_best(self) -> bool:
        """Whether it is kept for being the best so far: newer or older than the one to resume from."""
        return "best" in self.name.lower()


class ExpectedSaves:
    """What the undisturbed run's saved files look like once they are whole.

    Args:
        undisturbed: its files; ``None`` while there is no such run yet.
        ever_saved: what it saved while it ran: it may have removed its checkpoints at its end.
    """

    def __init__(self, undisturbed: RunFiles | None, ever_saved: Iterable[str] = ()) -> None:
        self._file_forms: set[str] = set()
        self._readable_forms: set[str] = set()
        self._unit_forms: dict[str, frozenset[str]] = {}
        if undisturbed is None:
            return
        for unit in undisturbed.units:
            forms = unit.file_forms
            self._unit_forms[unit.form] = self._unit_forms.get(unit.form, forms) & forms
            for artifact in unit.files:
                form = without_numbers(artifact.relative)
                if form not in self._file_forms and is_readable(artifact):
                    self._readable_forms.add(form)
                self._file_forms.add(form)
        removed = [relative for relative in ever_saved if relative not in undisturbed.artifacts]
        for unit in units_of({relative: artifact_at(undisturbed.out, relative) for relative in removed}):
            forms = frozenset(form for form in unit.file_forms if Path(form).suffix in _STATE_SUFFIXES)
            if forms and unit.form not in self._unit_forms:
                self._unit_forms[unit.form] = forms
                self._file_forms |= forms
                self._readable_forms |= forms

    def half_written(self, out: Path, changed: Iterable[str]) -> list[HalfWritten]:
        """The files among ``changed`` that are not what they will be when their save is over."""
        changed = set(changed)
        found = []
        artifacts = find_artifacts(out)
        for relative, artifact in artifacts.items():
            form = without_numbers(relative)
            if relative not in changed or not is_artifact_name(relative) or is_lock_name(relative):
                continue
            try:
                size_bytes = artifact.path.stat().st_size
            except FileNotFoundError:
                continue
            if form not in self._file_forms:
                found.append(HalfWritten(relative, size_bytes, "temporary"))
            elif form in self._readable_forms and not is_readable(artifact):
                found.append(HalfWritten(relative, size_bytes, "torn"))
        for unit in units_of(artifacts):
            missing = self._unit_forms.get(unit.form, frozenset()) - unit.file_forms
            if missing and not any(half.relative in {file.relative for file in unit.files} for half in found):
                found += [
                    HalfWritten(file.relative, file.path.stat().st_size, f"{len(missing)} files of its save missing")
                    for file in unit.files
                    if file.relative in changed
                ]
        return found

    def whole(self, out: Path) -> list[SavedCheckpoint]:
        """The checkpoints that could be resumed from."""
        found = []
        for unit in units_of(find_artifacts(out)):
            expected = self._unit_forms.get(unit.form)
            if expected is not None and expected <= unit.file_forms and self._is_whole(unit):
                files = tuple(file.relative for file in unit.files)
                found.append(SavedCheckpoint(unit.name, files=files, **_content(unit)))
        return found

    def _is_whole(self, unit: Unit) -> bool:
        return all(
            is_readable(file) for file in unit.files if without_numbers(file.relative) in self._readable_forms
        ) and any(_is_state(file.relative) for file in unit.files)


def _is_state(relative: str) -> bool:
    """Whether a file can hold weights: a lone JSON or text file beside checkpoints only describes them."""
    return Path(relative).suffix not in ("", ".yaml", ".txt")


def _content(unit: Unit) -> dict[str, Any]:
    """The step of a checkpoint, and how many leaves it has."""
    step, count = unit.step, 0
    for file in unit.files:
        try:
            tree = read_tree(file.path)
        except UnreadableError:
            continue
        count += sum(1 for _ in leaves(tree))
        if step is None:
            step = step_in_content(tree)
    return {"step": step, "leaves": count}
