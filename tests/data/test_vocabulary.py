"""Vocabularies: bytes, tables, and ids that nothing is known about."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuromanifold_gpt.data.errors import DatasetError
from neuromanifold_gpt.data.vocabulary import ByteVocabulary, IdVocabulary, TableVocabulary


class TestBytes:
    @given(st.text())
    def test_text_comes_back(self, text):
        vocabulary = ByteVocabulary()
        ids = vocabulary.encode(text)
        assert bytes(ids) == text.encode()
        assert vocabulary.decode(ids) == text

    @given(st.lists(st.integers(0, 299)))
    def test_any_ids_decode(self, ids):
        expected = b"".join(bytes([i]) if i < 256 else b"\xff" for i in ids).decode(errors="replace")
        assert ByteVocabulary(300).decode(ids) == expected

    def test_each_id_of_the_padding_becomes_a_replacement_character(self):
        assert ByteVocabulary(300).decode([65, 256, 299, 66]) == "A\ufffd\ufffdB"

    def test_bytes_that_came_as_surrogates_go_back_to_bytes(self):
        assert ByteVocabulary().encode(b"a\xff".decode(errors="surrogateescape")) == [97, 255]

    def test_lone_surrogate_is_refused(self):
        with pytest.raises(DatasetError, match="half a surrogate pair at position 1"):
            ByteVocabulary().encode("a\ud800")


class TestTable:
    def test_lowest_id_counts_where_a_text_occurs_twice(self):
        vocabulary = TableVocabulary(4, {3: "a", 1: "a", 0: "b"})
        assert vocabulary.encode("ab") == [1, 0]
        assert vocabulary.decode([3, 1]) == "aa"

    def test_given_stoi_decides(self):
        assert TableVocabulary(4, {3: "a", 1: "a"}, {"a": 3}).encode("a") == [3]

    def test_ids_without_text_become_replacement_characters(self):
        assert TableVocabulary(4, {0: "a"}).decode([0, 3]) == "a\ufffd"

    def test_unknown_character_is_named_with_its_place(self):
        with pytest.raises(DatasetError, match=r"character 'z' at position 2 is none of the 2 characters"):
            TableVocabulary(2, {0: "a", 1: "b"}).encode("abz")

    def test_does_not_guess_how_a_tokeniser_would_split(self):
        vocabulary = TableVocabulary(3, {0: "a", 1: "b", 2: "ab"})
        assert vocabulary.decode([2, 0]) == "aba"
        with pytest.raises(DatasetError, match="found the token 'ab'"):
            vocabulary.encode("ab")


class TestIds:
    def test_print_as_numbers(self):
        assert IdVocabulary(50257).decode([50256, 0, 7]) == "50256 0 7"

    def test_cannot_encode(self):
        with pytest.raises(DatasetError, match="no table of its token ids"):
            IdVocabulary(50257).encode("text")


def test_description_has_both_tables():
    texts = [TableVocabulary(2, {0: "a", 1: text}, {"a": 0}) for text in "bc"]
    assert texts[0].description() != texts[1].description()
    ids = [TableVocabulary(2, {0: "a", 1: "a"}, {"a": token_id}) for token_id in (0, 1)]
    assert ids[0].description() != ids[1].description()


VOCABULARIES = [ByteVocabulary(300), TableVocabulary(300, {0: "a"}), IdVocabulary(300)]


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
class TestAll:
    @pytest.mark.parametrize("wrong", [-1, 300])
    def test_id_out_of_range_is_refused(self, vocabulary, wrong):
        with pytest.raises(DatasetError, match=rf"position 1: expected 0 .. 299, found {wrong}"):
            vocabulary.decode([0, wrong])

    def test_nothing_decodes_to_nothing(self, vocabulary):
        assert vocabulary.decode([]) == ""

    def test_survives_pickling(self, vocabulary):
        assert pickle.loads(pickle.dumps(vocabulary)) == vocabulary

    def test_description_is_its_own(self, vocabulary):
        assert [v.description() for v in VOCABULARIES].count(vocabulary.description()) == 1
        assert vocabulary.description()["size"] == 300
