"""Archives: canonical bytes, which stock torch reads back to the bit."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import neuromanifold_gpt
from neuromanifold_gpt.checkpoint.archive import CHUNK_BYTES, content_digest, storage_digests
from neuromanifold_gpt.checkpoint.reader import load_archive
from neuromanifold_gpt.checkpoint.staging import stage

from .archives import memory, same, write, written_bytes

DTYPES = sorted({value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=str)

texts = st.text(max_size=5) | st.sampled_from(["\ud800", "\x00", "same", "ss" * 200])
plain_values = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**31, -(2**31) - 1, 2**63, 2**2039 - 1, -(2**2039) + 1])
    | st.floats()
    | st.complex_numbers()
    | texts
    | st.binary(max_size=300)
    | st.binary(max_size=5).map(bytearray)
    | st.sampled_from([torch.float8_e5m2, torch.int64, torch.device("cuda", 1), torch.Size([]), torch.Size([2, 0])])
)
keys = texts | st.integers() | st.booleans() | st.none() | st.tuples(texts, st.integers()) | st.binary(max_size=2)
sets = st.sets(texts | st.integers(0, 300) | st.tuples(texts, texts) | st.none() | st.binary(max_size=2), max_size=5)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=4))
    dtype = draw(
        st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64, torch.uint16])
    )
    count = torch.Size(shape).numel()
    start = draw(st.integers(0, 3))
    tensor = torch.arange(start, start + count + 2, dtype=torch.int64).to(dtype)[draw(st.integers(0, 2)) :][:count]
    tensor = tensor.reshape(shape).permute(draw(st.permutations(range(len(shape)))))
    return nn.Parameter(tensor, False) if draw(st.booleans()) else tensor


def containers(children: st.SearchStrategy) -> st.SearchStrategy:
    return (
        st.lists(children, max_size=4)
        | st.lists(children, max_size=4).map(tuple)
        | st.dictionaries(keys, children, max_size=4)
        | st.dictionaries(keys, children, max_size=3).map(OrderedDict)
    )


trees = st.dictionaries(
    texts,
    st.recursive(plain_values | tensors() | sets | st.just(Counter("aab")), containers, max_leaves=12),
    max_size=4,
)


def rebuilt(value: Any) -> Any:
    """An equal tree in which no two objects are one, down to strings, tuples, numbers and tensors."""
    if isinstance(value, torch.Tensor):
        return copy.deepcopy(value)
    if type(value) in (dict, OrderedDict):
        return type(value)((rebuilt(key), rebuilt(item)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(map(rebuilt, value))
    if type(value) is set:
        return set(map(rebuilt, sorted(value, key=repr)))
    if type(value) is str:
        return "".join(list(value))
    if type(value) is int:
        return int(str(value))
    if type(value) is bytes:
        return bytes(bytearray(value))
    if type(value) is float:
        return value * 1.0
    return value


def unified(value: Any, known: dict[Any, Any]) -> Any:
    """An equal tree in which equal strings, numbers, bytes and tuples of them are one object each."""
    if type(value) in (dict, OrderedDict):
        return type(value)((unified(key, known), unified(item, known)) for key, item in value.items())
    if type(value) in (list, tuple):
        value = type(value)(unified(item, known) for item in value)
    if type(value) is set:
        return {unified(item, known) for item in sorted(value, key=repr, reverse=True)}
    return value if isinstance(value, torch.Tensor) else known.setdefault((type(value), repr(value)), value)


class TestRoundTrip:
    """Stock ``torch.load(weights_only=True)`` gives back what was saved, and saving that again gives the same bytes."""

    @settings(max_examples=120, deadline=None)
    @given(tree=trees)
    def test_any_tree_comes_back_to_the_bit_with_and_without_mmap(self, tree, tmp_path_factory):
        path = tmp_path_factory.mktemp("archive") / "a.pt"
        first = written_bytes(tree, path)
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
        for loaded in (
            torch.load(path, weights_only=True),
            torch.load(path, weights_only=True, mmap=True),
            load_archive(path),
        ):
            assert same(loaded, dense(tree))
            assert written_bytes(loaded, path.with_name("again.pt")) == first

    @pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental", "ignore:torch.quantize_per_tensor")
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_every_dtype_of_torch(self, dtype, tmp_path):
        pattern = torch.arange(48, dtype=torch.uint8)
        if dtype == torch.bool:
            pattern = pattern % 2
        tensor = pattern.view(dtype)
        payload = {"many": tensor, "one": tensor[0], "none": tensor[:0], "dtype": dtype}
        path = tmp_path / "a.pt"
        write(payload, path)
        for loaded in (torch.load(path, weights_only=True), torch.load(path, weights_only=True, mmap=True)):
            assert memory(loaded["many"]) == bytes(pattern.tolist())
            assert [loaded[key].shape for key in ("many", "one", "none")] == [tensor.shape, (), (0,)]
            assert {value.dtype for value in (loaded["many"], loaded["one"], loaded["none"])} == {dtype}
            assert loaded["dtype"] is dtype

    def test_dense_memory_formats_keep_their_strides(self, tmp_path):
        image = torch.randn(2, 3, 4, 5)
        payload = {
            "channels_last": image.to(memory_format=torch.channels_last),
            "channels_last_3d": torch.randn(1, 2, 3, 4, 5).to(memory_format=torch.channels_last_3d),
            "transposed": torch.randn(3, 5).T,
            "plain": image,
        }
        write(payload, tmp_path / "a.pt")
        loaded = torch.load(tmp_path / "a.pt", weights_only=True)
        assert same(loaded, payload)
        assert loaded["channels_last"].is_contiguous(memory_format=torch.channels_last)
        assert loaded["transposed"].stride() == (1, 5)

    def test_views_with_gaps_or_overlaps_become_dense(self, tmp_path):
        base = torch.arange(24.0).reshape(4, 6)
        payload = {
            "columns": base[:, 1:3],
            "every_other": base[::2],
            "expanded": torch.ones(1).expand(5),
            "row": base[2],
        }
        archive = write(payload, tmp_path / "a.pt")
        loaded = torch.load(tmp_path / "a.pt", weights_only=True)
        for key, value in payload.items():
            assert torch.equal(loaded[key], value)
            assert loaded[key].is_contiguous()
        assert [tensor.size_bytes for tensor in archive.tensors] == [32, 48, 20, 24]

    def test_lazy_conjugates_and_negatives_are_written_as_their_values(self, tmp_path):
        z = torch.randn(4, dtype=torch.complex64)
        write({"conj": z.conj(), "neg": z.conj().imag}, tmp_path / "a.pt")
        loaded = torch.load(tmp_path / "a.pt", weights_only=True)
        assert torch.equal(loaded["conj"], z.conj())
        assert torch.equal(loaded["neg"], -z.imag)

    def test_parameters_gradients_and_module_metadata(self, tmp_path):
        module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        state = module.state_dict()
        payload = {
            "state_dict": state,
            "parameter": nn.Parameter(torch.ones(2)),
            "frozen": nn.Parameter(torch.ones(2), requires_grad=False),
            "with_grad": torch.ones(2, requires_grad=True),
        }
        write(payload, tmp_path / "a.pt")
        loaded = torch.load(tmp_path / "a.pt", weights_only=True)
        assert same(loaded, payload)
        assert type(loaded["state_dict"]) is OrderedDict
        assert loaded["state_dict"]._metadata == state._metadata
        assert loaded["state_dict"]._metadata["1"] == {"version": 2}
        module.load_state_dict(loaded["state_dict"])

    def test_non_finite_values_keep_their_bits(self, tmp_path):
        bits = torch.tensor([0x7FC00001, 0x7F800001, -1, 0x7F800000, -(2**31)], dtype=torch.int32)
        write({"nan": bits.view(torch.float32), "minus_zero": -0.0}, tmp_path / "a.pt")
        loaded = torch.load(tmp_path / "a.pt", weights_only=True)
        assert torch.equal(loaded["nan"].view(torch.int32), bits)
        assert str(loaded["minus_zero"]) == "-0.0"

    @pytest.mark.parametrize("extra", [-1, 0, 1, CHUNK_BYTES + 3])
    def test_tensors_around_the_size_of_a_chunk(self, extra, tmp_path):
        tensor = torch.randint(
            0, 256, (CHUNK_BYTES + extra,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        archive = write({"t": tensor}, tmp_path / "a.pt")
        assert torch.equal(torch.load(tmp_path / "a.pt", weights_only=True)["t"], tensor)
        assert archive.tensors[0].digest == xxhash.xxh3_128_hexdigest(tensor.numpy())
        with zipfile.ZipFile(tmp_path / "a.pt") as zipped:
            assert zipped.testzip() is None


def dense(value: Any) -> Any:
    """A tree as it is promised to come back: each tensor alone in its memory, strides of no consequence normalised."""
    if isinstance(value, torch.Tensor):
        keeps_strides = not value.is_contiguous() and torch.empty_like(value).stride() == value.stride()
        result = torch.empty_like(value.detach()) if keeps_strides else torch.empty(value.shape, dtype=value.dtype)
        result.copy_(value.detach())
        return nn.Parameter(result, value.requires_grad) if isinstance(value, nn.Parameter) else result
    if type(value) in (dict, OrderedDict):
        return type(value)((key, dense(item)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(map(dense, value))
    return value


class TestCanonicalBytes:
    """Equal state, equal bytes: nothing in a file depends on who wrote it and how its objects came about."""

    @settings(max_examples=100, deadline=None)
    @given(tree=trees)
    def test_bytes_do_not_depend_on_which_equal_objects_are_one(self, tree, tmp_path_factory):
        directory = tmp_path_factory.mktemp("archive")
        first = written_bytes(tree, directory / "a.pt")
        assert written_bytes(rebuilt(tree), directory / "b.pt") == first
        assert written_bytes(unified(tree, {}), directory / "c.pt") == first

    def test_sets_of_tuples_are_sorted_by_value(self, tmp_path):
        """A pickle with a memo writes ("xy", "xy") in two ways, which sort differently beside ("xy", "zz")."""
        one = "".join(["x", "y"])
        other = "".join(["x", "y"])
        assert one is not other
        shared = {"s": {(one, one), (one, "zz"), ("a", "b")}}
        separate = {"s": {(one, other), (other, "zz"), ("a", "b")}}
        assert written_bytes(shared, tmp_path / "a.pt") == written_bytes(separate, tmp_path / "b.pt")

    def test_a_list_that_stands_in_two_places_is_written_like_two_equal_lists(self, tmp_path):
        shared = ["betas", (0.9, 0.999), {"a": 1}]
        payload = {"x": shared, "y": shared, "z": {"deep": (shared, shared)}}
        assert written_bytes(payload, tmp_path / "a.pt") == written_bytes(copy.deepcopy(payload), tmp_path / "b.pt")
        separate = {key: rebuilt(value) for key, value in payload.items()}
        assert written_bytes(separate, tmp_path / "b.pt") == (tmp_path / "a.pt").read_bytes()
        assert torch.load(tmp_path / "a.pt", weights_only=True) == payload

    def test_bytes_do_not_depend_on_the_storage_that_a_tensor_is_a_view_of(self, tmp_path):
        base = torch.randn(100, 100)
        alone = base[10:20].clone()
        expected = written_bytes({"t": alone}, tmp_path / "a.pt")
        assert len(expected) < alone.numel() * 4 + 2000
        padded = torch.zeros(3000)
        padded[77:1077] = alone.flatten()
        for view in (
            base[10:20],
            padded[77:1077].view(10, 100),
            base.view(-1)[1000:2000].view(10, 100),
            alone.detach(),
        ):
            assert written_bytes({"t": view}, tmp_path / "b.pt") == expected

    def test_bytes_do_not_depend_on_where_empty_tensors_lie(self, tmp_path):
        base = torch.randn(5)
        elsewhere = {"a": base[:0], "b": base[:0], "c": base[3:3], "d": torch.randn(0)}
        nowhere = {name: torch.empty(0) for name in elsewhere}
        assert written_bytes(elsewhere, tmp_path / "a.pt") == written_bytes(nowhere, tmp_path / "b.pt")

    def test_bytes_do_not_depend_on_strides_of_no_consequence(self, tmp_path):
        """A dimension of one element has an arbitrary stride; which one depends on how the tensor was made."""
        plain = torch.arange(6.0).reshape(1, 6, 1)
        odd = torch.as_strided(plain.clone(), (1, 6, 1), (999, 1, 77))
        assert written_bytes({"t": odd}, tmp_path / "a.pt") == written_bytes({"t": plain}, tmp_path / "b.pt")

    def test_another_process_with_other_hashes_writes_the_same_bytes(self, tmp_path):
        script = (
            "import sys, torch; from pathlib import Path; from collections import OrderedDict\n"
            "from neuromanifold_gpt.checkpoint.writer import stage_checkpoint, write_checkpoint\n"
            "from neuromanifold_gpt.checkpoint.naming import paths_of_name\n"
            "words = [chr(97 + i) * (i + 1) for i in range(20)]\n"
            "state = OrderedDict((word, torch.full((3,), float(i))) for i, word in enumerate(words))\n"
            "plain = {'set': set(words), 'mixed': {1, 'one', (1, 'one'), None}, 'nested': [{(w, w) for w in words}]}\n"
            "print(list(plain['set'])[:3])\n"
            "model = {'state_dict': state, 'config': plain}\n"
            "staged = stage_checkpoint(3, model, {'optimizer_states': [state], 'plain': plain})\n"
            "write_checkpoint(paths_of_name(Path(sys.argv[1]), 'x'), staged)\n"
        )
        orders = set()
        for seed in ("1", "2"):
            environment = {
                **os.environ,
                "PYTHONHASHSEED": seed,
                "PYTHONPATH": str(Path(neuromanifold_gpt.__file__).parents[1]),
            }
            directory = tmp_path / seed
            command = [sys.executable, "-c", script, str(directory)]
            orders.add(subprocess.run(command, env=environment, check=True, capture_output=True, cwd=tmp_path).stdout)
        assert len(orders) == 2, "the two processes have the same order of sets: nothing has been compared"
        for name in ("x-model.pt", "x-optimizer.pt"):
            assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()

    def test_the_format_has_not_changed(self, tmp_path):
        """A golden digest: whoever changes it changes the bytes of everybody's checkpoints."""
        weight = torch.arange(6, dtype=torch.float32).reshape(2, 3)
        payload = {
            "step": 50,
            "state_dict": OrderedDict(
                a=weight, tied=weight, half=weight.to(torch.bfloat16).T, new=weight.to(torch.uint16)
            ),
            "plain": [
                None,
                True,
                2**40,
                0.1,
                1j,
                "é",
                b"\x00",
                b"",
                bytearray(b"x"),
                {"b", "a"},
                (1, ("x",)),
                Counter("aab"),
            ],
            "parameter": nn.Parameter(torch.ones(())),
            "kinds": [torch.float16, torch.device("cpu"), torch.Size([1, 2])],
        }
        archive = write(payload, tmp_path / "a.pt")
        assert same(torch.load(tmp_path / "a.pt", weights_only=True), payload)
        assert (archive.size_bytes, archive.digest) == (2486, "aa9a46c31cd456014b16e490aa452439")

    def test_the_content_digest_covers_structure_values_and_tensors(self):
        base = {"a": 1, "t": torch.ones(3)}
        changed = [
            {"a": 2, "t": torch.ones(3)},
            {"a": True, "t": torch.ones(3)},
            {"b": 1, "t": torch.ones(3)},
            {"t": torch.ones(3), "a": 1},
            {"a": 1, "t": torch.tensor([1.0, 1.0, 2.0])},
            {"a": 1, "t": torch.ones(3, 1)},
            {"a": 1, "t": torch.ones(3).view(torch.int32)},
        ]

        def digest(payload: dict[str, Any]) -> str:
            staged = stage(payload)
            return content_digest(staged, storage_digests(staged))

        digests = [digest(payload) for payload in (base, *changed)]
        assert len(set(digests)) == len(digests)
        assert digest(rebuilt(base)) == digests[0]


