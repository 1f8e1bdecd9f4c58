"""The manifest: read to the letter as it was written, or refused with a typed error."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from neuromanifold_gpt import latest_checkpoint, list_checkpoints, load_checkpoint, verify_checkpoint
from neuromanifold_gpt.checkpoint.archive import TensorRecord
from neuromanifold_gpt.checkpoint.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    DamagedCheckpointError,
    DamagedCheckpointWarning,
)
from neuromanifold_gpt.checkpoint.manifest import FileRecord, Manifest, looks_like_manifest, read_manifest
from neuromanifold_gpt.checkpoint.naming import paths_of_name

from .small_saves import Save, found

NAME = "checkpoint-step000050"
DIGEST = "0123456789abcdef0123456789abcdef"


def manifest(**changes: Any) -> Manifest:
    content = {
        "name": NAME,
        "step": 50,
        "epoch": None,
        "pair": DIGEST,
        "files": {
            "model": FileRecord(f"{NAME}-model.pt", 1000, DIGEST),
            "optimizer": FileRecord(f"{NAME}-optimizer.pt", 2000, DIGEST),
        },
        "tensors": {
            "model": (TensorRecord("state_dict/w", "float32", (2, 3), 64, 24, DIGEST),),
            "optimizer": (TensorRecord("optimizer_states/0/m", "float32", (), 64, 4, DIGEST),),
        },
        "metrics": {"val_loss": 0.1},
        "environment": {"torch": "2.13.0", "flags": [1, None]},
        "details": {"host": "h\xf6st", "saved_at": "2026"},
    }
    return Manifest(**{**content, **changes})


def sealed(text: str) -> bytes:
    """A manifest whose digest is right, whatever it says: the text of the object without its last member."""
    return f'{text[:-2]},\n "digest": "{xxhash.xxh3_128_hexdigest(text.encode())}"\n}}\n'.encode()


def resealed(content: dict[str, Any]) -> bytes:
    """Forged: any content, with a right digest."""
    content.pop("digest", None)
    return sealed(json.dumps(content, indent=1))


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / f"{NAME}.json"
    path.write_bytes(manifest().to_bytes())
    return path


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=8,
)


class TestRoundTrip:
    @settings(max_examples=100, deadline=None)
    @given(
        step=st.integers(0, 2**62 - 1),
        epoch=st.none() | st.integers(0, 10**6),
        metrics=st.dictionaries(st.text(max_size=9), st.floats() | st.integers(), max_size=4),
        environment=st.dictionaries(st.text(max_size=9), json_values, max_size=3),
        details=st.dictionaries(st.text(max_size=9), json_values, max_size=3),
        tensor_path=st.text(max_size=20),
    )
    def test_everything_comes_back(self, step, epoch, metrics, environment, details, tensor_path, tmp_path_factory):
        path = tmp_path_factory.mktemp("manifest") / f"{NAME}.json"
        record = TensorRecord(tensor_path, "bfloat16", (1, 0), 0, 0, DIGEST)
        written = manifest(
            step=step,
            epoch=epoch,
            metrics=metrics,
            environment=environment,
            details=details,
            tensors={"model": (record, record), "optimizer": ()},
        )
        path.write_bytes(written.to_bytes())
        read = read_manifest(path)
        assert repr(read) == repr(written)  # in which nan is nan, -0.0 is not 0.0 and 1 is not 1.0
        assert read.to_bytes() == written.to_bytes()

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.0, 5e-324, 10**400, 3])
    def test_metrics_keep_their_value(self, value, path):
        path.write_bytes(manifest(metrics={"loss": value}).to_bytes())
        assert repr(read_manifest(path).metrics) == repr({"loss": value})

    def test_it_is_json_that_anybody_can_read(self, path):
        content = json.loads(path.read_text("utf-8"), parse_constant=pytest.fail)
        assert content["format"] == "neuromanifold_gpt separated checkpoint"
        assert content["model_only"] is False
        assert content["files"]["model"] == {"name": f"{NAME}-model.pt", "size_bytes": 1000, "digest": DIGEST}
        assert path.read_bytes().isascii()

    def test_a_model_only_one_says_so(self, path):
        full = manifest()
        only = manifest(files={"model": full.files["model"]}, tensors={"model": full.tensors["model"]})
        path.write_bytes(only.to_bytes())
        assert read_manifest(path).model_only
        assert json.loads(path.read_text())["model_only"] is True

    def test_the_format_has_not_changed(self):
        """A golden digest: old manifests have to stay readable to the letter."""
        assert (
            xxhash.xxh3_128_hexdigest(manifest(metrics={"a": math.nan, "b": 0.1}).to_bytes())
            == "fd51284a5818b70bdc5abee55a450b46"
        )


class TestDamage:
    """Any altered byte is refused."""

    @settings(max_examples=400, deadline=None)
    @given(data=st.data())
    def test_a_flipped_deleted_or_inserted_byte_or_a_truncation_is_refused(self, data, tmp_path_factory):
        path = tmp_path_factory.mktemp("manifest") / f"{NAME}.json"
        raw = manifest().to_bytes()
        at = data.draw(st.integers(0, len(raw) - 1), label="at")
        byte = data.draw(st.binary(min_size=1, max_size=1), label="byte")
        kind = data.draw(st.sampled_from(["set", "delete", "insert", "truncate", "double"]), label="kind")
        damaged = {
            "set": raw[:at] + byte + raw[at + 1 :],
            "delete": raw[:at] + raw[at + 1 :],
            "insert": raw[:at] + byte + raw[at:],
            "truncate": raw[:at],
            "double": raw + raw[at:],
        }[kind]
        path.write_bytes(damaged)
        if damaged == raw:
            assert read_manifest(path) == manifest()
            return
        with pytest.raises(DamagedCheckpointError, match=r"manifest is damaged: expected .*, found .*older checkpoint"):
            read_manifest(path)
        assert list_checkpoints(path.parent) == []

    def test_every_byte_is_covered(self, path):
        """One bit of each, one after the other."""
        raw = path.read_bytes()
        for at in range(len(raw)):
            damaged = bytearray(raw)
            damaged[at] ^= 1 << at % 8
            path.write_bytes(damaged)
            with pytest.raises(DamagedCheckpointError):
                read_manifest(path)

    @pytest.mark.parametrize(
        "spelling",
        [
            lambda raw: raw.replace(b"\n", b"\r\n"),
            lambda raw: raw.rstrip(),
            lambda raw: b"\xef\xbb\xbf" + raw,
            lambda raw: raw.decode().encode("utf-16"),
            lambda raw: json.dumps(json.loads(raw)).encode(),
            lambda raw: raw.replace(b"h\\u00f6st", "h\xf6st".encode()),
            lambda raw: raw.replace(b"0.1", b"0.10"),
            lambda raw: raw.replace(b" 50,", b" 5e1,"),
        ],
    )
    def test_another_spelling_of_the_same_content_is_refused(self, spelling, path):
        """An editor that changed nothing, it thinks."""
        altered = spelling(path.read_bytes())
        assert altered != path.read_bytes()
        path.write_bytes(altered)
        with pytest.raises(DamagedCheckpointError, match="manifest is damaged"):
            read_manifest(path)

    def test_no_file_and_no_readable_file_are_told_apart(self, tmp_path):
        with pytest.raises(CheckpointNotFoundError, match="no such manifest"):
            read_manifest(tmp_path / "x.json")
        (tmp_path / "x.json").mkdir()
        with pytest.raises(DamagedCheckpointError, match="not a regular file"):
            read_manifest(tmp_path / "x.json")
        assert not looks_like_manifest(tmp_path / "x.json")

    def test_a_file_too_large_to_be_one_is_not_read(self, tmp_path):
        path = tmp_path / "x.json"
        with path.open("wb") as file:
            file.write(b'{"format": "neuromanifold_gpt separated checkpoint"')
            file.truncate(1 << 40)
        with pytest.raises(DamagedCheckpointError, match="expected at most"):
            read_manifest(path)
        assert list_checkpoints(tmp_path) == []


def changed(**members: Any) -> Any:
    return lambda content: content.update(members)


def in_files(role: str, **members: Any) -> Any:
    return lambda content: content["files"][role].update(members)


def in_tensors(**members: Any) -> Any:
    return lambda content: content["tensors"]["model"][0].update(members)


FORGERIES = {
    "another format": changed(format="something else"),
    "a later version": changed(format_version=2),
    "a version that is a float": changed(format_version=1.0),
    "a version that is a bool": changed(format_version=True),
    "no step": lambda content: content.pop("step"),
    "a negative step": changed(step=-1),
    "a step that is a bool": changed(step=True),
    "a step that is a float": changed(step=50.0),
    "a step that is a string": changed(step="50"),
    "a step beyond all counting": changed(step=10**40),
    "an epoch that is a list": changed(epoch=[1]),
    "a name that is a number": changed(name=7),
    "a pair that is no digest": changed(pair="0123"),
    "a pair in capitals": changed(pair=DIGEST.upper()),
    "a pair with a line feed": changed(pair=DIGEST[:-1] + "\n"),
    "a digest with a line feed after it": changed(pair=DIGEST + "\n"),
    "files that are a list": changed(files=[]),
    "no files": changed(files={}, tensors={}),
    "an optimizer file alone": lambda content: [content[key].pop("model") for key in ("files", "tensors")],
    "a third file": lambda content: content["files"].update(third=content["files"]["model"]),
    "tensors of no file": lambda content: content["tensors"].update(third=[]),
    "no tensors of a file": lambda content: content["tensors"].pop("optimizer"),
    "a file record that is a string": lambda content: content["files"].update(model="x"),
    "a size that is negative": in_files("model", size_bytes=-1),
    "a size that is a string": in_files("model", size_bytes="1000"),
    "a digest that is null": in_files("model", digest=None),
    "a file one directory up": in_files("model", name=f"../{NAME}-model.pt"),
    "a file in a directory below": in_files("model", name=f"x/{NAME}-model.pt"),
    "an absolute path": in_files("model", name="/etc/passwd"),
    "the file of another checkpoint": in_files("model", name="checkpoint-step000060-model.pt"),
    "the optimizer file as the model": in_files("model", name=f"{NAME}-optimizer.pt"),
    "the manifest as the model": in_files("model", name=f"{NAME}.json"),
    "a file name with a null byte": in_files("model", name=f"{NAME}-model.pt\0"),
    "a file name that is a list": in_files("model", name=[f"{NAME}-model.pt"]),
    "a tensor behind the end of its file": in_tensors(offset=1000),
    "a tensor larger than its file": in_tensors(size_bytes=2**61),
    "a tensor with a negative shape": in_tensors(shape=[-1]),
    "a tensor whose shape is a number": in_tensors(shape=3),
    "a tensor whose path is null": in_tensors(path=None),
    "a tensor that is null": lambda content: content["tensors"].update(model=[None]),
    "metrics that are a list": changed(metrics=[1.0]),
    "a metric that is a bool": changed(metrics={"a": True}),
    "a metric that is a word": changed(metrics={"a": "good"}),
    "a metric that is null": changed(metrics={"a": None}),
    "a metric spelled as JSON has it not": changed(metrics={"a": "Infinity"}),
    "an environment that is null": changed(environment=None),
    "details that are a list": changed(details=[]),
    "model_only that contradicts the files": changed(model_only=True),
    "one member more": changed(extra=1),
    "a list": lambda content: None,
}


def test_a_later_version_of_the_format_is_named(path):
    """So that who reads the error knows that an update helps."""
    content = json.loads(path.read_bytes())
    path.write_bytes(resealed({**content, "format_version": 2}))
    with pytest.raises(DamagedCheckpointError, match="separated checkpoint' version 2"):
        read_manifest(path)


class TestForgery:
    """A right digest is no reason to believe the rest: xxh3 keeps nobody from writing another one."""

    def test_the_forger_of_these_tests_knows_the_format(self, path):
        """Resealed without a change, the manifest is the same: what follows is refused for what it says."""
        assert resealed(json.loads(path.read_bytes())) == path.read_bytes()

    @pytest.mark.parametrize("what", FORGERIES)
    def test_content_that_we_never_write_is_refused(self, what, path):
        content = json.loads(path.read_bytes())
        FORGERIES[what](content)
        path.write_bytes(sealed(json.dumps([content], indent=1)) if what == "a list" else resealed(content))
        with pytest.raises(DamagedCheckpointError, match="manifest is damaged"):
            read_manifest(path)

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ('"val_loss": 0.1', '"val_loss": NaN'),
            ('"val_loss": 0.1', '"val_loss": -Infinity'),
            ('"val_loss": 0.1', '"val_loss": 1e999'),
            ('"step": 50', '"step": 1e999'),
            ('"step": 50', '"step": ' + "9" * 5000),
            ('"val_loss": 0.1', '"val_loss": ' + "9" * 5000),
            ('"torch": "2.13.0"', '"torch": ' + "[" * 100_000 + "]" * 100_000),
            ('"torch": "2.13.0"', '"torch": ' + '{"a":' * 100_000 + "1" + "}" * 100_000),
            ('"step": 50', '"step": 49,\n "step": 50'),
            ('"name": "checkpoint', '"name": "x",\n "name": "checkpoint'),
        ],
        ids=lambda text: text[:30],
    )
    def test_json_that_we_never_write_is_refused(self, old, new, path):
        """Constants that are not JSON, numbers out of range, nesting without end, keys that are there twice."""
        text = path.read_text()
        text = text[: text.index(',\n "digest": "' + text[-36:-4])] + "\n}"
        assert sealed(text) == path.read_bytes()
        assert old in text
        path.write_bytes(sealed(text.replace(old, new, 1)))
        with pytest.raises(DamagedCheckpointError, match="manifest is damaged"):
            read_manifest(path)

    def test_a_checkpoint_renamed_by_hand_is_refused_with_its_old_name(self, tmp_path):
        """Its manifest names files of the old name, and no other name is followed."""
        Save(NAME, 1).write(tmp_path)
        old, new = paths_of_name(tmp_path, NAME), paths_of_name(tmp_path, "best")
        for one, other in ((old.model, new.model), (old.optimizer, new.optimizer), (old.manifest, new.manifest)):
            one.rename(other)
        with pytest.raises(DamagedCheckpointError, match=r"best\.json.*named 'checkpoint-step000050-model\.pt'"):
            load_checkpoint(new.model)
        assert list_checkpoints(tmp_path) == []

    def test_a_damaged_manifest_is_an_error_for_one_and_a_warning_for_all(self, tmp_path):
        """Asked for that checkpoint, an error; asked for the newest one, a line about it, and the one before."""
        Save("checkpoint-step000001", 1).write(tmp_path)
        path = Save("checkpoint-step000002", 2).write(tmp_path).paths.manifest
        raw = path.read_bytes()
        path.write_bytes(raw.replace(b'"step": 2', b'"step": 3'))
        for call in (load_checkpoint, verify_checkpoint):
            with pytest.raises(CheckpointError, match=r"step000002\.json: the manifest is damaged"):
                call(path)
        assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [1]
        with pytest.warns(DamagedCheckpointWarning, match="passing over checkpoint-step000002") as warned:
            assert latest_checkpoint(tmp_path).step == 1
        assert len(warned) == 1
        path.write_bytes(raw)
        assert found(tmp_path, latest_checkpoint(tmp_path).name) == Save("checkpoint-step000002", 2)
