"""A stored reference as the bytes of a safetensors file, and back.

The tensors are those of :class:`Windows`. The metadata are a format version, the key and the notes for people in
canonical JSON, `total`, `top_k`, and a SHA-256 over all of this and every tensor with its name, type and shape. No
single wrong byte goes unnoticed: what the hash does not cover is the file's own header, which must be compact JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_quant.baseline import BaselineError, canonical
from pytest_quant.reference.checks import problem
from pytest_quant.reference.errors import DamagedError, StoreError
from pytest_quant.reference.key import ReferenceKey
from pytest_quant.reference.windows import Origin, StoredReference, Windows

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1

_VERSION_KEY = "pytest_quant_reference"
_METADATA = {_VERSION_KEY, "key", "recorded", "sha256", "top_k", "total"}
_TENSORS = ("lengths", "nll", "rest_log_mass", "top_ids", "top_log_probs")
_LONGEST_HEADER = 16 << 20


def encode(reference: StoredReference) -> bytes:
    """The content of a file. Raises StoreError if the reference could not be read back: NaN, infinity, shapes, notes
    that are not JSON."""
    from safetensors.numpy import save

    if wrong := problem(reference.windows, reference.total, reference.top_k):
        raise StoreError(f"reference of {reference.key.model}: it holds {wrong}. Nothing was written.")
    try:
        recorded = canonical(reference.recorded)
    except BaselineError as error:
        raise StoreError(f"reference of {reference.key.model}: recorded: {error} Nothing was written.") from None
    metadata = {
        _VERSION_KEY: str(VERSION),
        "key": reference.key.canonical,
        "recorded": recorded,
        "top_k": str(reference.top_k),
        "total": str(reference.total),
    }
    tensors = {name: _contiguous(getattr(reference.windows, name)) for name in _TENSORS}
    return save(tensors, metadata | {"sha256": _hash(tensors, metadata)})


def decode(content: bytes, where: str, origin: Origin = "built") -> StoredReference:
    """The reference that is the content of a file; `where` names it in messages.

    Raises DamagedError for anything malformed or changed since it was written, and StoreError for a newer version.
    """
    try:
        return replace(_decode(content, where), origin=origin)
    except _Malformed as error:
        raise DamagedError(f"{where}: is damaged: {error}.") from None


class _Malformed(Exception):
    """The end of a sentence that names the file."""


def _decode(content: bytes, where: str) -> StoredReference:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    metadata = _metadata(content)
    _check_version(metadata, where)
    if missing := sorted(_METADATA ^ metadata.keys()):
        raise _Malformed(f"its metadata lack, or have beyond what belongs there, {', '.join(missing)}")
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _Malformed(f"it is no safetensors file ({error})") from None
    if missing := sorted(set(_TENSORS) ^ tensors.keys()):
        raise _Malformed(f"its tensors lack, or have beyond what belongs there, {', '.join(missing)}")
    stated = metadata.pop("sha256")
    if _hash(tensors, metadata) != stated:
        raise _Malformed("its content does not have the SHA-256 that it had when it was written")
    for array in tensors.values():
        array.flags.writeable = False
    windows = Windows(**tensors)
    total, top_k = _whole(metadata, "total"), _whole(metadata, "top_k")
    if wrong := problem(windows, total, top_k):
        raise _Malformed(f"it holds {wrong}")
    return StoredReference(_key(metadata), windows, total, top_k, recorded=_object(metadata, "recorded"))


def _metadata(content: bytes) -> dict[str, str]:
    """The metadata in a safetensors header: eight bytes of its length, compact JSON, spaces."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or not 2 <= length <= min(len(content) - 8, _LONGEST_HEADER):
        raise _Malformed("it is empty, truncated or no safetensors file")
    try:
        text = content[8 : 8 + length].decode("utf-8")
        header = json.loads(text)
        compact = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    except (ValueError, RecursionError):
        raise _Malformed("it is no safetensors file: its header is not JSON") from None
    if text.rstrip(" ") != compact:
        raise _Malformed("its header is not the compact JSON that safetensors writes")
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Malformed("it is no stored reference: its header has no metadata")
    return metadata


def _check_version(metadata: Mapping[str, str], where: str) -> None:
    version = metadata.get(_VERSION_KEY)
    if version is None:
        raise _Malformed(f"it is no stored reference: its metadata have no {_VERSION_KEY}")
    if version == str(VERSION):
        return
    if version.isascii() and version.isdecimal() and len(version) < 6 and int(version) > VERSION:
        raise StoreError(
            f"{where}: is a stored reference of version {version}, this pytest-quant reads {VERSION}. Upgrade "
            "pytest-quant, or name another folder with --cache-dir (pytest: --quant-cache-dir)."
        )
    raise _Malformed(f"its version is {version[:20]!r}, this pytest-quant reads {VERSION}")


def _hash(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> str:
    """SHA-256 of the metadata, then of each tensor's name, type and shape, and its bytes."""
    import numpy as np

    total = hashlib.sha256(json.dumps(sorted(metadata.items())).encode() + b"\n")
    for name in sorted(tensors):
        array = tensors[name]
        total.update(json.dumps([name, array.dtype.str, list(array.shape)]).encode() + b"\n")
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def _contiguous(array: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    return np.ascontiguousarray(array)


def _whole(metadata: Mapping[str, str], name: str) -> int:
    text = metadata[name]
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise _Malformed(f"{name} in its metadata is {text[:20]!r}, not a whole number")
    return int(text)


def _object(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    try:
        value = json.loads(metadata[name])
        plain = canonical(value) if isinstance(value, dict) else None
    except (ValueError, RecursionError, BaselineError):
        plain = None
    if plain is None or plain != metadata[name]:
        raise _Malformed(f"{name} in its metadata is not an object in canonical JSON")
    return dict(value)


def _key(metadata: Mapping[str, str]) -> ReferenceKey:
    try:
        key = ReferenceKey(**_object(metadata, "key"))
    except (TypeError, StoreError) as error:
        raise _Malformed(f"the key in its metadata is not one ({error})") from None
    if key.canonical != metadata["key"]:
        raise _Malformed("the key in its metadata has a subset, which no key has")
    return key
