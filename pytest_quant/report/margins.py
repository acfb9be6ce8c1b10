"""How far from its limit each measurement of a run record is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_quant.gates.gate import LIMITS, MAIN


@dataclass(frozen=True)
class Margin:
    """One limit of one record; value, ends and limit in the limit's unit."""

    name: str
    """The limit's, such as ``max_ratio``."""
    value: float
    low: float
    high: float
    limit: float
    symbol: str
    smaller_is_better: bool
    used: float | None
    """Share of the budget that the value takes: 0 where nothing of it is used, 1 at the limit, more beyond it. None
    where the limit leaves no budget."""

    @property
    def room(self) -> float:
        """From the value to the limit, in the limit's unit; negative beyond it."""
        return self.limit - self.value if self.smaller_is_better else self.value - self.limit


def margins(record: Mapping[str, Any]) -> list[Margin]:
    """One for each limit of a record that has a number for it, in the order of the limits' names."""
    found = []
    for name, limit in sorted(record["limit"].items()):
        kind = LIMITS[record["metric"]][name]
        shape = _quantity(record, kind.quantity)
        if shape is None:
            continue
        value, low, high = shape
        smaller = kind.smaller_is_better(name)
        used = _used(value / kind.unit, limit, kind.nothing, smaller_is_better=smaller)
        value, low, high = value / kind.unit, low / kind.unit, high / kind.unit
        found.append(Margin(name, value, low, high, limit, kind.symbol, smaller, used))
    return found


def _quantity(record: Mapping[str, Any], name: str) -> tuple[float, float, float] | None:
    """Value and interval of a record's quantity; an end that is not bounded is infinite."""
    shape: Mapping[str, Any] | None = record.get("statistics", {}).get(name)
    if shape is None:
        bound = record.get("lower_bound", False)
        if name == MAIN[record["metric"]] or (name == "bound" and bound):
            shape = {**record, "lower_bound": bound and name != "bound"}
        elif record["metric"] == "memory_budget" and name in record:
            return record[name], record[name], record[name]
        else:
            return None
    if "value" not in shape:
        return None
    high = math.inf if shape.get("lower_bound") else shape.get("high", math.inf)
    return shape["value"], shape.get("low", -math.inf), high


def _used(value: float, limit: float, nothing: float, *, smaller_is_better: bool) -> float | None:
    if smaller_is_better:
        return (value - nothing) / (limit - nothing) if limit > nothing else None
    if math.isfinite(nothing) and nothing > limit:
        return (nothing - value) / (nothing - limit)
    return limit / value if value > 0 else None
