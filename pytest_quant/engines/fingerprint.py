"""Fingerprint of a model: what it is, whatever its path."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase as fnmatch
from pathlib import Path

from pytest_quant import atomic
from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import UsageError

_COUNTED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "quant*config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "adapter_config.json",
    "*.tiktoken",
    "chat_template*",
    "*.py",
)
"""Weights, config, tokenizer and code; logs of the training and model cards are not the model."""
_CHUNK = 1 << 22


def fingerprint(source: ModelSource, cache_dir: Path) -> str:
    """sha256 over weights, config and tokenizer of a local folder, or ``repo@commit`` of a hub model.

    Hashes of files are kept in ``cache_dir`` by path, size and time of change. Raises :class:`UsageError`
    when there is no such model here.
    """
    folder = source.folder
    if folder is None:
        return f"{source.name}@{_commit(source)}"
    digest = hashlib.sha256()
    for name, value in _file_hashes(folder, cache_dir):
        digest.update(f"{name}\0{value}\n".encode())
    return f"sha256:{digest.hexdigest()[:32]}"


def _commit(source: ModelSource) -> str:
    from transformers.utils import cached_file

    try:
        config = cached_file(source.name, "config.json", revision=source.revision)
    except OSError as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"the model {source.name!r} cannot be opened: it is no local folder, and not to be had from the hub "
            f"({said}); give the path of a folder with config.json and *.safetensors, or "
            f"download the model first"
        ) from None
    snapshot = Path(config).parent
    return snapshot.name if snapshot.parent.name == "snapshots" else (source.revision or "main")


def _file_hashes(folder: Path, cache_dir: Path) -> Iterator[tuple[str, str]]:
    index = cache_dir / "fingerprints.json"
    known = _read(index)
    added = False
    for file in sorted(folder.iterdir()):
        if not file.is_file() or not any(fnmatch(file.name, pattern) for pattern in _COUNTED):
            continue
        status = file.stat()
        key = f"{file.resolve()}|{status.st_size}|{status.st_mtime_ns}|{status.st_ctime_ns}|{status.st_ino}"
        if key not in known:
            known[key] = _sha256(file)
            added = True
        yield file.name, known[key]
    if added:
        _write(index, known)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _read(index: Path) -> dict[str, str]:
    """The remembered hashes; a damaged cache is only a slower start."""
    try:
        known = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {key: value for key, value in known.items() if _is_hash(value)} if isinstance(known, dict) else {}


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _write(index: Path, known: dict[str, str]) -> None:
    with contextlib.suppress(OSError):
        atomic.replace(index, json.dumps(known, indent=0, sort_keys=True).encode("utf-8"), prefix=index.stem)
