"""Staging refuses at the save what could not be read at the load, and says where it is and what to do."""

from __future__ import annotations

import collections
import enum
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from neuromanifold_gpt import load_checkpoint, save_checkpoint
from neuromanifold_gpt.checkpoint.errors import UnsupportedObjectError
from neuromanifold_gpt.checkpoint.staging import stage

from .archives import same, write, written_bytes


@dataclass
class Schedule:
    warmup: int
    values: object = None


class Phase(enum.Enum):
    WARMUP = "warmup"


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a: object, b: object) -> None:
        self.a, self.b = a, b


class Point(collections.namedtuple("Point", "x y")):
    __slots__ = ()


class Label(str):
    __slots__ = ()


class Attributes(dict):
    pass


class Stack(list):
    pass


class CallableObject:
    def __call__(self) -> None: ...


class HoldsFunction:
    def __init__(self, function: object) -> None:
        self.function = function

    def __reduce__(self):
        return HoldsFunction, (self.function,)


class LikeDTensor(torch.Tensor):
    """A tensor subclass with data elsewhere, as DTensor is."""


def cycle() -> list:
    inner: list = [1]
    inner.append({"again": inner})
    return inner


def nested() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


def quantized() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


REFUSED = {
    "a NumPy scalar": (lambda: np.float64(1.5), r"numpy\.float64.*\.item\(\)"),
    "a NumPy integer": (lambda: np.int64(1), r"numpy\.int64.*\.item\(\)"),
    "a NumPy string": (lambda: np.str_("x"), r"numpy\.str_.*plain Python values"),
    "a NumPy array": (lambda: np.zeros(2), r"numpy\.ndarray.*torch\.from_numpy"),
    "a path": (lambda: Path("x"), r"pathlib\.(_local\.)?PosixPath.*paths: str"),
    "a function": (lambda: lambda: 0, r"builtins\.function.*plain Python values"),
    "a class": (lambda: Schedule, r"builtins\.type.*plain Python values"),
    "an object": (lambda: Schedule(1), r"Schedule.*torch\.serialization\.add_safe_globals\(\[.*Schedule\]\)"),
    "an enum": (lambda: Phase.WARMUP, r"Phase.*add_safe_globals"),
    "a version of torch": (lambda: torch.__version__, r"TorchVersion.*plain Python values"),
    "a frozenset": (lambda: frozenset({1}), r"builtins\.frozenset.*plain Python values"),
    "a defaultdict": (lambda: collections.defaultdict(list), r"collections\.defaultdict.*plain Python values"),
    "an iterator": (lambda: iter([1]), r"list_iterator.*plain Python values"),
    "a module": (lambda: nn.Linear(1, 1), r"Linear.*plain Python values"),
    "a cycle": (cycle, r"1/again.*contains itself.*break the cycle"),
    "a long integer": (lambda: 2**2100, r"builtins\.int.*255 bytes.*str"),
    "a set with tensors": (lambda: {torch.ones(1), torch.zeros(1)}, r"builtins\.set.*order.*use a list"),
    "a sparse tensor": (lambda: torch.eye(2).to_sparse(), r"layout torch\.sparse_coo.*dense parts"),
    "a sparse row tensor": (lambda: torch.eye(2).to_sparse_csr(), r"layout torch\.sparse_csr.*dense parts"),
    "a nested tensor": (nested, r"is nested.*dense parts"),
    "a quantized tensor": (quantized, r"is quantized.*dense parts"),
    "a tensor without data": (lambda: torch.ones(2, device="meta"), r"meta device.*materialize"),
    "a tensor subclass": (lambda: torch.ones(2).as_subclass(LikeDTensor), r"subclass.*full_tensor"),
    "a parameter without a shape": (nn.UninitializedParameter, r"subclass.*store a plain tensor"),
}


class TestRefusals:
    """The error names the path in the tree, the type and the remedy."""

    @pytest.mark.filterwarnings("ignore:Sparse CSR")
    @pytest.mark.parametrize("what", REFUSED)
    def test_an_object_that_no_stock_reader_could_load_is_refused(self, what):
        make, message = REFUSED[what]
        with pytest.raises(UnsupportedObjectError, match=rf"cannot save state/1/inner/?.*{message}"):
            stage({"state": (0, {"inner": make()})})

    @pytest.mark.parametrize("what", ["a NumPy scalar", "a path", "a sparse tensor"])
    def test_wherever_it_stands(self, what):
        value = REFUSED[what][0]()
        metadata = collections.OrderedDict(a=1)
        metadata._metadata = {"deep": value}
        with pytest.raises(UnsupportedObjectError, match="cannot save s/__dict__/_metadata/deep"):
            stage({"s": metadata})
        if what != "a sparse tensor":
            with pytest.raises(UnsupportedObjectError, match="cannot save s/key "):
                stage({"s": {value: 1}})
            with pytest.raises(UnsupportedObjectError, match=r"cannot save s/{item}"):
                stage({"s": {value}})
        with torch.serialization.safe_globals([Schedule]), pytest.raises(UnsupportedObjectError, match="cannot save s"):
            stage({"s": Schedule(1, value)})

    def test_nesting_beyond_the_recursion_limit_is_refused(self):
        deep: list = []
        for _ in range(5000):
            deep = [deep]
        with pytest.raises(UnsupportedObjectError, match=r"nested more deeply.*flatten"):
            stage({"deep": deep})

    def test_the_front_door_refuses_before_it_writes_anything(self, tmp_path):
        with pytest.raises(
            UnsupportedObjectError, match=r"cannot save config/run_dir: the pathlib\.(_local\.)?PosixPath"
        ):
            save_checkpoint(tmp_path / "run", step=1, model=nn.Linear(1, 1), config={"run_dir": tmp_path})
        assert list(tmp_path.iterdir()) == []

    def test_the_same_object_in_two_places_is_no_cycle(self, tmp_path):
        shared = [1, {"a": 2}]
        write({"x": shared, "y": [shared, shared]}, tmp_path / "a.pt")
        assert torch.load(tmp_path / "a.pt", weights_only=True) == {"x": shared, "y": [shared, shared]}


