"""Blocks of tokens: nothing left out, nothing twice, and small when pickled."""

import os
import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from neuromanifold_gpt.data.blocks import TokenBlocks
from neuromanifold_gpt.data.errors import DatasetError


def token_file(path, count=10_000, dtype="<u2"):
    np.arange(count).astype(dtype).tofile(path)
    return path


def token_map(path, **options):
    return np.memmap(path, dtype="<u2", **{"mode": "r", **options})


def same_blocks(one, two):
    return len(one) == len(two) and all(
        torch.equal(x1, x2) and torch.equal(y1, y2)
        for (x1, y1), (x2, y2) in ((one[i], two[i]) for i in range(len(one)))
    )


class TestBlocks:
    @given(count=st.integers(2, 400), data=st.data(), dtype=st.sampled_from(["u1", "<u2", "i8"]))
    def test_cover_the_tokens_without_gap_or_overlap(self, count, data, dtype):
        block_size = data.draw(st.integers(1, count - 1), label="block_size")
        tokens = np.arange(count).astype(dtype)
        blocks = TokenBlocks(tokens, block_size)
        assert len(blocks) == (count - 1) // block_size >= 1
        x = torch.cat([blocks[i][0] for i in range(len(blocks))])
        y = torch.cat([blocks[i][1] for i in range(len(blocks))])
        assert x.tolist() == tokens[: len(x)].tolist()
        assert y.tolist() == tokens[1 : len(x) + 1].tolist()
        assert count - 1 - len(x) < block_size  # what is left out is no whole block

    @pytest.mark.parametrize("dtype", ["u1", "<u2"])
    def test_items_are_int64_of_the_block_size(self, dtype):
        x, y = TokenBlocks(np.arange(100).astype(dtype), 8)[3]
        assert x.dtype == y.dtype == torch.int64
        assert x.tolist() == list(range(24, 32))
        assert y.tolist() == list(range(25, 33))

    def test_items_may_be_changed_without_changing_anything_else(self, tmp_path):
        blocks = TokenBlocks(token_map(token_file(tmp_path / "tokens")), 8)
        x, y = blocks[0]
        x.fill_(-1)
        assert y.tolist() == list(range(1, 9))
        assert blocks[0][0].tolist() == list(range(8))

    def test_several_at_once_are_the_same_as_one_by_one(self):
        blocks = TokenBlocks(np.arange(100), 8)
        for (x, y), i in zip(blocks.__getitems__([3, 0, 3]), [3, 0, 3], strict=True):
            assert torch.equal(x, blocks[i][0])
            assert torch.equal(y, blocks[i][1])
        assert blocks.__getitems__([]) == []

    @pytest.mark.parametrize("wrong", [12, 1000, -1])
    def test_index_out_of_range(self, wrong):
        blocks = TokenBlocks(np.arange(100), 8)
        with pytest.raises(IndexError, match=f"expected 0 .. 11, found {wrong}"):
            blocks[wrong]
        with pytest.raises(IndexError):
            blocks.__getitems__([0, wrong])

    def test_indices_of_samplers_are_taken_and_fractions_are_not(self):
        blocks = TokenBlocks(np.arange(100), 8)
        assert torch.equal(blocks[np.int64(2)][0], blocks[2][0])
        assert torch.equal(blocks[torch.tensor(2)][0], blocks[2][0])
        with pytest.raises(TypeError):
            blocks[1.5]

    def test_iteration_ends(self):
        assert len(list(TokenBlocks(np.arange(100), 8))) == 12


