"""From a measurement to a limit: room for what may change, none for a model that broke.

Quality is thought of as a distance from the reference: how far the perplexity ratio is above 1, the agreement below 1,
the divergence above 0. The limit's distance is

    the far end of the interval + half of the measured distance, at least what the whole text can detect, and 0.01

rounded away from the reference to two digits. Bytes get 3 % more, to three digits; a speed 80 % of the interval's lower
end, to two digits. Each holds for the measurement that it came from. Where the limit would be so wide that a broken
model keeps it, there is none, but a reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from pytest_quant.gates.gate import LIMITS
from pytest_quant.gates.measurement import Quantity

ARGUMENTS: Mapping[str, str] = {
    "perplexity_delta": "max_ratio",
    "token_agreement": "min",
    "kl_divergence": "max",
    "memory_budget": "max_ratio",
    "throughput_ratio": "min",
}
"""The argument of each marker that is written."""
QUALITY_MORE = 0.5
"""Of the measured distance, that is allowed once more."""
LEAST = 0.01
"""Of a distance: other kernels and versions of libraries move a score by less."""
MEMORY_MORE = 0.03
SPEED_SHARE = 0.8
_WIDEST: Mapping[str, tuple[float, float]] = {
    "perplexity_delta": (0.5, 1.5),
    "token_agreement": (0.35, 0.65),
    "kl_divergence": (0.3, 1.2),
}
"""Distances of a limit that a broken model would keep: of formats of 8 bits or more, and of fewer."""


@dataclass(frozen=True)
class Limit:
    """An argument of a marker, and its value."""

    argument: str
    value: float


@dataclass(frozen=True)
class Refused:
    """Why a measurement gives no limit."""

    reason: str
    broken: bool
    """Whether what was measured is itself what only a broken model has; else it is not known well enough."""


def derive(metric: str, quantity: Quantity, bits: int) -> Limit | Refused:
    """The limit of one metric of a format with weights of so many bits."""
    if not math.isfinite(quantity.value):
        return Refused(f"{quantity.value} is not a number to limit", broken=True)
    if metric == "memory_budget":
        return _memory(quantity)
    if metric == "throughput_ratio":
        return _speed(quantity)
    return _quality(metric, quantity, bits)


def distance(metric: str, quantity: Quantity) -> tuple[float, float]:
    """How far the value, and the far end of its interval, are on the worse side of a format that changes nothing."""
    argument = ARGUMENTS[metric]
    kind = LIMITS[metric][argument]
    if kind.smaller_is_better(argument):
        return quantity.value - kind.nothing, quantity.high - kind.nothing
    return kind.nothing - quantity.value, kind.nothing - quantity.low


def is_settled(metric: str, quantity: Quantity) -> bool:
    """Whether more windows would hardly make the limit tighter: the interval adds no more than the rule does."""
    value, far = distance(metric, quantity)
    return far - value <= max(QUALITY_MORE * value, quantity.detectable, LEAST)


def _quality(metric: str, quantity: Quantity, bits: int) -> Limit | Refused:
    argument = ARGUMENTS[metric]
    kind = LIMITS[metric][argument]
    value, far = distance(metric, quantity)
    room = max(far + QUALITY_MORE * max(value, 0.0), quantity.detectable, LEAST)
    widest = _WIDEST[metric][0 if bits >= 8 else 1]
    edge = f"{kind.nothing + widest if kind.smaller_is_better(argument) else kind.nothing - widest:g}"
    if not (1.0 + QUALITY_MORE) * value <= widest:
        return Refused(
            f"{quantity.value:.4g} has no room on this side of {edge}, where a format of {bits} bits is broken; find "
            f"out why before it is limited",
            broken=True,
        )
    allowed = _up(room, 2) if math.isfinite(room) else room
    if not allowed <= widest:
        return Refused(
            f"{quantity.value:.4g} is known only to lie between {quantity.low:.4g} and {quantity.high:.4g}, and a "
            f"limit beyond {edge} would be kept by a broken model; give more text, or a larger --budget",
            broken=False,
        )
    side = allowed if kind.smaller_is_better(argument) else -allowed
    return Limit(argument, float(Decimal(repr(kind.nothing)) + Decimal(repr(side))))


def _memory(quantity: Quantity) -> Limit | Refused:
    allowed = _up(quantity.value * (1.0 + MEMORY_MORE), 3)
    if quantity.value <= 0.0 or allowed >= 1.0:
        return Refused(
            f"its weights take {quantity.value:.3g} of the reference's, so the reference itself would keep a limit",
            broken=True,
        )
    return Limit(ARGUMENTS["memory_budget"], allowed)


def _speed(quantity: Quantity) -> Limit | Refused:
    if not (math.isfinite(quantity.low) and quantity.low > 0.0):
        return Refused("the rounds bound no interval; give a larger --quant-speed-budget", broken=False)
    return Limit(ARGUMENTS["throughput_ratio"], _down(quantity.low * SPEED_SHARE, 2))


def _up(value: float, digits: int) -> float:
    return _rounded(value, digits, ROUND_CEILING)


def _down(value: float, digits: int) -> float:
    return _rounded(value, digits, ROUND_FLOOR)


def _rounded(value: float, digits: int, direction: str) -> float:
    """A number above 0 to so many digits."""
    exact = Decimal(repr(value))
    return float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - digits + 1), rounding=direction))
