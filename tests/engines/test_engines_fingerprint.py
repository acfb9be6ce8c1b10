"""Fingerprints: what makes a model another model, what does not, and a cache that is never trusted too far."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from pytest_quant.engines import fingerprint as room
from pytest_quant.engines.fingerprint import fingerprint
from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import UsageError


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 16)
    (folder / "config.json").write_text('{"hidden_size": 64}')
    (folder / "tokenizer.json").write_text('{"vocab": {}}')
    (folder / "merges.txt").write_text("a b\n")
    (folder / "tokenizer.model").write_bytes(b"\x00\x01")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "README.md").write_text("# A model\n")
    (folder / "generation_config.json").write_text("{}")
    return folder


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def fresh(tmp_path):
    """The fingerprint that a machine without any cache would find."""
    numbers = iter(range(1000))
    return lambda folder: fingerprint(ModelSource(str(folder)), tmp_path / f"fresh-{next(numbers)}")


def flip(file: Path, position: int = -1) -> None:
    """Change one byte, and let the clock be seen to tick, however coarse the file system's is."""
    before = file.stat()
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000_000))


def test_it_is_a_short_sha256(model, cache):
    assert re.fullmatch(r"sha256:[0-9a-f]{32}", fingerprint(ModelSource(str(model)), cache))


def test_it_is_that_of_names_and_contents(model, fresh):
    """Computed as documented, without the code: name, zero byte, sha256 of the content, newline; sorted by name."""
    import hashlib

    names = [
        "chat_template.jinja",
        "config.json",
        "merges.txt",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer.model",
    ]
    lines = b"".join(f"{name}\0{hashlib.sha256((model / name).read_bytes()).hexdigest()}\n".encode() for name in names)
    assert fresh(model) == f"sha256:{hashlib.sha256(lines).hexdigest()[:32]}"


def test_the_same_twice_and_from_the_cache(model, cache, fresh, monkeypatch):
    first = fingerprint(ModelSource(str(model)), cache)
    assert fresh(model) == first

    def read_again(file: Path) -> str:
        raise AssertionError(f"{file.name} was read again")

    monkeypatch.setattr(room, "_sha256", read_again)
    assert fingerprint(ModelSource(str(model)), cache) == first


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "tokenizer.json", "merges.txt", "tokenizer.model", "chat_template.jinja"],
)
@pytest.mark.parametrize("position", [0, -1])
def test_one_byte_makes_another_model(model, cache, name, position):
    before = fingerprint(ModelSource(str(model)), cache)
    flip(model / name, position)
    assert fingerprint(ModelSource(str(model)), cache) != before
    flip(model / name, position)
    assert fingerprint(ModelSource(str(model)), cache) == before


def test_one_byte_beyond_the_first_chunk(model, fresh, monkeypatch):
    monkeypatch.setattr(room, "_CHUNK", 16)
    before = fresh(model)
    flip(model / "model.safetensors", 1000)
    assert fresh(model) != before


def test_the_size_of_chunks_plays_no_part(model, fresh, monkeypatch):
    before = fresh(model)
    monkeypatch.setattr(room, "_CHUNK", 7)
    assert fresh(model) == before


def test_another_checkpoint_of_the_same_size_and_time(model, cache, fresh):
    """Checkpoints of one shape have one size, and archives and images often give every file the same time."""
    weights = model / "model.safetensors"
    before, status = fingerprint(ModelSource(str(model)), cache), weights.stat()
    data = bytearray(weights.read_bytes())
    data[100] ^= 1
    other = model.parent / "other.safetensors"
    other.write_bytes(data)
    other.replace(weights)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fresh(model) != before
    assert fingerprint(ModelSource(str(model)), cache) == fresh(model)


@pytest.mark.parametrize(
    "name", ["README.md", "README.txt", "generation_config.json", ".gitattributes", ".hidden.json"]
)
def test_what_stands_beside_makes_no_other_model(model, fresh, name):
    before = fresh(model)
    (model / name).write_text("changed")
    assert fresh(model) == before


def test_another_file_name_is_another_model(model, fresh):
    before = fresh(model)
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    assert fresh(model) != before


def test_a_file_more_or_less_is_another_model(model, fresh):
    before = fresh(model)
    (model / "added_tokens.json").write_text("{}")
    more = fresh(model)
    (model / "added_tokens.json").unlink()
    assert fresh(model) == before
    (model / "merges.txt").unlink()
    assert len({before, more, fresh(model)}) == 3


def test_two_files_that_swap_their_contents_are_another_model(model, fresh):
    before = fresh(model)
    one, other = (model / "config.json").read_bytes(), (model / "tokenizer.json").read_bytes()
    (model / "config.json").write_bytes(other)
    (model / "tokenizer.json").write_bytes(one)
    assert fresh(model) != before


def test_a_folder_with_a_files_name_is_no_crash(model, fresh):
    before = fresh(model)
    (model / "original.model").mkdir()
    assert fresh(model) == before


def test_moving_the_folder_changes_nothing(model, cache):
    before = fingerprint(ModelSource(str(model)), cache)
    moved = model.parent / "elsewhere" / "renamed"
    moved.parent.mkdir()
    shutil.move(model, moved)
    assert fingerprint(ModelSource(str(moved)), cache) == before


