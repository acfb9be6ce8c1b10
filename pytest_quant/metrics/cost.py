"""What a million tokens cost, from their speed and the price of an hour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_quant.gates.measurement import Quantity
from pytest_quant.metrics.rounds import Rounds
from pytest_quant.metrics.throughput import ratio
from pytest_quant.stats.median import median_interval

_HOUR = 3600.0
_MILLION = 1e6


@dataclass(frozen=True)
class Prices:
    """Dollars an hour of what the format runs on, and of what the reference does; None where nobody said."""

    format: float | None = None
    reference: float | None = None

    @property
    def ratio(self) -> float:
        """The format's price over the reference's; 1 where they are not both known, on one device that is."""
        return 1.0 if self.format is None or self.reference is None else self.format / self.reference


def dollars(speed: float, price: float) -> float:
    """Dollars for a million tokens at ``speed`` tokens a second and ``price`` dollars an hour."""
    return price / _HOUR / speed * _MILLION


def cost(rounds: Rounds, prices: Prices, alpha: float) -> Mapping[str, Quantity]:
    """Quantity ``ratio``, the format's cost of a token over the reference's, and with a price ``usd``, dollars for a
    million tokens of the format."""
    speed = ratio(rounds, alpha)
    low = prices.ratio / speed.high
    high = prices.ratio / speed.low if speed.low else float("inf")
    found = {"ratio": Quantity(prices.ratio / speed.value, low, high, "x")}
    if prices.format is not None:
        each = [dollars(run.speed, prices.format) for run in rounds.ours]
        value, low, high = median_interval(each, alpha)
        found["usd"] = Quantity(value, max(low, 0.0), high, "$/Mtok")
    return found