class TestClassesDeclaredSafe:
    """What ``torch.serialization.add_safe_globals`` lets the reader make can be saved, and nothing beyond that."""

    @pytest.mark.parametrize(
        "value",
        [
            Schedule(5, [1, (2.0, "x")]),
            Schedule(5, None),
            Phase.WARMUP,
            Point(1, ("a", b"")),
            Label("best"),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_their_objects_come_back_equal(self, value, tmp_path):
        with torch.serialization.safe_globals([type(value)]):
            written_bytes({"v": [value]}, tmp_path / "a.pt")
            (loaded,) = torch.load(tmp_path / "a.pt", weights_only=True)["v"]
            assert type(loaded) is type(value)
            assert loaded == value
            assert written_bytes({"v": [loaded]}, tmp_path / "b.pt") == (tmp_path / "a.pt").read_bytes()

    def test_tensors_in_their_attributes_are_records_like_all_others(self, tmp_path):
        weight = torch.randn(3)
        with torch.serialization.safe_globals([Schedule, Slotted]):
            payload = {"v": Schedule(1, {"t": weight}), "s": Slotted(torch.arange(3), [weight]), "w": weight}
            archive = write(payload, tmp_path / "a.pt")
            loaded = torch.load(tmp_path / "a.pt", weights_only=True)
        assert len({tensor.offset for tensor in archive.tensors}) == 2
        assert same(loaded["v"].values, {"t": weight})
        assert same((loaded["s"].a, loaded["s"].b), (torch.arange(3), [weight]))

    def test_their_bytes_do_not_depend_on_which_equal_objects_are_one(self, tmp_path):
        one, other = "".join(["x", "y"]), "".join(["x", "y"])
        with torch.serialization.safe_globals([Schedule]):
            shared = written_bytes({"v": Schedule(1, (one, one))}, tmp_path / "a.pt")
            assert written_bytes({"v": Schedule(1, (one, other))}, tmp_path / "b.pt") == shared

    @pytest.mark.parametrize("value", [Attributes(a=1), Stack([1]), collections.defaultdict(int, a=1)], ids=repr)
    def test_containers_that_the_reader_would_not_fill_are_refused_all_the_same(self, value):
        with (
            torch.serialization.safe_globals([type(value), int]),
            pytest.raises(UnsupportedObjectError, match=r"cannot save v: .* has items"),
        ):
            stage({"v": value})

    @pytest.mark.parametrize(
        "function", [lambda: 0, print, CallableObject(), Phase], ids=["lambda", "print", "object", "class"]
    )
    def test_functions_that_the_reader_does_not_know_are_refused_in_them(self, function):
        with (
            torch.serialization.safe_globals([HoldsFunction]),
            pytest.raises(UnsupportedObjectError, match="cannot save v: "),
        ):
            stage({"v": HoldsFunction(function)})

    def test_the_remedy_of_the_message_works(self, tmp_path):
        """Saved and loaded through the front door, once the class is declared safe as the message says."""
        arguments = {"step": 1, "model": nn.Linear(1, 1), "config": {"schedule": Schedule(7)}}
        with pytest.raises(UnsupportedObjectError, match="add_safe_globals"):
            save_checkpoint(tmp_path, **arguments)
        with torch.serialization.safe_globals([Schedule]):
            checkpoint = save_checkpoint(tmp_path, **arguments)
            assert load_checkpoint(checkpoint).config == {"schedule": Schedule(7)}


class TestOrderOfTensors:
    """Tensors are numbered in the order in which the pickle names them: the reader hands them out by it."""

    def test_for_keys_values_items_and_attributes(self, tmp_path):
        metadata = collections.OrderedDict(a=torch.tensor(4), b=torch.tensor(5))
        metadata.extra = torch.tensor(6)
        payload = {
            "list": [torch.tensor(0), {"x": torch.tensor(1)}],
            "keys": {torch.tensor(2): torch.tensor(3)},
            "ordered": metadata,
            "last": torch.tensor(7),
        }
        archive = write(payload, tmp_path / "a.pt")
        offsets = [tensor.offset for tensor in archive.tensors]
        assert offsets == sorted(offsets)
        content = (tmp_path / "a.pt").read_bytes()
        assert [content[offset] for offset in offsets] == list(range(8))
        order: list[int] = []

        def note(storage, _location):
            order.append(storage[0])
            return storage

        torch.load(tmp_path / "a.pt", weights_only=True, map_location=note)
        assert order == list(range(8))