class TestTies:
    """Tensors of the same memory share a record and come back sharing; equal tensors do not."""

    def reads(self, path: Path) -> list[Any]:
        return [
            torch.load(path, weights_only=True),
            torch.load(path, weights_only=True, mmap=True),
            load_archive(path),
        ]

    def test_tied_weights_share_one_record_and_come_back_tied(self, tmp_path):
        model = nn.ModuleDict({"embedding": nn.Embedding(50, 4), "head": nn.Linear(4, 50, bias=False)})
        model["head"].weight = model["embedding"].weight
        archive = write({"state_dict": model.state_dict()}, tmp_path / "a.pt")
        assert len({tensor.offset for tensor in archive.tensors}) == 1
        assert [tensor.path for tensor in archive.tensors] == ["state_dict/embedding.weight", "state_dict/head.weight"]
        for loaded in self.reads(tmp_path / "a.pt"):
            embedding, head = loaded["state_dict"].values()
            embedding[0, 0] = 7
            assert head[0, 0] == 7

    def test_the_same_memory_in_another_shape_or_order_is_tied_too(self, tmp_path):
        weight = torch.randn(4, 6)
        payload = {"w": weight, "flat": weight.view(-1), "t": weight.T}
        archive = write(payload, tmp_path / "a.pt")
        assert len({tensor.offset for tensor in archive.tensors}) == 1
        for loaded in self.reads(tmp_path / "a.pt"):
            assert same(loaded, payload)
            loaded["w"].fill_(3)
            assert loaded["flat"].tolist() == [3] * 24
            assert loaded["t"][5, 3] == 3

    def test_equal_or_overlapping_tensors_are_not_tied(self, tmp_path):
        base = torch.zeros(6)
        payload = {"one": torch.zeros(3), "two": torch.zeros(3), "first": base[:3], "shifted": base[2:5], "all": base}
        archive = write(payload, tmp_path / "a.pt")
        assert len({tensor.offset for tensor in archive.tensors}) == 5
        for loaded in self.reads(tmp_path / "a.pt"):
            loaded["one"].fill_(1)
            loaded["all"].fill_(2)
            assert [loaded[key].tolist() for key in ("two", "first", "shifted")] == [[0] * 3] * 3

    def test_the_same_memory_as_another_dtype_is_its_own_record(self, tmp_path):
        """The pickle of one storage has one dtype."""
        floats = torch.randn(4)
        write({"floats": floats, "ints": floats.view(torch.int32)}, tmp_path / "a.pt")
        loaded = torch.load(tmp_path / "a.pt", weights_only=True)
        assert torch.equal(loaded["floats"].view(torch.int32), loaded["ints"])
        assert torch.equal(loaded["floats"], floats)

    def test_outside_the_tied_parts_sharing_does_not_show(self):
        """There, one tensor in two places is a coincidence, which a resume does not repeat."""
        shared, weight = torch.ones(3), torch.zeros(3)
        metrics = {"best": shared, "last": shared, "weight": weight}
        one = stage({"weights": [weight, weight], "metrics": metrics}, tied_parts={"weights"})
        apart = {name: tensor.clone() for name, tensor in metrics.items()}
        other = stage({"weights": [weight, weight], "metrics": apart}, tied_parts={"weights"})
        for staged in (one, other):
            assert [tensor.storage.key for tensor in staged.tensors] == ["0", "0", "1", "2", "3"]
        assert content_digest(one, storage_digests(one)) == content_digest(other, storage_digests(other))

    def test_temporary_copies_at_the_same_address_are_not_taken_for_one(self, tmp_path):
        """Staging copies tensors with gaps; a copy that was freed could lend its address to the next."""
        base = torch.arange(2000.0).reshape(10, 200)
        payload = {str(i): base[:, i : i + 1] for i in range(200)}
        write(payload, tmp_path / "a.pt")
        loaded = torch.load(tmp_path / "a.pt", weights_only=True)
        assert all(torch.equal(loaded[str(i)], base[:, i : i + 1]) for i in range(200))