class TestErrors:
    @pytest.mark.parametrize("count", [0, 1, 8])
    def test_too_few_tokens(self, count):
        with pytest.raises(DatasetError, match=rf"at least block_size \+ 1 = 9, found {count}; choose a block_size"):
            TokenBlocks(np.arange(count), 8)

    @pytest.mark.parametrize("block_size", [0, -1, 2.0, True])
    def test_block_size(self, block_size):
        with pytest.raises(DatasetError, match=f"block_size: expected an integer of at least 1, found {block_size}"):
            TokenBlocks(np.arange(100), block_size)

    @pytest.mark.parametrize("tokens", [np.zeros((4, 4), int), np.zeros(16), np.zeros(32, int)[::2]])
    def test_tokens(self, tokens):
        with pytest.raises(DatasetError, match="contiguous row of integers"):
            TokenBlocks(tokens, 2)


class TestPickling:
    def test_memory_map_is_small_and_the_same_afterwards(self, tmp_path):
        blocks = TokenBlocks(token_map(token_file(tmp_path / "tokens", count=500_000)), 8)
        pickled = bytes(ForkingPickler.dumps(blocks))  # what spawned data workers get
        assert len(pickled) < 1000
        again = pickle.loads(pickled)
        assert isinstance(again.tokens, np.memmap)
        assert not again.tokens.flags.writeable
        assert np.array_equal(again.tokens, blocks.tokens)
        assert same_blocks([again[7]], [blocks[7]])
        assert len(pickle.dumps(again)) < 1000  # and once more

    @given(
        offset=st.integers(0, 5000),
        cuts=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=3),
        plain=st.booleans(),
    )
    def test_slices_of_a_memory_map_keep_their_place(self, tmp_path_factory, offset, cuts, plain):
        path = tmp_path_factory.mktemp("blocks") / "tokens"
        tokens = token_map(token_file(path), offset=2 * offset)
        for start, end in cuts:
            tokens = tokens[start : len(tokens) - end]
            if plain:
                tokens = np.asarray(tokens)
        blocks = TokenBlocks(tokens, 100)
        pickled = pickle.dumps(blocks)
        assert len(pickled) < 1000
        again = pickle.loads(pickled)
        assert again.tokens.dtype == tokens.dtype
        assert np.array_equal(again.tokens, tokens)

    def test_offset_beyond_the_first_pages_is_kept(self, tmp_path):
        path = token_file(tmp_path / "tokens", count=60_000)
        tokens = token_map(path, offset=100_000)
        assert np.array_equal(pickle.loads(pickle.dumps(TokenBlocks(tokens, 8))).tokens, tokens)

    def test_arrays_in_memory_are_pickled_with_their_content(self):
        blocks = TokenBlocks(np.arange(100), 8)
        assert same_blocks(pickle.loads(pickle.dumps(blocks)), blocks)

    def test_changes_that_are_not_in_the_file_are_kept(self, tmp_path):
        tokens = token_map(token_file(tmp_path / "tokens"), mode="c")
        tokens[3] = 77
        assert pickle.loads(pickle.dumps(TokenBlocks(tokens, 8)))[0][0][3] == 77

    @pytest.mark.parametrize("harm", [os.unlink, lambda path: os.truncate(path, 100)])
    def test_file_that_went_away_is_named(self, tmp_path, harm):
        path = token_file(tmp_path / "tokens")
        pickled = pickle.dumps(TokenBlocks(token_map(path), 8))
        harm(path)
        with pytest.raises(DatasetError, match="tokens: expected 10000 tokens from byte 0 on"):
            pickle.loads(pickled)

    def test_relative_path_is_found_from_another_directory(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        token_file(tmp_path / "tokens")
        pickled = pickle.dumps(TokenBlocks(token_map("tokens"), 8))
        monkeypatch.chdir("/")
        assert pickle.loads(pickled)[0][0].tolist() == list(range(8))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_works_in_a_data_loader(tmp_path, num_workers):
    blocks = TokenBlocks(token_map(token_file(tmp_path / "tokens", count=1001)), 10)
    batches = list(DataLoader(blocks, batch_size=16, num_workers=num_workers))
    assert torch.cat([x for x, _ in batches]).flatten().tolist() == list(range(1000))
    assert torch.cat([y for _, y in batches]).flatten().tolist() == list(range(1, 1001))
