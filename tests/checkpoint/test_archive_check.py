"""Archives and pickles that are refused before torch follows them, and those of torch.save, which are not."""

from __future__ import annotations

import pickle
import struct
import time
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from neuromanifold_gpt import load_checkpoint
from neuromanifold_gpt.checkpoint.archive_check import check_archive
from neuromanifold_gpt.checkpoint.errors import DamagedCheckpointError, UnknownFormatError, UntrustedPickleError
from neuromanifold_gpt.checkpoint.pickle_check import MAXIMUM_DEPTH, check_pickle
from neuromanifold_gpt.checkpoint.reader import load_archive
from neuromanifold_gpt.state.compare import compare_checkpoints

from .archives import write

START = b"\x80\x02"
TENSOR = b"ctorch\nTensor\n"
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def state_dict(value: bytes) -> bytes:
    """The pickle of ``{"model": {"w": value}, "optimizer": {}}``."""
    return START + b"}(" + text("model") + b"}" + text("w") + value + b"s" + text("optimizer") + b"}u."


def tensor(size: int, stride: int) -> bytes:
    numbers = b"".join(b"(\x8a\x08" + struct.pack("<q", number) + b"t" for number in (size, stride))
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x00" + numbers + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def archive(path: Path, pickled: bytes, **records: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/data/0", bytes(16))
        file.writestr("archive/version", b"3\n")
        for name, content in records.items():
            file.writestr(name, content)
    return path


def tuples(levels: int) -> bytes:
    """A tuple that holds another one twice, which holds another one twice, and so on; all of them in one tuple."""
    steps = b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(levels))
    return b"(" + text("ha") + b"q\x00" + steps + b"t"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (tuples(60), "many more values than it has bytes"),
        (b"}" + tuples(60) + b"Ns", "many more values than it has bytes"),
        (b"c__builtin__\nset\n(" + tuples(60) + b"tR", "many more values than it has bytes"),
        (b")" + b"\x85" * 100_000, f"more than {MAXIMUM_DEPTH} deep"),
        (b"]" * 1000 + b"a" * 999, f"more than {MAXIMUM_DEPTH} deep"),
        (b"]q\x01h\x01a", "contains itself"),
        (b"cbuiltins\nbytearray\n(J\x00\x00\x00\x7ftR", "bytearray without content"),
        (b"cbuiltins\nbytearray\n(" + TENSOR + b")RtR", "calls torch.Tensor"),
        (TENSOR + b"(J\x00\x00\x00\x7ftR", "calls torch.Tensor"),
        (b"ctorch.storage\nUntypedStorage\n(J\x00\x00\x00\x7ftR", "calls torch.storage.UntypedStorage"),
        (
            b"ctorch._tensor\n_rebuild_from_type_v2\n(" + TENSOR * 2 + b"(J\x00\x00\x00\x7ft}tR",
            "calls torch.Tensor",
        ),
        (b"c_codecs\nencode\n(" + text("a") + text("punycode") + b"tR", "something else than bytes"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_a_pickle_that_asks_for_more_than_it_has_is_refused_at_once(value: bytes, message: str, tmp_path: Path):
    path = archive(tmp_path / "model.ckpt", state_dict(value))
    for read in (load_checkpoint, lambda path: compare_checkpoints(path, path)):
        started_sec = time.monotonic()
        with pytest.raises(UntrustedPickleError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert time.monotonic() - started_sec < 3


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (tensor(2**40, 0), "more bytes than the file"),
        (b"ccollections\nOrderedDict\n)R}" + text("items") + b"Nsb", "attribute 'items'"),
        (b"ccollections\nOrderedDict\n)R}" + text("_metadata") + b"Nsb", "attribute '_metadata'"),
    ],
)
def test_what_is_not_what_it_seems_to_be_is_refused(value: bytes, message: str, tmp_path: Path):
    path = archive(tmp_path / "model.ckpt", state_dict(value))
    for read in (load_checkpoint, lambda path: compare_checkpoints(path, path)):
        with pytest.raises(DamagedCheckpointError, match=message):
            read(path)


def test_an_index_outside_of_a_sparse_tensor_is_refused(tmp_path: Path):
    torch.save({"model": {"w": torch.eye(4).to_sparse()}, "optimizer": {}}, tmp_path / "good.pt")
    sparse = torch.sparse_coo_tensor(torch.tensor([[10**9], [-5]]), torch.ones(1), (4, 4), check_invariants=False)
    torch.save({"model": {"w": sparse}, "optimizer": {}}, tmp_path / "bad.pt")
    assert load_checkpoint(tmp_path / "good.pt").model_state["w"].to_dense().equal(torch.eye(4))
    with pytest.raises(DamagedCheckpointError):
        load_checkpoint(tmp_path / "bad.pt")


