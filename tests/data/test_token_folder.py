"""nanoGPT folders: uint16 tokens, vocabulary from meta.json or the argument, never from a pickle."""

import json
import pickle

import numpy as np
import pytest

from neuromanifold_gpt.data.corpora import open_corpus
from neuromanifold_gpt.data.errors import DatasetError

CHARACTERS = ["\n", " ", "a", "b", "ü", "😀"]


@pytest.fixture
def folder(tmp_path):
    np.array([0, 1, 2, 3, 4, 5, 2], dtype="<u2").tofile(tmp_path / "train.bin")
    np.array([5, 0, 3], dtype="<u2").tofile(tmp_path / "val.bin")
    return tmp_path


def write_meta(folder, **meta):
    (folder / "meta.json").write_text(json.dumps(meta))


def refusal(folder, **options):
    with pytest.raises(DatasetError) as error:
        open_corpus(str(folder), **options)
    return str(error.value)


class TestTokens:
    def test_are_read_only_uint16_maps_of_the_two_files(self, folder):
        corpus = open_corpus(str(folder), vocab_size=50257)
        assert corpus.train.tolist() == [0, 1, 2, 3, 4, 5, 2]
        assert corpus.validation.tolist() == [5, 0, 3]
        for tokens, name in ((corpus.train, "train.bin"), (corpus.validation, "val.bin")):
            assert isinstance(tokens, np.memmap)
            assert tokens.dtype == np.uint16
            assert not tokens.flags.writeable
            assert tokens.filename == folder / name

    @pytest.mark.parametrize("name", ["train.bin", "val.bin"])
    @pytest.mark.parametrize(("content", "found"), [(b"", "0 bytes"), (b"abc", "3 bytes")])
    def test_empty_or_odd_file_is_refused(self, folder, name, content, found):
        (folder / name).write_bytes(content)
        message = refusal(folder, vocab_size=50257)
        assert f"{folder / name}: " in message
        assert f"found {found}" in message

    @pytest.mark.parametrize("name", ["train.bin", "val.bin"])
    @pytest.mark.parametrize("position", [0, 2_500_000, 5_000_000])  # in several chunks of reading
    def test_largest_id_decides_about_the_vocabulary(self, folder, name, position):
        assert open_corpus(str(folder), vocab_size=6).vocabulary.size == 6
        tokens = np.zeros(5_000_001, dtype="<u2")
        tokens[position] = 6
        tokens.tofile(folder / name)
        message = refusal(folder, vocab_size=6)
        assert f"{folder / name}: expected token ids below vocab_size=6, found the maximum 6" in message
        assert "at least 7" in message

    @pytest.mark.parametrize(("present", "missing"), [("train.bin", "val.bin"), ("val.bin", "train.bin")])
    def test_half_a_folder_is_not_taken_for_text(self, folder, present, missing):
        (folder / missing).unlink()
        (folder / "prepare.py").write_text("print('text')")
        message = refusal(folder)
        assert f"found only {present}" in message
        assert f"to get {missing}" in message

    def test_digest_changes_with_each_part(self, folder):
        digests = {open_corpus(str(folder), vocab_size=size).digest for size in (10, 11)}
        write_meta(folder, vocab_size=10, itos=CHARACTERS)
        digests.add(open_corpus(str(folder)).digest)
        write_meta(folder, vocab_size=10, itos=CHARACTERS[::-1])
        digests.add(open_corpus(str(folder)).digest)
        for name in ("train.bin", "val.bin"):
            tokens = np.fromfile(folder / name, dtype="<u2")
            tokens[-1] = 1
            tokens.tofile(folder / name)
            digests.add(open_corpus(str(folder)).digest)
        assert len(digests) == 6

    def test_file_that_cannot_be_read_is_named(self, folder, monkeypatch):
        def refuse(path, **_):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(np, "memmap", refuse)
        message = refusal(folder, vocab_size=10)
        assert f"{folder / 'train.bin'}: " in message
        assert "Permission denied" in message


