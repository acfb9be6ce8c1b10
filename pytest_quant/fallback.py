"""Which measurements may be compared with those of other hardware. Pure: files come from the caller."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pytest_quant import baseline
from pytest_quant.gates.gate import QUALITY, SAMPLED, SCANNED

_STORED = ("weights", "kv_cache")
"""Bytes that depend on the model and not on the device's name: they fall back within one architecture. Peaks and
speeds never fall back."""


def elsewhere(
    metric: str,
    format: str,
    identity: Mapping[str, Any],
    architecture: str | None,
    files: Iterable[tuple[str, baseline.File | None]],
) -> tuple[str, baseline.Entry] | None:
    """The first entry of another hardware that a measurement may be compared with, and that hardware's key.

    ``files`` are those of other hardware, by key; they are only asked for where the metric falls back at all.
    """
    stored = identity["metric"].get("of") in _STORED
    if metric not in (*QUALITY, *SAMPLED, *SCANNED) and not stored:
        return None
    for key, file in files:
        if stored and (file is None or file.hardware.get("architecture") != architecture):
            continue
        match = baseline.lookup(file, metric, format, identity)
        if match.kind == "exact" and match.entry is not None:
            return key, match.entry
    return None