@pytest.mark.parametrize("names", [[1], [("a", "b")], ["a", 1]])
def test_a_name_that_is_no_text_is_refused(names: list[Any], tmp_path: Path):
    torch.save(dict.fromkeys(names, torch.zeros(2)), tmp_path / "bare.pt")
    torch.save({"model": dict.fromkeys(names, torch.zeros(2)), "optimizer": {}}, tmp_path / "model.pt")
    for name in ("bare.pt", "model.pt"):
        with pytest.raises(UnknownFormatError, match=r"a name that is a (int|tuple)"):
            load_checkpoint(tmp_path / name, load_optimizer=False)


def two_faced(bad: bytes, good: bytes) -> bytes:
    """An archive whose list of records is a good one by its size, as Python finds it, and a bad one by its offset."""

    def record(pickled: bytes, name: bytes) -> tuple[bytes, bytes]:
        sizes = struct.pack("<IIIHH", zlib.crc32(pickled), len(pickled), len(pickled), len(name), 0)
        head = struct.pack("<HHHHH", 20, 0, 0, 0, 0x21) + sizes
        return b"PK\3\4" + head + name + pickled, b"PK\1\2" + b"\x14\0" + head + bytes(10)

    name = b"archive/data.pkl"
    hidden, hidden_entry = record(bad, name)
    shown, shown_entry = record(good, name)
    offset = len(hidden)
    listed = hidden_entry + struct.pack("<I", 0) + name
    between = hidden + listed + shown
    # Python takes offsets to be shifted by what seems to lie in front of the archive.
    shift = len(between) - offset
    listed_last = shown_entry + struct.pack("<I", len(hidden) + len(listed) - shift) + name
    return between + listed_last + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(listed_last), offset, 0)


def test_an_archive_that_torch_would_read_in_another_way_is_refused(tmp_path: Path):
    good = state_dict(tensor(4, 1))
    path = tmp_path / "model.ckpt"
    for name in ("archive/DATA.PKL", "another/data.pkl"):
        archive(path, good, **{name: state_dict(b"N")})
        with pytest.raises(DamagedCheckpointError):
            check_archive(path)
    path.write_bytes(two_faced(state_dict(b"N") + bytes(1000), good))
    with zipfile.ZipFile(path) as file:
        assert file.read("archive/data.pkl") == good  # what Python sees
    with pytest.raises(DamagedCheckpointError, match="not where it says"):
        check_archive(path)
    whole = archive(path, good).read_bytes()
    for changed in (b"x" * 10 + whole, whole + b"x", whole[:-1]):
        path.write_bytes(changed)
        with pytest.raises(DamagedCheckpointError):
            check_archive(path)


def test_compressed_records_are_refused_before_they_are_unpacked(tmp_path: Path):
    path = tmp_path / "model.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as file:
        file.writestr("archive/data.pkl", state_dict(b"N"))
        file.writestr("archive/data/0", bytes(300 << 20))
    started_sec = time.monotonic()
    with pytest.raises(DamagedCheckpointError, match="is compressed"):
        load_checkpoint(path)
    assert time.monotonic() - started_sec < 1


def test_what_torch_saves_passes(tmp_path: Path):
    shared = (0.9, 0.95)
    content: dict[str, Any] = {
        "state_dict": OrderedDict(w=torch.zeros(3), p=torch.nn.Parameter(torch.ones(2))),
        "groups": [{"betas": shared, "params": [0]} for _ in range(50)],
        "empty": [(), [], {}, set(), bytearray(), bytearray(b"abc"), b"\xff\x00"],
        "plain": [None, True, 1, 2**70, 1.5, 1j, "\ud800", torch.Size([2]), torch.float16, torch.device("cpu")],
        "view": torch.arange(12).view(3, 4).t()[1:],
        "mask": torch.ones(1, 1000, dtype=torch.bool).expand(1000, 1000),
        "set": {1, "a", (2, 3)},
    }
    content["state_dict"]._metadata = OrderedDict({"": {"version": 1}})
    torch.save(content, tmp_path / "new.pt")
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    loaded = load_archive(tmp_path / "new.pt")
    assert str(loaded) == str(content)
    assert loaded["state_dict"]._metadata == content["state_dict"]._metadata
    model = {"model": content["state_dict"], "optimizer": {"state": {}}, "extra": content["empty"]}
    torch.save(model, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert load_checkpoint(tmp_path / "old.pt").model_state["w"].equal(torch.zeros(3))


def test_what_this_package_saves_as_deep_as_it_can_passes(tmp_path: Path):
    deep: Any = "end"
    for _ in range(250):
        deep = {"a": deep}
    path = tmp_path / "deep-model.pt"
    write({"state_dict": {}, "deep": deep}, path)
    check_archive(path)


def test_a_pickle_that_ends_early_is_left_to_torch():
    whole = pickle.dumps({"a": [1, (2, "b")], "c": {"d": 1.0}}, protocol=2)
    for end in range(len(whole)):
        check_pickle(Path("x"), whole[:end])  # refuses nothing, and raises nothing of its own