class TestMeta:
    @pytest.mark.parametrize("itos", [CHARACTERS, {str(i): c for i, c in enumerate(CHARACTERS)}])
    def test_itos_may_be_a_list_or_an_object(self, folder, itos):
        write_meta(folder, vocab_size=6, itos=itos)
        vocabulary = open_corpus(str(folder)).vocabulary
        assert vocabulary.size == 6
        assert vocabulary.decode([2, 4, 5, 0]) == "aü😀\n"
        assert vocabulary.encode("bü a") == [3, 4, 1, 2]

    def test_stoi_alone_is_enough(self, folder):
        write_meta(folder, vocab_size=6, stoi={c: i for i, c in enumerate(CHARACTERS)})
        vocabulary = open_corpus(str(folder)).vocabulary
        assert vocabulary.decode(vocabulary.encode("ab ü")) == "ab ü"

    def test_size_alone_is_enough(self, folder):
        write_meta(folder, vocab_size=6)
        assert open_corpus(str(folder)).vocabulary.decode([3, 4]) == "3 4"

    def test_argument_may_repeat_the_size_but_not_contradict_it(self, folder):
        write_meta(folder, vocab_size=6, itos=CHARACTERS)
        assert open_corpus(str(folder), vocab_size=6).vocabulary.size == 6
        message = refusal(folder, vocab_size=7)
        assert "expected 6" in message
        assert "meta.json, found 7" in message

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"\xff\xfe", "expected JSON"),
            (b"{", "expected JSON"),
            (b"[" * 100_000, "expected JSON"),
            (b"[]", "'vocab_size' is an integer of at least 1, found []"),
            (b"{}", "'vocab_size'"),
            (b'{"vocab_size": true}', "'vocab_size'"),
            (b'{"vocab_size": 0}', "'vocab_size'"),
            (b'{"vocab_size": 6.0}', "'vocab_size'"),
            (b'{"vocab_size": 6, "itos": "abc"}', "itos: expected a list or an object, found 'abc'"),
            (b'{"vocab_size": 6, "itos": {"%s": "a"}}' % (b"x" * 5000), "found 'xxxx"),
            (b'{"vocab_size": 6, "itos": [1]}', "itos: expected texts by token id, found '0': 1"),
            (b'{"vocab_size": 6, "itos": {"-1": "a"}}', "found '-1'"),
            (b'{"vocab_size": 6, "itos": {"\xc2\xb2": "a"}}', "found '\u00b2'"),
            (b'{"vocab_size": 6, "stoi": ["a"]}', "stoi: expected an object, found ['a']"),
            (b'{"vocab_size": 6, "stoi": {"a": "1"}}', "stoi: expected token ids by text, found 'a': '1'"),
            (b'{"vocab_size": 6, "itos": {"6": "a"}}', "because vocab_size is 6, found 6"),
            (b'{"vocab_size": 6, "itos": ["a"], "stoi": {"b": 0}}', "stoi: expected 'b'"),
        ],
    )
    def test_bad_meta_is_refused_with_its_path(self, folder, content, words):
        (folder / "meta.json").write_bytes(content)
        message = refusal(folder)
        assert f"{folder / 'meta.json'}: " in message
        assert words in message
        assert len(message) < 1000


class TestMissingMeta:
    def test_asks_for_vocab_size(self, folder):
        message = refusal(folder)
        assert str(folder) in message
        assert "give --vocab_size (50257 for the BPE of GPT-2)" in message

    def test_pickle_is_not_read(self, folder):
        (folder / "meta.pkl").write_bytes(pickle.dumps(Touch(folder / "executed")))
        message = refusal(folder)
        assert "can run any code" in message
        assert f"{folder / 'meta.pkl'}: " in message
        assert not (folder / "executed").exists()

    def test_pickle_does_not_matter_if_the_size_is_given(self, folder):
        (folder / "meta.pkl").write_bytes(b"whatever")
        assert open_corpus(str(folder), vocab_size=6).vocabulary.size == 6

    def test_snippet_of_the_message_converts_the_pickle(self, folder, monkeypatch, tmp_path_factory):
        tables = {"itos": dict(enumerate(CHARACTERS)), "stoi": {c: i for i, c in enumerate(CHARACTERS)}}
        (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 6, **tables, "tokenizer": object()}))
        monkeypatch.chdir(folder)
        _, snippet = refusal(".").split("\n\n")
        monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
        exec(snippet, {})
        vocabulary = open_corpus(str(folder)).vocabulary
        assert vocabulary.decode(vocabulary.encode("a\nü😀")) == "a\nü😀"


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (type(self.path).touch, (self.path,))