def test_a_copy_and_a_link_are_the_same_model(model, cache):
    before = fingerprint(ModelSource(str(model)), cache)
    copy, link = model.parent / "copy", model.parent / "link"
    shutil.copytree(model, copy)
    link.symlink_to(model, target_is_directory=True)
    assert fingerprint(ModelSource(str(copy)), cache) == before
    assert fingerprint(ModelSource(str(link)), cache) == before


def test_a_cache_is_shared_by_models_and_keeps_both(model, cache):
    other = model.parent / "other"
    shutil.copytree(model, other)
    flip(other / "model.safetensors")
    one = fingerprint(ModelSource(str(model)), cache)
    two = fingerprint(ModelSource(str(other)), cache)
    assert one != two
    assert len(json.loads((cache / "fingerprints.json").read_text())) == 12
    assert fingerprint(ModelSource(str(model)), cache) == one
    assert [file.name for file in cache.iterdir()] == ["fingerprints.json"]


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b"null", b"7", b'"text"', b"\xff\xfe\x00", b'{"a": 1}', b"[" * 100_000],
    ids=["empty", "cut", "list", "null", "number", "text", "no utf-8", "other", "deep"],
)
def test_a_damaged_cache_is_ignored_and_replaced(model, cache, damage):
    before = fingerprint(ModelSource(str(model)), cache)
    good = json.loads((cache / "fingerprints.json").read_text())
    (cache / "fingerprints.json").write_bytes(damage)
    assert fingerprint(ModelSource(str(model)), cache) == before
    again = json.loads((cache / "fingerprints.json").read_text())
    assert {key: again[key] for key in good} == good


@pytest.mark.parametrize("value", [None, 5, "", "abc", ["x"], "g" * 64])
def test_a_cached_hash_that_is_none_is_not_believed(model, cache, value):
    before = fingerprint(ModelSource(str(model)), cache)
    index = cache / "fingerprints.json"
    index.write_text(json.dumps(dict.fromkeys(json.loads(index.read_text()), value)))
    assert fingerprint(ModelSource(str(model)), cache) == before


def test_a_cache_folder_that_cannot_be_made_is_ignored(model, tmp_path, fresh):
    (tmp_path / "file").write_text("in the way")
    assert fingerprint(ModelSource(str(model)), tmp_path / "file") == fresh(model)
    assert fingerprint(ModelSource(str(model)), tmp_path / "file" / "below") == fresh(model)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_cache_that_cannot_be_written_is_ignored(model, cache, fresh):
    (cache / "fingerprints.json").mkdir(parents=True)
    assert fingerprint(ModelSource(str(model)), cache) == fresh(model)


@pytest.mark.parametrize("name", ["nobody/no-such-model", "./models/typo", "a b"])
def test_a_model_that_is_not_there_says_what_to_do(name, cache, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        fingerprint(ModelSource(name), cache)
    message = str(caught.value)
    assert f"the model {name!r} cannot be opened" in message
    assert "give the path of a folder with config.json and *.safetensors" in message
    assert "\n" not in message


def test_no_name_is_not_the_current_folder(cache, model, monkeypatch):
    monkeypatch.chdir(model)
    with pytest.raises(UsageError):
        fingerprint(ModelSource(""), cache)


COMMIT = "12fd25f77366fa6b3b4b768ec3050bf629380bac"


@pytest.mark.parametrize(
    "hub", ["/home/user/.cache/huggingface/hub", "/data/snapshots/hub"], ids=["usual", "below another snapshots"]
)
def test_a_hub_model_is_its_commit(cache, monkeypatch, hub):
    utils = pytest.importorskip("transformers.utils")
    path = f"{hub}/models--org--name/snapshots/{COMMIT}/config.json"
    asked = []

    def cached_file(name: str, filename: str, revision: str | None = None, **_) -> str:
        asked.append((name, filename, revision))
        return path

    monkeypatch.setattr(utils, "cached_file", cached_file)
    assert fingerprint(ModelSource("org/name", revision="main"), cache) == f"org/name@{COMMIT}"
    assert asked == [("org/name", "config.json", "main")]


@pytest.mark.parametrize("error", [OSError(), OSError("line one\nline two")])
def test_whatever_the_hub_says_becomes_one_sentence(cache, monkeypatch, error):
    utils = pytest.importorskip("transformers.utils")

    def cached_file(*_, **__) -> str:
        raise error

    monkeypatch.setattr(utils, "cached_file", cached_file)
    with pytest.raises(UsageError, match="cannot be opened"):
        fingerprint(ModelSource("org/name"), cache)


def test_one_weight_of_a_real_file(tiny_llama, tmp_path, fresh):
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(tiny_llama, copy)
    assert fresh(copy) == fresh(tiny_llama)
    weights = load_file(copy / "model.safetensors")
    name = next(name for name in weights if name.endswith("down_proj.weight"))
    weights[name][0, 0] += 1e-3
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert fresh(copy) != fresh(tiny_llama)
