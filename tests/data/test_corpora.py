"""Opening a corpus by name: the standard library, text files, folders of text, and what is none of these."""

import os
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuromanifold_gpt.data.corpora import open_corpus
from neuromanifold_gpt.data.errors import DatasetError
from neuromanifold_gpt.data.text_files import TEXT_SUFFIXES, is_validation


def write_tree(root, tree):
    for relative, content in tree.items():
        path = Path(root, relative)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def refusal(dataset, **options):
    with pytest.raises(DatasetError) as error:
        open_corpus(str(dataset), **options)
    return str(error.value)


@pytest.fixture(scope="module")
def stdlib_cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def stdlib(stdlib_cache_dir):
    return open_corpus("stdlib", cache_dir=stdlib_cache_dir)


class TestStdlib:
    def test_is_megabytes_of_bytes_with_some_for_validation(self, stdlib):
        assert stdlib.name == "stdlib"
        assert stdlib.train.dtype == stdlib.validation.dtype == np.uint8
        assert stdlib.vocabulary.size == 256
        assert len(stdlib.train) > 5_000_000
        assert 0.02 < len(stdlib.validation) / len(stdlib.train) < 0.2

    def test_has_every_file_on_its_side_and_no_test(self, stdlib):
        root = Path(sysconfig.get_path("stdlib"))
        skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
        relatives = [
            path.relative_to(root).as_posix()
            for path in root.rglob("*.py")
            if not skipped & set(path.relative_to(root).parts) and path.is_file() and not path.is_symlink()
        ]
        sides = {False: [], True: []}
        for relative in sorted(relatives):
            sides[is_validation(relative)].append((root / relative).read_bytes())
        assert bytes(stdlib.train) == b"\n".join(filter(None, sides[False]))
        assert bytes(stdlib.validation) == b"\n".join(filter(None, sides[True]))

    def test_second_opening_reads_the_same_cache_file(self, stdlib, stdlib_cache_dir):
        (path,) = stdlib_cache_dir.iterdir()
        before = path.stat()
        again = open_corpus("stdlib", cache_dir=stdlib_cache_dir)
        assert again.digest == stdlib.digest
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        assert Path(again.train.filename) == path

    def test_decodes_to_python_source(self, stdlib):
        text = stdlib.vocabulary.decode(stdlib.train[:20_000].tolist())
        assert "import" in text


