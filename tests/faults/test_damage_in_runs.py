"""Real runs over a damaged newest checkpoint: they say so in one line, and end in the bytes of an undisturbed run."""

from __future__ import annotations

import contextlib
import random
import shutil
import warnings
from pathlib import Path

import pytest

from neuromanifold_gpt import CheckpointError, SeparatedCheckpoint, list_checkpoints
from neuromanifold_gpt.checkpoint.errors import CheckpointWriteError, DamagedCheckpointWarning
from neuromanifold_gpt.checkpoint.naming import step_name

from ..lightning_io.toy import fit
from ..training.train_process import data_files
from ..training.train_process import train as train_py
from .invariant import require
from .mutations import MANIFEST, MODEL, OPTIMIZER, Mutation, Specimen, of_whole_files
from .parts import Part, in_parts
from .scenarios import copied
from .tally import Tally
from .tiny_training import bytes_of


def some_of_each(specimen: Specimen, count: int) -> list[Mutation]:
    """Mutations of each file, chosen at random but always the same."""
    chosen = random.Random(2)
    found = []
    for role in (MODEL, OPTIMIZER, MANIFEST):
        found += chosen.sample(list(of_whole_files(specimen, role, {})), count)
        length = len(specimen.bytes_of(role))
        found += [specimen.flip(role, chosen.randrange(length), chosen.randrange(8)) for _ in range(count)]
        found += [specimen.truncated(role, chosen.randrange(length)) for _ in range(count)]
    chosen.shuffle(found)
    return found


IN_THE_WAY = "a directory in the place of it"


@pytest.fixture(scope="module")
def lightning_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of 12 steps, and its first 9."""
    root = tmp_path_factory.mktemp("lightning")
    fit(SeparatedCheckpoint(root / "12", every_n_train_steps=3, save_top_k=-1), max_steps=12)
    shutil.copytree(root / "12", root / "9", ignore=shutil.ignore_patterns("*step000012*"))
    return root / "12", root / "9"


def saver_in(directory: Path) -> SeparatedCheckpoint:
    return SeparatedCheckpoint(directory, every_n_train_steps=3, save_top_k=-1)


def fit_over(specimen: Specimen, mutation: Mutation) -> None:
    """Train on over the damage, of which one line is said, with the name of the file."""
    # A directory is not ours to remove: saving that step again is refused until it is gone.
    in_the_way = mutation.what == IN_THE_WAY
    refused = pytest.raises(CheckpointWriteError, match="move it away") if in_the_way else contextlib.nullcontext()
    with pytest.warns(DamagedCheckpointWarning) as warned, refused:
        fit(saver_in(specimen.directory), ckpt_path="last", max_steps=12)
    lines = {str(w.message) for w in warned if w.category is DamagedCheckpointWarning}
    require(len(lines) == 1, f"says {lines}")
    require(specimen.paths[mutation.role].name in lines.pop(), "does not name the file")


@in_parts(12)
def test_lightning_continues_from_the_one_before(
    part: Part, lightning_runs: tuple[Path, Path], tally: Tally, tmp_path: Path
):
    undisturbed, begun = lightning_runs
    expected = {checkpoint.name: bytes_of(checkpoint) for checkpoint in list_checkpoints(undisturbed)}
    assert len(expected) == 4
    specimen = Specimen(copied(begun, tmp_path / "run"), step_name(9))
    for mutation in part.choose(some_of_each(specimen, 8)):
        with tally.trial("damage before a Lightning run", mutation):
            copied(begun, specimen.directory)
            mutation.change(specimen.paths[mutation.role])
            with pytest.raises(CheckpointError):
                fit(saver_in(specimen.directory), ckpt_path=specimen.paths[MODEL], max_steps=12)
            fit_over(specimen, mutation)
            if mutation.what == IN_THE_WAY:
                shutil.rmtree(specimen.paths[mutation.role])
                with warnings.catch_warnings():  # what is left of that step may be nothing to speak of
                    warnings.simplefilter("ignore", DamagedCheckpointWarning)
                    fit(saver_in(specimen.directory), ckpt_path="last", max_steps=12)
            found = {checkpoint.name: bytes_of(checkpoint) for checkpoint in list_checkpoints(specimen.directory)}
            require(found == expected, f"ends with {sorted(found)}, or in other bytes")


@pytest.fixture(scope="module")
def train_py_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = tmp_path_factory.mktemp("train-py") / "out"
    assert train_py(out_dir, max_iters=30, eval_interval=0).returncode == 0
    return out_dir


@in_parts(6, in_suite=0)
def test_train_py_continues_from_the_one_before(part: Part, train_py_run: Path, tally: Tally, tmp_path: Path):
    expected = data_files(train_py_run)
    specimen = Specimen(copied(train_py_run, tmp_path / "out"), step_name(30))
    for mutation in part.choose(some_of_each(specimen, 2)):
        with tally.trial("damage before train.py", mutation):
            copied(train_py_run, specimen.directory)
            mutation.change(specimen.paths[mutation.role])
            result = train_py(specimen.directory, max_iters=30, eval_interval=0)
            if mutation.what == IN_THE_WAY:
                require(result.returncode == 1 and "move it away" in result.stderr, result.stderr)
                shutil.rmtree(specimen.paths[mutation.role])
                require(train_py(specimen.directory, max_iters=30, eval_interval=0).returncode == 0, "does not go on")
            else:
                require(result.returncode == 0, result.stderr)
            lines = [line for line in result.stderr.splitlines() if f"passing over {step_name(30)}" in line]
            require(len(lines) == 1 and specimen.paths[mutation.role].name in lines[0], result.stderr)
            require("Resuming from step 20" in result.stdout, result.stdout)
            require(data_files(specimen.directory) == expected, "ends in other bytes")
