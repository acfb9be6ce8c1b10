"""The key of a question: the digest of everything that its answer depends on and that is known before measuring."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quant.errors import QuantError
from pytest_quant.formats import registry
from pytest_quant.gates.gate import Gate
from pytest_quant.identity import reference_runs_on, served
from pytest_quant.spec import ModelSpec

if TYPE_CHECKING:
    from pytest_quant.session import Session

_HASHED = 1 << 24
"""Bytes of a file up to which its content is hashed; beyond it counts by size and time of change."""
_NO_PART = ("cache_dir", "workers", "lane", "together", "checkpoints", "quantize")
"""Settings that change no number, or are told by the checkpoint itself."""


class Keys:
    """Makes keys for one session's device and settings."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._hashes: dict[tuple[str, int, int], str] = {}

    def key(self, spec: ModelSpec, format_name: str, gate: Gate, questions: int) -> str | None:
        """32 hexadecimal digits; None for a question that cannot be asked, which measuring says better. Loads no model;
        hashes its files. ``questions`` share the gate's error."""
        try:
            asked = self._described(spec, format_name, gate, questions)
        except (QuantError, OSError):
            return None
        return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:32]

    def _described(self, spec: ModelSpec, format_name: str, gate: Gate, questions: int) -> dict[str, Any]:
        session = self._session
        format, device = registry.get(format_name), session.device
        checkpoint = session.quantizing.find(spec, format)
        settings = {name: value for name, value in asdict(session.settings).items() if name not in _NO_PART}
        asked: dict[str, Any] = {
            "model": [session.fingerprint(spec.source), spec.source.short, spec.source.trust_remote_code],
            "reference": registry.describe(registry.get(spec.reference)),
            "engine": [
                spec.engine,
                spec.engine_args,
                served(spec, format_name, device),
                reference_runs_on(spec, device),
            ],
            "placement": None if spec.placement is None else spec.placement.plain,
            "require_native": spec.require_native,
            "format": registry.describe(format),
            "gate": [gate.metric, gate.limits, gate.parameters, gate.min_effect],
            "questions": questions,
            "settings": settings,
            "device": [device.key, device.architecture, device.driver],
        }
        if checkpoint is not None:
            asked["checkpoint"] = [checkpoint.place, asdict(checkpoint.record) if checkpoint.record else None]
        if gate.is_timed or device.kind == "cpu":  # sums of floats depend on how many threads share them out
            asked["threads"] = _threads()
        if gate.is_quality:
            asked["references"] = list(_listed(session.settings.cache_dir / "references"))
        if gate.is_timed:
            asked["company"] = max(session.settings.company, 1)  # accepted or not, one alone is faster
        places = _texts([gate.parameters, settings, checkpoint.place if checkpoint else None])
        asked["files"] = {place: self._stamp(Path(place)) for place in sorted(set(places)) if _exists(place)}
        return asked

    def _stamp(self, path: Path) -> Any:
        """What tells a file from what it was, for a folder of every file below it."""
        if path.is_dir():
            below = sorted(each for each in path.rglob("*") if each.is_file())
            return [[each.relative_to(path).as_posix(), self._stamp(each)] for each in below]
        status = path.stat()
        if status.st_size > _HASHED:
            return [status.st_size, status.st_mtime_ns]
        known = (str(path), status.st_size, status.st_mtime_ns)
        if known not in self._hashes:
            self._hashes[known] = hashlib.sha256(path.read_bytes()).hexdigest()
        return self._hashes[known]


def _texts(value: Any) -> Iterator[str]:
    """Every text that may name a file, such as the PATH of ``wikitext2:PATH`` or of ``0.5*PATH,0.5*python-docs``."""
    if isinstance(value, (str, Path)):
        for text in (str(value), *re.split(r"[,*]", str(value))):
            before, _, after = text.rpartition(":")
            yield from (part for part in (text, before, after) if part)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _texts(each)


def _exists(place: str) -> bool:
    """Whether a text names a file or folder by its whole path: a name such as ``gptq-2048`` may lie anywhere."""
    try:
        return Path(place).is_absolute() and Path(place).exists()
    except (OSError, ValueError):
        return False


def _listed(folder: Path) -> Iterator[list[Any]]:
    """The references that were stored on purpose: with another one, other numbers and other limits are open."""
    for path in sorted(folder.rglob("*.safetensors")):
        if path.is_file() and not path.name.startswith("."):
            status = path.stat()
            yield [path.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns]


def _threads() -> list[Any]:
    """What decides how many threads torch computes with, without importing it."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 0)
    return [len(cores), *(os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))]