class TestTextFile:
    def test_last_tenth_is_for_validation(self, tmp_path):
        path = tmp_path / "text.txt"
        path.write_bytes(bytes(range(32, 127)) * 4)
        corpus = open_corpus(str(path))
        assert len(corpus.validation) == 38
        assert bytes(corpus.train) + bytes(corpus.validation) == path.read_bytes()

    def test_is_mapped_where_it_lies_and_cannot_be_written(self, tmp_path):
        path = tmp_path / "text.txt"
        path.write_bytes(b"some text\n")
        corpus = open_corpus(str(path), cache_dir=tmp_path / "cache")
        for tokens in (corpus.train, corpus.validation):
            assert isinstance(tokens, np.memmap)
            assert Path(tokens.filename) == path
            with pytest.raises(ValueError, match="read-only"):
                tokens[0] = 0
        assert not (tmp_path / "cache").exists()

    @pytest.mark.parametrize("size", [2, 3, 9, 10, 11, 19, 20])
    def test_small_files_have_something_on_both_sides(self, tmp_path, size):
        path = tmp_path / "text.txt"
        path.write_bytes(b"x" * size)
        corpus = open_corpus(str(path))
        assert len(corpus.train) + len(corpus.validation) == size
        assert len(corpus.validation) == max(1, size // 10)

    @pytest.mark.parametrize("size", [0, 1])
    def test_too_short_is_refused(self, tmp_path, size):
        path = tmp_path / "text.txt"
        path.write_bytes(b"x" * size)
        message = refusal(path)
        assert str(path) in message
        assert f"at least 2 bytes of text, found {size}" in message

    def test_home_directory_may_be_written_as_tilde(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "text.txt").write_bytes(b"some text\n")
        assert len(open_corpus("~/text.txt").train) == 9

    @settings(max_examples=40, deadline=None)
    @given(content=st.binary(min_size=2, max_size=300).filter(lambda b: b"\x00" not in b), data=st.data())
    def test_digest_changes_with_any_byte(self, tmp_path_factory, content, data):
        path = tmp_path_factory.mktemp("digest") / "text"
        path.write_bytes(b"~" + content)  # the first byte keeps formats other than text away
        before = open_corpus(str(path))
        changed = bytearray(path.read_bytes())
        position = data.draw(st.integers(1, len(content)), label="position")
        changed[position] = data.draw(st.integers(1, 255).filter(lambda b: b != changed[position]), label="byte")
        path.write_bytes(changed)
        assert open_corpus(str(path)).digest != before.digest

    def test_digest_depends_on_content_not_on_place(self, tmp_path):
        tree = write_tree(tmp_path, {"a/one.txt": b"some text\n", "b/two.md": b"some text\n", "c": b"some text"})
        one, two, shorter = (open_corpus(str(tree / name)).digest for name in ("a/one.txt", "b/two.md", "c"))
        assert one == two != shorter

    def test_digest_tells_where_the_split_is_and_how_large_the_vocabulary(self, tmp_path):
        tree = write_tree(tmp_path, {"text": b"a" * 20, "folder/train.bin": b"a" * 18, "folder/val.bin": b"a" * 2})
        digests = [
            open_corpus(str(tree / "text")).digest,
            open_corpus(str(tree / "text"), vocab_size=257).digest,
            open_corpus(str(tree / "folder"), vocab_size=50257).digest,
        ]
        write_tree(tmp_path, {"folder/train.bin": b"a" * 16, "folder/val.bin": b"a" * 4})
        digests.append(open_corpus(str(tree / "folder"), vocab_size=50257).digest)
        assert len(set(digests)) == 4

    def test_large_file_is_digested_to_its_last_byte(self, tmp_path):
        path = tmp_path / "text"
        path.write_bytes(b"x" * 11_000_000)  # several chunks
        before = open_corpus(str(path)).digest
        for position in (0, 4_194_304, 9_899_999, 9_900_000, 10_999_999):
            with path.open("r+b") as file:
                file.seek(position)
                file.write(b"y")
            assert open_corpus(str(path)).digest != before, position
            with path.open("r+b") as file:
                file.seek(position)
                file.write(b"x")
        assert open_corpus(str(path)).digest == before


class TestWhatIsNotText:
    def test_checkpoints_are_refused_by_content(self, tmp_path):
        path = tmp_path / "notes.txt"
        torch.save({"weight": torch.ones(3)}, path)
        assert "zip archive, such as torch.save writes" in refusal(path)
        torch.save({"weight": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
        assert "found a pickle" in refusal(path)

    @pytest.mark.parametrize("suffix", [".pt", ".pkl", ".ckpt", ".zip"])
    def test_text_is_taken_whatever_its_name(self, tmp_path, suffix):
        path = tmp_path / f"text{suffix}"
        path.write_bytes(b"some text\n")
        assert len(open_corpus(str(path)).train) == 9

    def test_nul_bytes_are_refused_with_their_place_and_a_remedy(self, tmp_path):
        path = tmp_path / "train.bin"
        path.write_bytes(np.arange(1, 400, dtype=np.uint16).tobytes())
        message = refusal(path)
        assert str(path) in message
        assert "NUL at byte 1)" in message
        assert "give the folder that it is in" in message


TREE = {f"part{i % 3}/file{i:02}.md": f"text number {i}\n".encode() * (i + 1) for i in range(30)}


class TestFolder:
    def test_each_file_is_whole_on_its_side_in_the_order_of_paths(self, tmp_path):
        corpus = open_corpus(str(write_tree(tmp_path / "text", TREE)), cache_dir=tmp_path / "cache")
        sides = {False: [], True: []}
        for relative in sorted(TREE):
            sides[is_validation(relative)].append(TREE[relative])
        assert sides[True]
        assert bytes(corpus.train) == b"\n".join(sides[False])
        assert bytes(corpus.validation) == b"\n".join(sides[True])

    def test_digest_does_not_depend_on_place_or_time(self, tmp_path):
        one = open_corpus(str(write_tree(tmp_path / "one", TREE)), cache_dir=tmp_path / "cache")
        write_tree(tmp_path / "two", dict(reversed(TREE.items())))
        for path in (tmp_path / "two").rglob("*.md"):
            os.utime(path, (1, 1))
        two = open_corpus(str(tmp_path / "two"), cache_dir=tmp_path / "cache")
        assert one.digest == two.digest
        assert len(list((tmp_path / "cache").iterdir())) == 1

    @pytest.mark.parametrize("names", [["a.txt"], ["a.txt", "b.txt"]])
    def test_files_all_on_one_side_are_split_like_one_file(self, tmp_path, names):
        assert not any(is_validation(name) for name in names)
        tree = write_tree(tmp_path / "text", dict.fromkeys(names, b"0123456789"))
        corpus = open_corpus(str(tree), cache_dir=tmp_path / "cache")
        joined = b"\n".join([b"0123456789"] * len(names))
        assert bytes(corpus.train) + bytes(corpus.validation) == joined
        assert len(corpus.validation) == len(joined) // 10

    def test_takes_the_documented_suffixes_in_any_case_and_depth(self, tmp_path):
        wanted = {f"deep/er/f{suffix}": suffix.encode() for suffix in TEXT_SUFFIXES} | {"UPPER.TXT": b"upper"}
        unwanted = {"image.png": b"no", "no_suffix": b"no", ".hidden.txt": b"no", ".git/config.txt": b"no"}
        tree = write_tree(tmp_path / "text", wanted | unwanted | {"empty.txt": b""})
        corpus = open_corpus(str(tree), cache_dir=tmp_path / "cache")
        found = (bytes(corpus.train) + b"\n" + bytes(corpus.validation)).split(b"\n")
        assert sorted(found) == sorted(wanted.values())

    def test_links_are_not_followed(self, tmp_path):
        write_tree(tmp_path, {"secret/a.txt": b"secret", "text/a.txt": b"0123456789"})
        (tmp_path / "text/b.txt").symlink_to(tmp_path / "secret/a.txt")
        (tmp_path / "text/c.txt").symlink_to("a.txt")
        (tmp_path / "text/d").symlink_to(tmp_path / "secret")
        (tmp_path / "text/e").symlink_to(".")
        (tmp_path / "link").symlink_to("text")
        corpus = open_corpus(str(tmp_path / "link"), cache_dir=tmp_path / "cache")
        assert bytes(corpus.train) + bytes(corpus.validation) == b"0123456789"

    def test_without_text_lists_what_is_there(self, tmp_path):
        write_tree(tmp_path, {"a.png": b"x", "b.png": b"x", "c.pt": b"x", "no": b"x", "d.txt": b"", ".e.txt": b"x"})
        (tmp_path / "f.txt").symlink_to("a.png")
        message = refusal(tmp_path)
        assert str(tmp_path) in message
        for words in ("2 .png", "1 .pt", "1 without suffix", "1 empty", "1 hidden", "1 linked", ".md"):
            assert words in message, words

    def test_empty_folder_is_refused(self, tmp_path):
        assert "found no files at all" in refusal(tmp_path)

    def test_one_byte_is_too_short(self, tmp_path):
        assert "at least 2 bytes of text, found 1" in refusal(write_tree(tmp_path, {"a.txt": b"x"}))

    def test_file_that_cannot_be_read_is_named(self, tmp_path, monkeypatch):
        # The superuser may read everything, so that permissions cannot be tested by setting them.
        tree = write_tree(tmp_path / "text", TREE)
        real_open = Path.open

        def refuse(path, *args, **kwargs):
            if path.name == "file07.md":
                raise PermissionError(13, "Permission denied", str(path))
            return real_open(path, *args, **kwargs)

        monkeypatch.setattr(Path, "open", refuse)
        message = refusal(tree, cache_dir=tmp_path / "cache")
        assert "file07.md: cannot be read (Permission denied)" in message

    def test_folder_that_cannot_be_read_is_named(self, tmp_path, monkeypatch):
        tree = write_tree(tmp_path / "text", TREE)
        real_scandir = os.scandir

        def refuse(path):
            if str(path).endswith("part1"):
                raise PermissionError(13, "Permission denied", str(path))
            return real_scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
        message = refusal(tree, cache_dir=tmp_path / "cache")
        assert "part1: " in message
        assert "Permission denied" in message

    @given(names=st.sets(st.text(min_size=1), min_size=1), other=st.text(min_size=1))
    def test_about_one_path_in_ten_is_for_validation(self, names, other):
        sides = {name: is_validation(name) for name in names}
        is_validation(other)
        assert {name: is_validation(name) for name in names} == sides
        share = sum(is_validation(f"{other}/{i}.py") for i in range(2000)) / 2000
        assert 0.06 < share < 0.14

    def test_split_of_known_paths_never_changes(self):
        # A corpus must not change with the version of this package.
        assert [i for i in range(60) if is_validation(f"folder/file{i}.py")] == [0, 6, 11, 21, 32, 34]
        assert isinstance(is_validation("\udcff.py"), bool)  # a file name that is not UTF-8

    @settings(max_examples=25, deadline=None)
    @given(data=st.data())
    def test_side_of_a_file_depends_on_its_path_only(self, tmp_path_factory, data):
        numbers = data.draw(st.sets(st.integers(0, 59), min_size=2), label="files")
        root = tmp_path_factory.mktemp("split")
        tree = write_tree(root / "text", {f"{i}.txt": b"<%d>" % i for i in numbers})
        corpus = open_corpus(str(tree), cache_dir=root / "cache")
        expected = {i for i in numbers if is_validation(f"{i}.txt")}
        if 0 < len(expected) < len(numbers):
            found = {int(item.strip(b"<>")) for item in bytes(corpus.validation).split(b"\n")}
            assert found == expected


class TestVocabSize:
    def test_bytes_may_have_a_padded_vocabulary(self, tmp_path):
        path = write_tree(tmp_path, {"text": b"some text\n"}) / "text"
        assert open_corpus(str(path)).vocabulary.size == 256
        assert open_corpus(str(path), vocab_size=256).vocabulary.size == 256
        assert open_corpus(str(path), vocab_size=320).vocabulary.size == 320

    @pytest.mark.parametrize("vocab_size", [1, 255])
    def test_bytes_need_256(self, tmp_path, vocab_size):
        path = write_tree(tmp_path, {"text": b"some text\n"}) / "text"
        assert f"at least 256, because the corpus is made of bytes, found {vocab_size}" in refusal(
            path, vocab_size=vocab_size
        )

    @pytest.mark.parametrize("vocab_size", [0, -1, True, 300.0])
    def test_must_be_a_positive_integer(self, tmp_path, vocab_size):
        path = write_tree(tmp_path, {"text": b"some text\n"}) / "text"
        assert f"vocab_size: expected an integer of at least 1, found {vocab_size!r}" in refusal(
            path, vocab_size=vocab_size
        )


class TestNames:
    @pytest.mark.parametrize("name", ["shakespeare", "", "~no_such_user/x", "a\0b", "x" * 5000])
    def test_unknown_name_says_what_there_is(self, tmp_path, monkeypatch, name):
        monkeypatch.chdir(tmp_path)
        message = refusal(name)
        assert repr(name) in message
        assert "'stdlib', a text file, a folder of text, or a nanoGPT folder" in message

    def test_pipe_is_refused_without_waiting_for_it(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        assert "found a pipe, socket or device" in refusal(tmp_path / "pipe")
        assert "found a pipe, socket or device" in refusal("/dev/zero")

    def test_folder_named_stdlib_is_reached_by_its_path(self, tmp_path, monkeypatch):
        monkeypatch.chdir(write_tree(tmp_path, {"stdlib/a.txt": b"0123456789"}))
        corpus = open_corpus("./stdlib", cache_dir=tmp_path / "cache")
        assert bytes(corpus.train) == b"012345678"
