"""Margins in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_quant.gates.gate import LIMITS, MAIN
from pytest_quant.report.margins import Margin, margins

_MANY = 9.995
"""Share of a budget beyond which percent say nothing."""


def room(record: Mapping[str, Any]) -> str:
    """The margins of a record, one for each limit, in their order; empty where there is none."""
    return "; ".join(shown(record, each) for each in margins(record))


def tightest(record: Mapping[str, Any]) -> str:
    """The margin of the limit that is nearest, or farthest exceeded; empty where there is none."""
    found = margins(record)
    return shown(record, max(found, key=_tightness)) if found else ""


def tightness(record: Mapping[str, Any]) -> float:
    """Of the same limit, the share of its budget that is used; -1 where there is none."""
    return max(map(_tightness, margins(record)), default=-1.0)


def _tightness(margin: Margin) -> float:
    if margin.used is not None:
        return max(margin.used, 0.0)
    return 0.0 if margin.room >= 0.0 else _MANY


def shown(record: Mapping[str, Any], margin: Margin) -> str:
    """Such as ``0.75 ppl left, 25% used``; of a lower bound the room is at most so large."""
    unit = margin.symbol if margin.symbol in ("", "x") else f" {margin.symbol}"
    bound = _is_lower_bound(record, margin.name)
    side = "left" if margin.room >= 0.0 else "over"
    said = f"{'at most ' if bound and side == 'left' else ''}{abs(margin.room):.3g}{unit} {side}"
    if margin.used is None:
        return said
    least = "at least " if bound else ""
    if margin.used > _MANY:
        times = f"{margin.used:.3g}" if margin.used < 999.5 else f"{margin.used:,.0f}"
        return f"{said}, {least}{times}x the budget"
    return f"{said}, {least}{max(margin.used, 0.0):.0%} used"


def _is_lower_bound(record: Mapping[str, Any], name: str) -> bool:
    metric = record["metric"]
    quantity = LIMITS[metric][name].quantity
    shape = record.get("statistics", {}).get(quantity, record if quantity == MAIN[metric] else {})
    return bool(shape.get("lower_bound"))
