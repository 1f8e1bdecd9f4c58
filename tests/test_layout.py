"""The package's layout: dependencies point downwards, the core is light, the front door is complete."""

import ast
import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import neuromanifold_gpt

PACKAGE = Path(neuromanifold_gpt.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
# What a room may import: each of these, and what those may import.
BELOW = {
    "training": {"lightning_io", "gpt", "data"},
    "certify": {"checkpoint"},
    "lightning_io": {"state", "data", "checkpoint"},
    "state": {"checkpoint"},
    "data": {"state"},
    "gpt": set(),
    "checkpoint": set(),
}
CORE = {"state", "data", "gpt", "checkpoint"}
CORE_NEEDS = {"torch", "numpy", "tqdm", "xxhash", "typing_extensions"}  # the last comes with torch


def all_below(room):
    return {room}.union(*(all_below(lower) for lower in BELOW[room]))


def room_of(path):
    """The room that a module is in; ``None`` for the hall: ``__init__.py``, ``cli.py``."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else None


def dotted(path):
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path, source=None):
    """Every module that ``path`` imports anywhere in it: at the top, in functions, for types only, by name."""
    found = set()
    is_package = path.name == "__init__.py"
    for node in ast.walk(ast.parse(path.read_text() if source is None else source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = dotted(path).split(".")
                above = above[: len(above) - node.level + is_package]
                base = ".".join([*above, *([base] if base else [])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__", "import_or_skip"):
                found |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    return found


def rooms_imported(path, source=None):
    names = [name.split(".") for name in imports_of(path, source) if name.startswith("neuromanifold_gpt.")]
    return {parts[1] for parts in names if (PACKAGE / parts[1]).is_dir()}


def needs(path):
    return {name.split(".")[0] for name in imports_of(path)} - {"neuromanifold_gpt"}


class TestDependencies:
    def test_every_room_is_known(self):
        rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
        assert rooms <= set(BELOW)
        assert rooms >= CORE

    @pytest.mark.parametrize("path", MODULES, ids=dotted)
    def test_point_downwards(self, path):
        room = room_of(path)
        if room is not None:
            assert rooms_imported(path) <= all_below(room)

    def test_what_reads_programs_knows_nothing_of_what_is_said_about_them(self):
        for path in sorted((PACKAGE / "state" / "inspection").glob("*.py")):
            assert not [name for name in imports_of(path) if name.startswith("neuromanifold_gpt.state.unsaved")], path

    def test_no_room_imports_the_front_door_or_the_command_line(self):
        for path in MODULES:
            if room_of(path) is not None:
                names = imports_of(path)
                front = {f"neuromanifold_gpt.{name}" for name in [*neuromanifold_gpt.__all__, "cli", "__version__"]}
                assert not names & front, path

    @pytest.mark.parametrize("path", [path for path in MODULES if room_of(path) in CORE], ids=dotted)
    def test_of_the_core_are_torch_and_little_else(self, path):
        assert needs(path) <= CORE_NEEDS | set(sys.stdlib_module_names)

    @pytest.mark.parametrize(
        "source",
        [
            "import neuromanifold_gpt.training",
            "from neuromanifold_gpt.training.run import main",
            "from neuromanifold_gpt import training",
            "from .. import training",
            "from ..training import run",
            "def f():\n    from neuromanifold_gpt.training import run",
            "if TYPE_CHECKING:\n    import neuromanifold_gpt.training.run as run",
            "import importlib\nimportlib.import_module('neuromanifold_gpt.training.run')",
            "__import__('neuromanifold_gpt.training')",
        ],
    )
    def test_are_found_however_they_are_written(self, source):
        assert rooms_imported(PACKAGE / "data" / "loader.py", source) == {"training"}
        assert rooms_imported(PACKAGE / "data" / "loader.py", "from . import order\nfrom .order import mixed") == {
            "data"
        }
        assert rooms_imported(PACKAGE / "data" / "__init__.py", "from . import order\nfrom .. import gpt") == {
            "data",
            "gpt",
        }

    def test_on_lightning_are_only_made_when_asked_for(self, tmp_path):
        script = """
import json, sys
import neuromanifold_gpt

for name in sys.argv[2:]:
    globals()[name] = getattr(neuromanifold_gpt, name)
assert "torch._dynamo" not in sys.modules  # torch imports its compiler when it is used, which takes a second
import torch

model = torch.nn.Linear(2, 2)
optimizer = torch.optim.AdamW(model.parameters())
loader = ResumableDataLoader(range(4), 2)
save_checkpoint(sys.argv[1], step=1, model=model, optimizers=optimizer, loaders=loader)
load_checkpoint(sys.argv[1]).restore(model=model, optimizers=optimizer, loaders=loader)
verify_checkpoint(latest_checkpoint(sys.argv[1]))
before = [name.split(".")[0] for name in sys.modules]
neuromanifold_gpt.SeparatedCheckpoint
print(json.dumps([before, [name.split(".")[0] for name in sys.modules]]))
"""
        environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
        light = set(neuromanifold_gpt.__all__) - {"SeparatedCheckpoint", "SeparatedCheckpointIO", "StopOnSignal"}
        arguments = [sys.executable, "-c", script, str(tmp_path), *light]
        run = subprocess.run(arguments, env=environment, capture_output=True, check=True, text=True)
        before, after = (set(names) for names in json.loads(run.stdout.splitlines()[-1]))
        heavy = {"lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics", "jsonargparse", "tensorboard"}
        assert not before & heavy
        assert "lightning" in after


def public_members(thing):
    """A class's own public methods and properties, of a function nothing."""
    if not inspect.isclass(thing):
        return {}
    return {
        name: member
        for name, member in vars(thing).items()
        if not name.startswith("_") and (callable(member) or isinstance(member, property | classmethod | staticmethod))
    }


class TestFrontDoor:
    # The names of the design, and the classes of what they return and raise.
    promised = (
        *("save_checkpoint", "load_checkpoint", "list_checkpoints", "latest_checkpoint", "verify_checkpoint"),
        *("SeparatedCheckpoint", "SeparatedCheckpointIO", "ResumableDataLoader"),
        *("Checkpoint", "LoadedCheckpoint", "CheckpointError"),
    )

    def test_has_what_was_promised(self):
        assert set(self.promised) <= set(neuromanifold_gpt.__all__)

    def test_is_what_all_says(self):
        names = neuromanifold_gpt.__all__
        assert len(set(names)) == len(names)
        assert sorted(names) == names
        imported = set()
        for node in ast.parse((PACKAGE / "__init__.py").read_text()).body:
            for inner in ast.walk(node):
                if isinstance(inner, ast.ImportFrom) and (inner.module or "").startswith("neuromanifold_gpt."):
                    imported |= {alias.asname or alias.name for alias in inner.names}
        assert imported == set(names)

    @pytest.mark.parametrize("name", neuromanifold_gpt.__all__)
    def test_every_name_leads_to_a_documented_thing_of_this_package(self, name):
        thing = getattr(neuromanifold_gpt, name)
        assert thing.__name__ == name
        assert thing.__module__.startswith("neuromanifold_gpt.")
        assert (thing.__doc__ or "").strip()
        for member_name, member in public_members(thing).items():
            assert (inspect.getdoc(member) or "").strip(), f"{name}.{member_name} has no docstring"

    def test_a_name_that_is_not_there_is_an_attribute_error(self):
        with pytest.raises(AttributeError, match="no_such_name"):
            neuromanifold_gpt.no_such_name  # noqa: B018

    def test_errors_of_checkpoints_are_checkpoint_errors(self):
        errors = importlib.import_module("neuromanifold_gpt.checkpoint.errors")
        for name, error in vars(errors).items():
            if inspect.isclass(error) and issubclass(error, Exception) and error.__module__ == errors.__name__:
                assert issubclass(error, neuromanifold_gpt.CheckpointError | UserWarning), name


class TestModules:
    @pytest.mark.parametrize("path", MODULES, ids=dotted)
    def test_are_short_and_say_what_they_are_for(self, path):
        text = path.read_text()
        assert len(text.splitlines()) <= 300
        assert ast.get_docstring(ast.parse(text))
        vague = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
        assert not vague & {part for piece in path.relative_to(PACKAGE).parts for part in Path(piece).stem.split("_")}

    def test_of_each_room_can_be_imported_first(self):
        """In a process of its own each: no room needs another to have been imported before it."""
        environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
        script = """
import importlib, sys
for name in sys.argv[1:]:
    for loaded in [loaded for loaded in sys.modules if loaded.startswith("neuromanifold_gpt")]:
        del sys.modules[loaded]
    importlib.import_module(name)
"""
        names = [dotted(path) for path in MODULES if room_of(path) in CORE]
        subprocess.run([sys.executable, "-c", script, *names], env=environment, check=True, capture_output=True)
