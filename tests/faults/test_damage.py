"""A checkpoint that is damaged in any way is refused wherever it is read, and named; a resume takes the one before."""

from __future__ import annotations

import contextlib
import io
import json
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuromanifold_gpt import CheckpointError, cli, latest_checkpoint, load_checkpoint, verify_checkpoint
from neuromanifold_gpt.checkpoint.errors import DamagedCheckpointWarning
from neuromanifold_gpt.checkpoint.naming import step_name
from neuromanifold_gpt.lightning_io.plugin import SeparatedCheckpointIO

from .invariant import require
from .mutations import (
    MANIFEST,
    MODEL,
    OPTIMIZER,
    Mutation,
    Specimen,
    at_chosen_places,
    of_the_manifest_s_spelling,
    of_whole_files,
)
from .parts import Part, in_parts
from .tally import Tally
from .tiny_training import TinyTraining

OLDER, NEWEST = step_name(2), step_name(3)
CHANCE = random.Random(3)
WAYS_TO_LOAD: dict[str, Callable[[Specimen], object]] = {
    "load_checkpoint": lambda specimen: load_checkpoint(specimen.newest),
    "load_checkpoint of its model file": lambda specimen: load_checkpoint(specimen.paths[MODEL]),
    "load_checkpoint of its optimizer file": lambda specimen: load_checkpoint(specimen.paths[OPTIMIZER]),
    "the Lightning plugin": lambda specimen: SeparatedCheckpointIO().load_checkpoint(specimen.paths[MODEL]),
}
WAYS_TO_VERIFY: dict[str, Callable[[Specimen], object]] = {
    "verify_checkpoint": lambda specimen: verify_checkpoint(specimen.newest),
    "verify_checkpoint of its manifest": lambda specimen: verify_checkpoint(specimen.paths[MANIFEST]),
}


@pytest.fixture(scope="module")
def specimen(tmp_path_factory: pytest.TempPathFactory) -> Specimen:
    directory = tmp_path_factory.mktemp("specimen")
    training = TinyTraining().train_until(2)
    training.save(directory)
    training.train_until(3).save(directory)
    return Specimen(directory, NEWEST)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of other checkpoints: of the same step and the same sizes in another run, and so on."""
    directory = tmp_path_factory.mktemp("foreign")
    other = TinyTraining().train_until(1)
    other.step = 2  # one step behind: other weights under the same number
    other.train_until(3).save(directory / "other")
    whole = TinyTraining().train_until(3)
    whole.save(directory / "same-model-only", NEWEST, model_only=True)
    whole.save(directory / "renamed", step_name(7))
    found = {}
    for run in directory.iterdir():
        for path in run.iterdir():
            found[f"{path.name} of {run.name}"] = path.read_bytes()
    return found


def is_detected(specimen: Specimen, mutation: Mutation) -> None:
    """Refused by whatever reads checkpoints, with the file and the tensor; and the older one is resumed from.

    Each mutation is loaded, verified and passed over by a resume, in ways to load and to verify that chance chooses.
    """
    specimen.heal()
    damaged = specimen.paths[mutation.role]
    mutation.change(damaged)
    for reader in (CHANCE.choice(sorted(WAYS_TO_LOAD)), CHANCE.choice(sorted(WAYS_TO_VERIFY))):
        try:
            {**WAYS_TO_LOAD, **WAYS_TO_VERIFY}[reader](specimen)
        except CheckpointError as error:
            says(error, mutation, specimen, reader)
        else:
            require(False, f"{reader} did not notice")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        newest = latest_checkpoint(specimen.directory)
    require(newest is not None and newest.name == OLDER, f"resumes from {newest}")
    lines = [str(w.message) for w in warned if issubclass(w.category, DamagedCheckpointWarning)]
    require(len(lines) == 1 and lines[0].startswith(f"passing over {NEWEST}: "), f"says {lines}")
    require(len(warned) == 1, f"warns {[str(w.message) for w in warned]}")
    require(damaged.name in lines[0], f"does not name {damaged.name}: {lines}")
    if CHANCE.random() > 0.25:
        return
    report = verified_by_command(specimen.directory)
    require(report[NEWEST]["intact"] is False and damaged.name in report[NEWEST]["message"], f"verify says {report}")
    require(report[OLDER]["intact"] is True, f"verify says {report}")


def says(error: CheckpointError, mutation: Mutation, specimen: Specimen, reader: str) -> None:
    text = str(error)
    if mutation.what.startswith("replaced by") and mutation.role == MANIFEST:
        named = (
            NEWEST in text
        )  # intact in itself, of the same name: which of the files is the wrong one, nobody can tell
    else:
        named = specimen.paths[mutation.role].name in text
    require(named, f"{reader} does not name the file: {text}")
    require(mutation.tensor is None or mutation.tensor in text, f"{reader} does not name {mutation.tensor}: {text}")


def verified_by_command(directory: Path) -> dict[str, dict[str, object]]:
    """What ``neuromanifold verify --json`` prints, by name."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exit_code = cli.main(["verify", str(directory), "--json"])
    report = json.loads(output.getvalue())
    require(exit_code == 1 and report["damaged"] == 1 and report["intact"] == 1, f"exit code {exit_code}, {report}")
    return {row["name"]: row for row in report["checkpoints"]}


