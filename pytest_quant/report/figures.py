"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pytest_quant.sizes import shown_bytes as shown_bytes

_COUNTED = ("windows", "items", "prompts")
_UNITS = {"x": "x", "share": ""}
"""Units that do not stand behind a space."""


def plain(value: float) -> str:
    """Three digits, without an exponent where a number is large."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def shown_value(record: Mapping[str, Any]) -> str:
    """The value of a record with its unit, its interval unless it is exact, and windows used of windows there."""
    shape = record["statistics"][record["limited"]] if "limited" in record else record
    value, low, high = shape["value"], shape.get("low", -math.inf), shape.get("high", math.inf)
    unit, digits = shape["unit"], 4 if shape is not record and shape["unit"] == "x" else 3
    if unit == "bytes":
        shown = shown_bytes(value)
        if "max_ratio" in record["limit"]:
            shown += f" ({record['ratio']:.3g}x)"
    else:
        sign = "+" if unit == "ppl" else ""
        shown = f"{value:{sign}.{digits}g}{_UNITS.get(unit, f' {unit}')}"
    if shape.get("lower_bound"):
        shown = f">= {shown}"
    if "limited" not in record and record.get("lower_bound") and record.get("verdict") == "inconclusive":
        high = math.inf  # the limit is on what this is a bound of
    if low != high:
        shown += f" [{low:.{digits}g}, {high:.{digits}g}]"
    if counted := next((record[noun] for noun in _COUNTED if noun in record), None):
        return f"{shown} {counted['used']}/{counted['total']}"
    return shown
