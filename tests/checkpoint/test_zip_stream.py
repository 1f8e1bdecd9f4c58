"""The ZIP container: what :mod:`zipfile` and torch accept, also where sizes, offsets and counts need zip64."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuromanifold_gpt.checkpoint.archive import pickle_canonically
from neuromanifold_gpt.checkpoint.staging import stage
from neuromanifold_gpt.checkpoint.zip_stream import ALIGNMENT_BYTES, ZipStream

GIB = 1 << 30
HOLE = bytes(16 << 20)


class SparseFile:
    """Writes zeros as holes, so that gigabytes of them cost no disk."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)

    def write(self, data: bytes | memoryview) -> object:
        if isinstance(data, memoryview) and data.obj is HOLE:
            return self._file.seek(len(data), 1)
        return self._file.write(data)

    def close(self) -> None:
        self._file.truncate(self._file.tell())
        self._file.close()


def hole(size_bytes: int):
    for start in range(0, size_bytes, len(HOLE)):
        yield memoryview(HOLE)[: min(len(HOLE), size_bytes - start)]


def uses_no_disk(path: Path) -> bool:
    return path.stat().st_blocks * 512 < 64 << 20


class TestSmall:
    @given(
        records=st.dictionaries(
            st.text("abc/\xe9\u2713.0", min_size=1, max_size=90), st.binary(max_size=200), max_size=8
        )
    )
    def test_zipfile_reads_what_was_written(self, records):
        sink = io.BytesIO()
        stream = ZipStream(sink)
        offsets = {name: stream.add(name, len(data), [data[:50], data[50:]]) for name, data in records.items()}
        stream.close()
        content = sink.getvalue()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            assert archive.testzip() is None
            assert {info.filename: archive.read(info) for info in archive.infolist()} == records
            assert [info.filename for info in archive.infolist()] == list(records)
            assert {info.compress_type for info in archive.infolist()} <= {zipfile.ZIP_STORED}
            assert {info.date_time for info in archive.infolist()} <= {(1980, 1, 1, 0, 0, 0)}
        for name, data in records.items():
            assert offsets[name] % ALIGNMENT_BYTES == 0
            assert content[offsets[name] : offsets[name] + len(data)] == data

    def test_the_bytes_follow_from_names_and_content_alone(self):
        """Golden bytes of a record of two: the format is ours, not that of a version of :mod:`zipfile`."""
        sink = io.BytesIO()
        stream = ZipStream(sink)
        assert stream.add("a", 2, [b"hi"]) == 64
        stream.close()
        assert sink.getvalue().hex() == (
            "504b0304" "1400" "0808" "0000" "0000" "2100" "00000000" "00000000" "00000000" "0100" "2100" "61"
            + "4642" "1d00" + "00" * 29 + "6869" + "504b0708" "ac2a93d8" "02000000" "02000000"
            + "504b0102" "1400" "1400" "0808" "0000" "0000" "2100" "ac2a93d8" "02000000" "02000000"
            "0100" "0000" "0000" "0000" "0000" "00000000" "00000000" "61"
            + "504b0506" "0000" "0000" "0100" "0100" "2f000000" "52000000" "0000"
        )  # fmt: skip

    @pytest.mark.parametrize("chunks", [[], [b"abc"], [b"abc", b"de"]])
    def test_a_record_of_another_size_than_announced_is_an_error(self, chunks):
        stream = ZipStream(io.BytesIO())
        with pytest.raises(ValueError, match="record t: expected 4 bytes, got"):
            stream.add("t", 4, chunks)


class TestBeyond32Bits:
    """Zip64, on a sparse file."""

    def test_records_behind_4_gib_are_read_by_zipfile(self, tmp_path):
        """One record below the limit, one at it, one above it, and a small one behind them all."""
        path = tmp_path / "a.zip"
        file = SparseFile(path)
        stream = ZipStream(file)
        sizes = {"below": 2**32 - 2, "at": 2**32 - 1, "small": 5}
        offsets = {"first": stream.add("first", 3, [b"abc"])}
        for name, size in sizes.items():
            offsets[name] = stream.add(name, size, [b"small"] if name == "small" else hole(size))
        stream.close()
        file.close()
        assert uses_no_disk(path)
        assert offsets["at"] > 2**32 - 1
        assert offsets["small"] > 2**33 - 3
        with zipfile.ZipFile(path) as archive:
            assert {info.filename: info.file_size for info in archive.infolist()} == {"first": 3, **sizes}
            assert archive.read("first") == b"abc"
            assert archive.read("small") == b"small"
            assert archive.getinfo("small").header_offset > 2**33 - 3
            # Behind the data stand a checksum and two sizes, of 8 bytes each where the local header says zip64.
            ends = {name: offsets[name] + size for name, size in sizes.items()}
            assert archive.getinfo("at").header_offset == ends["below"] + 16
            assert archive.getinfo("small").header_offset == ends["at"] + 24
            with archive.open("at") as record:
                assert record.read(1000) == bytes(1000)
        with path.open("rb") as raw:
            raw.seek(offsets["small"])
            assert raw.read(5) == b"small"
        assert all(offset % ALIGNMENT_BYTES == 0 for offset in offsets.values())

    def test_a_tensor_of_more_than_4_gib_and_one_behind_it_are_read_by_torch(self, tmp_path):
        path = tmp_path / "a.pt"
        file = SparseFile(path)
        large = torch.empty(4 * GIB + 8, dtype=torch.uint8)  # pages that nobody touches take no memory
        staged = stage({"large": large, "behind": torch.arange(5), "plain": "x"})
        stream = ZipStream(file)
        stream.add("archive/byteorder", 6, [b"little"])
        stream.add("archive/version", 2, [b"3\n"])
        stream.add("archive/data/0", large.numel(), hole(large.numel()))
        assert stream.add("archive/data/1", 40, [torch.arange(5).numpy().tobytes()]) > 2**32
        pickled = pickle_canonically(staged.tree)
        stream.add("archive/data.pkl", len(pickled), [pickled])
        stream.close()
        file.close()
        assert uses_no_disk(path)
        loaded = torch.load(path, weights_only=True, mmap=True)
        assert loaded["large"].shape == large.shape
        assert loaded["large"][-8:].tolist() == [0] * 8
        assert loaded["behind"].tolist() == [0, 1, 2, 3, 4]
        assert loaded["plain"] == "x"


@pytest.mark.parametrize("count", [0xFFFE, 0xFFFF, 70_000])
def test_more_records_than_16_bits_count_are_read(count, tmp_path):
    """As many as there can be without a zip64 directory, the first number that needs one, and many."""
    path = tmp_path / "a.pt"
    with path.open("wb") as file:
        stream = ZipStream(file)
        stream.add("archive/version", 2, [b"3\n"])
        for number in range(1, count):
            stream.add(f"archive/data/{number}", 4, [number.to_bytes(4, "little")])
        stream.close()
    last = f"data/{count - 1}"
    with zipfile.ZipFile(path) as archive:
        assert len(archive.infolist()) == count
        assert int.from_bytes(archive.read(f"archive/{last}"), "little") == count - 1
    reader = torch.PyTorchFileReader(str(path))
    assert int.from_bytes(reader.get_record(last), "little") == count - 1
    assert (b"PK\x06\x06" in path.read_bytes()[-200:]) == (count >= 0xFFFF)
