"""Which Python modules belong to the program that trains."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
from torch import nn

from neuromanifold_gpt import load_checkpoint, save_checkpoint
from neuromanifold_gpt.state.inspection.users_modules import users_modules

PROGRAM = {
    "__init__": "",
    "names": "first, second = 1, 2",
    "base": "class Base: pass",
    "model": "from users_program.base import Base\nclass Model(Base): pass",
    "decorators": """
import functools
def decorated(function):
    @functools.wraps(function)
    def called(*args):
        return function(*args)
    return called
""",
    "within_decorated": "",
    "within_method": "",
    "within_class_method": "",
    "within_property": "",
    "within_inner_function": "",
    "as_a_module": "",
    "program": """
import users_program.as_a_module as other
from users_program.decorators import decorated
from users_program.names import first

@decorated
def function():
    import users_program.within_decorated

class Program:
    def run(self):
        from . import within_method
    @classmethod
    def begin(cls):
        from .within_class_method import something
    @property
    def value(self):
        from . import within_property
    def outer(self):
        def inner():
            import users_program.within_inner_function
        return inner

def bound():
    return Program().run
""",
    "held": """
import functools
from types import MethodType, SimpleNamespace
from users_program import parts, pieces
from users_program.pieces import Compose
def closed_over(function):
    return lambda: function()
def defaulting(function=parts.function): pass
by_dict, by_list, by_set = {"": parts.function}, [parts.function], {parts.function}
by_partial, by_memo = functools.partial(parts.function, 1), functools.cache(parts.function)
by_class, by_instance, by_method = {"": parts.Part}, Compose([parts.Part()]), parts.Part().method
by_namespace, by_closure, by_registry = SimpleNamespace(f=parts.function), closed_over(parts.function), {}
by_bound_function = MethodType(closed_over(parts.function), 1)
class by_partial_method: called = functools.partialmethod(parts.function)
del parts, pieces
""",
    "parts": "def function(*a): pass\nclass Part:\n    def method(self): pass",
    "pieces": "class Compose:\n    def __init__(self, several): self.several = several\n    def __call__(self): pass",
    "unrelated": "import random\nrng = random.Random(1)\ncount = 0",
}


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """All of it is loaded, as in a process that does other things too."""
    package = "users_program"
    (tmp_path / package).mkdir()
    for name, code in PROGRAM.items():
        (tmp_path / package / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield {name: importlib.import_module(f"{package}.{name}") for name in PROGRAM if name != "__init__"}
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]


def reached_from(*things: Any) -> set[str]:
    return {name.removeprefix("users_program.") for name, _ in users_modules(things) if "users_program" in name}


def test_of_classes_and_those_above_them(program: dict[str, ModuleType]) -> None:
    assert reached_from() == set()
    assert reached_from(program["model"].Model()) == {"model", "base"}
    assert reached_from(type("Local", (program["base"].Base,), {})()) == {"base"}


def test_of_functions_methods_and_what_they_import(program: dict[str, ModuleType]) -> None:
    all_of_them = {name for name in PROGRAM if name.startswith("within")} | {"program", "decorators", "as_a_module"}
    assert reached_from(program["program"].Program()) == all_of_them
    assert reached_from(program["program"].bound()) == all_of_them
    assert reached_from(program["decorators"].decorated) == {"decorators"}


HOLDERS = ["dict", "list", "set", "partial", "memo", "class", "instance", "method", "namespace", "closure"]
HOLDERS += ["bound_function", "partial_method"]


@pytest.mark.parametrize("holder", [*[f"by_{holder}" for holder in HOLDERS], "defaulting"])
def test_of_what_is_held(holder: str, program: dict[str, ModuleType]) -> None:
    held = program["held"]
    for name in [name for name in vars(held) if name.startswith("by_") or name == "defaulting"]:
        if name != holder:
            delattr(held, name)
    assert {"held", "parts"} <= reached_from(held.closed_over)
    delattr(held, holder)
    assert "parts" not in reached_from(held.closed_over)


def test_of_modules_that_are_nowhere_registered(program: dict[str, ModuleType], tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text("from users_program.model import Model\ndef run(find): return find()")
    spec = importlib.util.spec_from_file_location("users_program.plugin", tmp_path / "plugin.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert reached_from(module.run) == module.run(reached_from) == {"plugin", "model", "base"}


def test_one_that_is_named_as_in_the_standard_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sched.py").write_text("class Schedule: pass")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sched", raising=False)
    schedule = importlib.import_module("sched").Schedule()
    monkeypatch.delitem(sys.modules, "sched", raising=False)
    assert "sched" not in dict(users_modules([schedule]))
    monkeypatch.setitem(sys.modules, "sched", importlib.import_module("sched"))
    assert "sched" in dict(users_modules([schedule]))


def test_the_order_is_that_in_which_they_were_loaded(program: dict[str, ModuleType]) -> None:
    before = [name for name, _ in users_modules([program["program"].bound])]
    sys.modules["users_program.a_later_one"] = later = ModuleType("users_program.a_later_one")
    later.__file__ = "a_later_one.py"
    after = [name for name, _ in users_modules([program["program"].bound, later])]
    assert [name for name in after if name in before] == before
    assert after[-1] == "users_program.a_later_one"


def test_of_numbers_that_were_imported_only_their_owner_when_named(program: dict[str, ModuleType]) -> None:
    assert "names" not in reached_from(program["program"].bound)


def test_of_the_functions_that_run(program: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    code = "def reached(find):\n    import users_program.names\n    return find()"
    exec(code, vars(program["model"]))
    assert program["model"].reached(reached_from) == {"model", "base", "names"}


def test_of_the_script(program: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "__main__", program["model"])
    monkeypatch.delitem(sys.modules, "users_program.model")
    assert [name for name, _ in users_modules([]) if "users_program" in name or name == "__main__"] == [
        "__main__",
        "users_program.base",
    ]


def test_those_that_are_loaded_later(program: dict[str, ModuleType]) -> None:
    method, module = program["program"].Program().run, sys.modules.pop("users_program.within_method")
    assert "within_method" not in reached_from(method)
    sys.modules["users_program.within_method"] = module
    assert "within_method" in reached_from(method)


def test_the_bytes_do_not_depend_on_what_else_is_loaded(
    program: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Linear(1, 1)
    with_it = save_checkpoint(tmp_path / "with it", step=1, model=model)
    unrelated = cast(Any, sys.modules["users_program.unrelated"])
    unrelated.rng.random()
    unrelated.count += 1
    monkeypatch.delitem(sys.modules, "users_program.unrelated")
    without = save_checkpoint(tmp_path / "without", step=1, model=model)
    assert with_it.paths.optimizer.read_bytes() == without.paths.optimizer.read_bytes()
    assert not any("users_program" in path for path in load_checkpoint(tmp_path / "with it").own_generators[0])
