"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def shown_value(record: Mapping[str, Any]) -> str:
    """The value of a record with its unit, and its interval unless it is exact."""
    value, low, high, unit = record["value"], record["low"], record["high"], record["unit"]
    if unit == "bytes":
        shown = shown_bytes(value)
    elif unit == "ppl":
        shown = f"{value:+.3g} ppl"
    else:
        shown = f"{value:.3g}{unit}"
    if "max_ratio" in record["limit"]:
        shown += f" ({record['ratio']:.3g}x)"
    return shown if low == high else f"{shown} [{low:.2f}, {high:.2f}]"


def shown_bytes(count: float) -> str:
    """In powers of ten, as ``max_gb`` counts."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.4g} {unit}"
    return f"{count:.0f} B"