def test_the_specimen_is_intact(specimen: Specimen):
    specimen.heal()
    assert load_checkpoint(specimen.newest).global_step == 3
    assert latest_checkpoint(specimen.directory) == specimen.newest
    assert cli.main(["verify", str(specimen.directory)]) == 0


@in_parts(40, one_in=4)
@pytest.mark.parametrize("role", [MODEL, OPTIMIZER, MANIFEST])
def test_at_chosen_places(role: str, part: Part, specimen: Specimen, tally: Tally):
    for mutation in part.choose(list(at_chosen_places(specimen, role))):
        with tally.trial("mutations at chosen places", mutation):
            is_detected(specimen, mutation)


@pytest.mark.parametrize("role", [MODEL, OPTIMIZER, MANIFEST])
def test_of_whole_files(role: str, specimen: Specimen, foreign: dict[str, bytes], tally: Tally):
    mutations = list(of_whole_files(specimen, role, foreign))
    assert len(mutations) > 15
    for mutation in mutations:
        with tally.trial("files exchanged", mutation):
            is_detected(specimen, mutation)


def test_of_the_manifest_s_spelling(specimen: Specimen, tally: Tally):
    for mutation in of_the_manifest_s_spelling(specimen):
        with tally.trial("other spellings of the manifest", mutation):
            is_detected(specimen, mutation)


def test_of_several_files_at_once(specimen: Specimen, foreign: dict[str, bytes], tally: Tally):
    """All but one file from another checkpoint of the same name and the same sizes."""
    other = {role: foreign[f"{specimen.paths[role].name} of other"] for role in (MODEL, OPTIMIZER, MANIFEST)}
    for role in (MODEL, OPTIMIZER):
        assert len(other[role]) == len(specimen.bytes_of(role))
    for own in (MODEL, OPTIMIZER, MANIFEST):
        with tally.trial("files exchanged", f"all but the {own} file"):
            specimen.heal()
            for role in {MODEL, OPTIMIZER, MANIFEST} - {own}:
                specimen.paths[role].write_bytes(other[role])
            with pytest.raises(CheckpointError):
                load_checkpoint(specimen.paths[MODEL])
            with pytest.raises(CheckpointError):
                verify_checkpoint(specimen.paths[MANIFEST])
            with pytest.warns(DamagedCheckpointWarning, match=f"passing over {NEWEST}"):
                assert latest_checkpoint(specimen.directory).name == OLDER


@pytest.mark.parametrize("examples", [100, pytest.param(3_000, marks=pytest.mark.slow)])
def test_at_random(examples: int, specimen: Specimen, tally: Tally):
    """Any change of any bytes that hypothesis thinks of."""

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def changed(data: st.DataObject) -> None:
        role = data.draw(st.sampled_from([MODEL, OPTIMIZER, MANIFEST]))
        length = len(specimen.bytes_of(role))
        start = data.draw(st.integers(0, length))
        new = data.draw(st.binary(max_size=40))
        old_bytes = data.draw(st.one_of(st.just(len(new)), st.integers(0, 2000)))
        what = f"{old_bytes} bytes at {start} replaced by {new!r}"
        mutation = specimen.replaced(role, start, new, old_bytes, what)
        if mutation is not None:
            tally.trials["mutations at random"] += 1
            is_detected(specimen, mutation)

    with tally.trial("properties", examples):
        changed()


@pytest.fixture(autouse=True)
def healed(specimen: Specimen) -> Iterator[None]:
    yield
    specimen.heal()
