"""A gate: the limits of one marker on one metric, and which of them a measurement keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_quant.gates.measurement import Measurement, Quantity
from pytest_quant.gates.verdict import Verdict


@dataclass(frozen=True)
class Gate:
    """``limits`` and ``parameters`` are sorted pairs, so that equal gates are equal.

    Without limits (an imperative measurement) only the baseline judges.
    """

    metric: str
    limits: tuple[tuple[str, float], ...] = ()
    parameters: tuple[tuple[str, Any], ...] = ()

    @property
    def needs_reference(self) -> bool:
        return self.metric != "memory_budget" or any(name == "max_ratio" for name, _ in self.limits)


@dataclass(frozen=True)
class Judgement:
    """A verdict and, where it is not a plain pass, the sentence that explains it."""

    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True)
class LimitKind:
    """What a limit is set on: the quantity, how many of its units make one of the limit's, and the side."""

    quantity: str
    unit: float = 1.0
    symbol: str = ""

    def shown(self, name: str, value: float) -> str:
        unit = self.symbol if self.symbol == "x" else f" {self.symbol}"
        return f"{name.split('_')[0]} {value:g}{unit}"


LIMITS: Mapping[str, Mapping[str, LimitKind]] = {
    "perplexity_delta": {"max": LimitKind("delta", symbol="ppl"), "max_ratio": LimitKind("ratio", symbol="x")},
    "throughput_ratio": {"min": LimitKind("ratio", symbol="x")},
    "memory_budget": {
        "max_gb": LimitKind("bytes", 1e9, "GB"),
        "max_gib": LimitKind("bytes", 2.0**30, "GiB"),
        "max_ratio": LimitKind("ratio", symbol="x"),
    },
}
"""The limits that each metric's marker takes."""


def judge(measurement: Measurement, limits: tuple[tuple[str, float], ...]) -> Judgement:
    """The worst verdict of all limits; ``inconclusive`` where an interval contains its limit.

    A quantity that is not finite never passes.
    """
    kinds = LIMITS[measurement.metric]
    found = [_judge_one(measurement.quantities[kinds[n].quantity], n, kinds[n], limit) for n, limit in limits]
    for verdict in (Verdict.FAILED, Verdict.INCONCLUSIVE):
        if reasons := [one.reason for one in found if one.verdict is verdict]:
            return Judgement(verdict, "; ".join(reasons))
    return Judgement(Verdict.PASSED)


def _judge_one(quantity: Quantity, name: str, kind: LimitKind, limit: float) -> Judgement:
    numbers = value, low, high = tuple(number / kind.unit for number in (quantity.value, quantity.low, quantity.high))
    unit = kind.symbol or quantity.unit
    for number in numbers:
        if not math.isfinite(number):
            return Judgement(Verdict.FAILED, f"{number} {unit} is not a finite number")
    smaller_is_better = name.startswith("max")
    if (high <= limit) if smaller_is_better else (low >= limit):
        return Judgement(Verdict.PASSED)
    side, bound = ("above", "at most") if smaller_is_better else ("below", "at least")
    shown = _apart(value, limit)
    if (low > limit) if smaller_is_better else (high < limit):
        return Judgement(Verdict.FAILED, f"{shown} {unit} is {side} the limit ({bound} {limit:g} {unit})")
    return Judgement(
        Verdict.INCONCLUSIVE,
        f"{shown} {unit} with the interval {low:.4g} to {high:.4g} does not decide the limit of {bound} {limit:g} "
        f"{unit}",
    )


def _apart(value: float, limit: float) -> str:
    """The value in four digits, or in as many more as tell it from the limit."""
    bound = float(f"{limit:g}")
    texts = (f"{value:.{digits}g}" for digits in range(4, 17))
    return next((text for text in texts if float(text) != bound), repr(value))
