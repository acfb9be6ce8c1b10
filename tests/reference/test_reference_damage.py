"""Whatever is wrong with a file is found before it is believed."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_examples import key, reference, same
from safetensors.numpy import load, save

from pytest_quant.reference import DamagedError, Store, StoreError
from pytest_quant.reference.codec import _hash, _metadata, decode, encode

CONTENT = encode(reference())


def forged(change_tensors=None, change_metadata=None, *, rehash: bool = True) -> bytes:
    """A file whose hash is right although its content is not."""
    tensors, metadata = load(CONTENT), _metadata(CONTENT)
    (change_tensors or (lambda tensors: None))(tensors)
    (change_metadata or (lambda metadata: None))(metadata)
    if rehash and "sha256" in metadata:
        metadata.pop("sha256")
        metadata["sha256"] = _hash(tensors, metadata)
    return save({name: np.ascontiguousarray(array) for name, array in tensors.items()}, metadata)


def changed(name, change):
    def apply(tensors):
        tensors[name] = change(tensors[name].copy())

    return apply


def with_item(position, value):
    def change(array):
        array[position] = value
        return array

    return change


def test_the_forger_alone_changes_nothing() -> None:
    assert same(decode(forged(), "x"), reference())


def test_every_truncation_is_found() -> None:
    for length in range(len(CONTENT)):
        with pytest.raises(DamagedError):
            decode(CONTENT[:length], "x")


def test_every_changed_byte_is_found() -> None:
    random = np.random.default_rng(0)
    for position in range(len(CONTENT)):
        flipped = bytearray(CONTENT)
        flipped[position] ^= int(random.integers(1, 256))
        with pytest.raises(StoreError):
            decode(bytes(flipped), "x")


@given(st.integers(0, len(CONTENT) - 1), st.integers(0, 255))
@settings(deadline=None, max_examples=300)
def test_every_other_byte_is_found(position, value) -> None:
    other = bytearray(CONTENT)
    if other[position] != value:
        other[position] = value
        with pytest.raises(StoreError):
            decode(bytes(other), "x")


def test_padding_that_is_still_json_is_found() -> None:
    length = int.from_bytes(CONTENT[:8], "little")
    for white in b"\t\n\r":
        text = CONTENT[8 : 8 + length].rstrip(b" ")
        padded = text + bytes([white]) + b" " * 7
        with pytest.raises(DamagedError, match="compact JSON"):
            decode(len(padded).to_bytes(8, "little") + padded + CONTENT[8 + length :], "x")


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_random_bytes_are_no_reference(content) -> None:
    with pytest.raises(DamagedError):
        decode(content, "x")


@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
@settings(deadline=None)
def test_any_json_header_is_no_reference(header) -> None:
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    with pytest.raises(DamagedError):
        decode(len(text).to_bytes(8, "little") + text, "x")


@pytest.mark.parametrize("text", [b"[" * 100_000, b"9" * 10_000, b'{"__metadata__":{"a":1}}', b'{"a":1,"a":1}'])
def test_a_hostile_header_is_no_reference(text) -> None:
    with pytest.raises(DamagedError):
        decode(len(text).to_bytes(8, "little") + text, "x")


def test_a_header_of_more_than_the_file_is_no_reference() -> None:
    with pytest.raises(DamagedError, match="truncated"):
        decode((2**63).to_bytes(8, "little") + b"{}", "x")


def test_another_safetensors_file_is_no_reference() -> None:
    for content in (save({"a": np.zeros(3)}), save({"a": np.zeros(3)}, {"format": "pt"})):
        with pytest.raises(DamagedError, match="no stored reference"):
            decode(content, "x")


def test_a_newer_version_is_not_called_damaged() -> None:
    with pytest.raises(StoreError, match=r"model\.safetensors: .*version 2.*Upgrade") as caught:
        decode(forged(None, lambda metadata: metadata.update(pytest_quant_reference="2")), "model.safetensors")
    assert not isinstance(caught.value, DamagedError)


@pytest.mark.parametrize("version", ["0", "", "x", "²", "9" * 100])
def test_a_version_that_is_none_is_damage(version) -> None:
    with pytest.raises(DamagedError, match="version"):
        decode(forged(None, lambda metadata: metadata.update(pytest_quant_reference=version)), "x")


BAD_TENSORS = {
    "an extra tensor": lambda tensors: tensors.update(extra=np.zeros(1)),
    "a missing tensor": lambda tensors: tensors.pop("nll"),
    "NaN in nll": changed("nll", with_item(0, np.nan)),
    "infinity in nll": changed("nll", with_item(0, np.inf)),
    "NaN in log-probabilities": changed("top_log_probs", with_item((0, 0), np.nan)),
    "infinity in log-probabilities": changed("top_log_probs", with_item((0, 2), -np.inf)),
    "NaN in the rest": changed("rest_log_mass", with_item(3, np.nan)),
    "infinity in the rest": changed("rest_log_mass", with_item(3, -np.inf)),
    "negative nll": changed("nll", with_item(0, -1.0)),
    "rising log-probabilities": changed("top_log_probs", lambda array: array[:, ::-1]),
    "a probability above one": changed("top_log_probs", with_item((0, 0), 1.0)),
    "too little mass": changed("rest_log_mass", with_item(0, -9.0)),
    "doubles": changed("nll", lambda array: array.astype(np.float64)),
    "signed ids": changed("top_ids", lambda array: array.astype(np.int32)),
    "flat ids": changed("top_ids", lambda array: array.reshape(-1)),
    "fewer tokens": changed("nll", lambda array: array[:-1]),
    "fewer top tokens": changed("top_ids", lambda array: array[:, :-1]),
    "a scalar": changed("nll", lambda array: np.float32(1.0)),
    "no windows": changed("lengths", lambda array: array[:0]),
    "lengths of fewer tokens": changed("lengths", with_item(0, 1)),
    "an empty window": changed("lengths", lambda array: np.append(array, 0)),
    "a negative length": changed("lengths", lambda array: np.append(array, [-2, 2])),
    "lengths that wrap around": changed("lengths", lambda array: np.append(array, [2**62] * 4)),
}
BAD_METADATA = {
    "an extra key": lambda metadata: metadata.update(origin="imported"),
    "no hash": lambda metadata: metadata.pop("sha256"),
    "no key": lambda metadata: metadata.pop("key"),
    "a key that is no JSON": lambda metadata: metadata.update(key="{"),
    "a key that is a list": lambda metadata: metadata.update(key="[]"),
    "a key without its parts": lambda metadata: metadata.update(key='{"model":"m"}'),
    "a key of other types": lambda metadata: metadata.update(key='{"dtype":1,"engine":"e","model":"m","protocol":{}}'),
    "a key with a subset": lambda metadata: metadata.update(
        key='{"dtype":"d","engine":"e","model":"m","protocol":{"subset":{"windows":4}}}'
    ),
    "a key that is not canonical": lambda metadata: metadata.update(key=metadata["key"] + " "),
    "notes that are no JSON": lambda metadata: metadata.update(recorded="NaN"),
    "notes with NaN": lambda metadata: metadata.update(recorded='{"a":NaN}'),
    "notes nested too deep": lambda metadata: metadata.update(recorded='{"a":' + "[" * 90_000 + "}"),
    "another K": lambda metadata: metadata.update(top_k="2"),
    "a K of none": lambda metadata: metadata.update(top_k="x"),
    "a negative K": lambda metadata: metadata.update(top_k="-3"),
    "more windows than the protocol": lambda metadata: metadata.update(total="3"),
    "an endless total": lambda metadata: metadata.update(total="9" * 5000),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_tensors_are_checked_even_under_a_right_hash(name) -> None:
    with pytest.raises(DamagedError, match=r"^here\.safetensors: is damaged: .*\.$"):
        decode(forged(BAD_TENSORS[name]), "here.safetensors")


@pytest.mark.parametrize("name", BAD_METADATA)
def test_metadata_are_checked_even_under_a_right_hash(name) -> None:
    with pytest.raises(DamagedError, match=r"^here\.safetensors: is damaged: .*\.$"):
        decode(forged(None, BAD_METADATA[name]), "here.safetensors")


@pytest.mark.parametrize("change", [lambda m: m.update(total="41"), lambda m: m.update(recorded="{}")])
def test_metadata_are_part_of_the_hash(change) -> None:
    with pytest.raises(DamagedError, match="SHA-256"):
        decode(forged(None, change, rehash=False), "x")


@pytest.mark.parametrize("name", ["nll", "top_log_probs"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_written(tmp_path, name, value) -> None:
    good = reference()
    bad = replace(
        good, windows=replace(good.windows, **{name: with_item(0, value)(getattr(good.windows, name).copy())})
    )
    with pytest.raises(StoreError, match=f"fingerprint: it holds NaN or infinity in {name}"):
        Store(tmp_path).write(bad)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [{"total": 3}, {"top_k": 2}, {"recorded": {"a": object()}}])
def test_what_could_not_be_read_back_is_not_written(tmp_path, change) -> None:
    with pytest.raises(StoreError, match="Nothing was written"):
        Store(tmp_path).write(replace(reference(), **change))
    assert list(tmp_path.iterdir()) == []


# in its place on disk


def in_place(tmp_path, content: bytes):
    store = Store(tmp_path)
    path = store.path(key().digest)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return store, path


@pytest.mark.parametrize("content", [b"", b"x", CONTENT[:-1], CONTENT + b"x", b"{}", save({"a": np.zeros(3)})])
def test_a_damaged_file_is_an_error_with_a_remedy_and_is_replaced_by_writing(tmp_path, content) -> None:
    store, path = in_place(tmp_path, content)
    with pytest.raises(DamagedError, match=r"is damaged.*reference verify --delete.*built anew") as caught:
        store.read(key())
    assert str(path) in str(caught.value)
    store.write(reference(1))
    assert same(store.read(key()), reference(1))


def test_a_renamed_file_is_refused(tmp_path) -> None:
    store, _ = in_place(tmp_path, encode(reference(of=key(dtype="fp32"))))
    with pytest.raises(DamagedError, match="was renamed"):
        store.read(key())
    store.write(reference(2))
    assert same(store.read(key()), reference(2))


def test_a_newer_file_is_left_alone(tmp_path) -> None:
    content = forged(None, lambda metadata: metadata.update(pytest_quant_reference="2"))
    store, path = in_place(tmp_path, content)
    for ask in (lambda: store.read(key()), lambda: store.write(reference())):
        with pytest.raises(StoreError, match="Upgrade"):
            ask()
    (entry,) = store.entries()
    assert entry.damage
    assert not store.remove_damaged(entry)
    assert path.read_bytes() == content


def test_a_folder_in_its_place_is_left_alone(tmp_path) -> None:
    store = Store(tmp_path)
    path = store.path(key().digest)
    path.mkdir(parents=True)
    for ask in (lambda: store.read(key()), lambda: store.write(reference())):
        with pytest.raises(StoreError, match="not a regular file"):
            ask()
    (entry,) = store.entries()
    assert "not a regular file" in (entry.damage or "")
    assert not store.remove_damaged(entry)
    assert path.is_dir()


def test_a_symbolic_link_is_read_and_replaced_and_its_target_stays(tmp_path) -> None:
    elsewhere = tmp_path / "elsewhere.safetensors"
    content = encode(reference(2))
    elsewhere.write_bytes(content)
    store = Store(tmp_path / "cache")
    path = store.path(key().digest)
    path.parent.mkdir(parents=True)
    path.symlink_to(elsewhere)
    assert same(store.read(key()), reference(2))
    store.write(reference(3))
    assert not path.is_symlink()
    assert same(store.read(key()), reference(3))
    assert elsewhere.read_bytes() == content


def test_a_link_to_nothing_is_no_file(tmp_path) -> None:
    store = Store(tmp_path)
    path = store.path(key().digest)
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "nowhere")
    assert store.read(key()) is None
    assert "link to nothing" in (store.entries()[0].damage or "")
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(StoreError, match="cannot be read"):
        store.read(key())