class TestRecords:
    """What the manifest says about tensors is where and what they are."""

    @settings(max_examples=60, deadline=None)
    @given(tree=trees, name=st.text(max_size=80))
    def test_tensor_data_is_aligned_and_digested_where_the_record_says(self, tree, name, tmp_path_factory):
        path = tmp_path_factory.mktemp("archive") / "a.pt"
        archive = write({**tree, "name": name, "last": torch.arange(3)}, path)
        content = path.read_bytes()
        assert (archive.size_bytes, archive.digest) == (len(content), xxhash.xxh3_128_hexdigest(content))
        for tensor in archive.tensors:
            data = content[tensor.offset : tensor.offset + tensor.size_bytes]
            assert tensor.offset % 64 == 0
            assert tensor.digest == xxhash.xxh3_128_hexdigest(data)
        last = archive.tensors[-1]
        assert (last.path, last.dtype, last.shape) == ("last", "int64", (3,))
        assert content[last.offset : last.offset + last.size_bytes] == memory(torch.arange(3))

    def test_torch_finds_the_data_where_the_record_says(self, tmp_path):
        payload = {"a": torch.arange(5), "b": torch.ones(2, 2, dtype=torch.float64)}
        archive = write(payload, tmp_path / "a.pt")
        reader = torch.PyTorchFileReader(str(tmp_path / "a.pt"))
        assert [reader.get_record_offset(f"data/{i}") for i in range(2)] == [t.offset for t in archive.tensors]

    def test_a_mapped_tensor_is_the_file_itself(self, tmp_path):
        write({"a": torch.arange(5)}, tmp_path / "a.pt")
        mapped = torch.load(tmp_path / "a.pt", weights_only=True, mmap=True)["a"]
        assert mapped.data_ptr() % 64 == 0
        assert torch.equal(mapped, torch.arange(5))

    def test_what_load_archive_returns_does_not_change_with_the_file(self, tmp_path):
        path = tmp_path / "a.pt"
        archive = write({"a": torch.zeros(5), "deep": [({"b": torch.zeros(3)},)]}, path)
        loaded = load_archive(path)
        with path.open("r+b") as file:
            for tensor in archive.tensors:
                file.seek(tensor.offset)
                file.write(b"\xff" * tensor.size_bytes)
        assert loaded["a"].tolist() == [0] * 5
        assert loaded["deep"][0][0]["b"].tolist() == [0] * 3
