"""A split: mapped, read through to its end, refused if it is shorter than it should be."""

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from neuromanifold_gpt.data import splits
from neuromanifold_gpt.data.errors import DatasetError
from neuromanifold_gpt.data.splits import open_split


@given(
    content=st.binary(min_size=2, max_size=400),
    dtype=st.sampled_from(["u1", "<u2"]),
    chunk_bytes=st.sampled_from([2, 16, 64, 1 << 20]),
    data=st.data(),
)
def test_tells_digest_and_maximum_of_exactly_its_tokens(tmp_path_factory, content, dtype, chunk_bytes, data):
    path = tmp_path_factory.mktemp("split") / "tokens"
    path.write_bytes(content)
    itemsize = np.dtype(dtype).itemsize
    offset = data.draw(st.integers(0, len(content) - itemsize), label="offset")
    count = data.draw(st.integers(1, (len(content) - offset) // itemsize), label="count")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "CHUNK_BYTES", chunk_bytes)
        split = open_split(path, dtype, offset=offset, count=count)
    expected = np.frombuffer(content, dtype, count=count, offset=offset)
    assert np.array_equal(split.tokens, expected)
    assert split.largest == expected.max()
    assert split.digest == xxhash.xxh3_128_hexdigest(expected.tobytes())
    assert split.path == path


def test_shorter_file_is_refused_with_a_remedy(tmp_path):
    path = tmp_path / "tokens"
    path.write_bytes(b"0123456789")
    with pytest.raises(DatasetError, match=r"tokens: expected 11 tokens from byte 0 on, found fewer.*start again"):
        open_split(path, np.uint8, count=11)
    with pytest.raises(DatasetError, match="expected 10 tokens from byte 1 on"):
        open_split(path, np.uint8, offset=1, count=10)


def test_missing_file_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_split(tmp_path / "tokens", np.uint8, count=1)
