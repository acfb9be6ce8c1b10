"""Bytes as people read them."""

from __future__ import annotations


def shown_bytes(count: float) -> str:
    """In powers of ten, as ``max_gb`` counts."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.4g} {unit}"
    return f"{count:.0f} B"
