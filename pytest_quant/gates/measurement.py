"""A measurement: a number with its uncertainty, unit, sample and identity. Immutable."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import total_ordering
from types import MappingProxyType
from typing import Any

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Quantity:
    """A value with its interval; an exact one has ``low == value == high``, an unbounded one an infinite end."""

    value: float
    low: float
    high: float
    unit: str
    detectable: float = 0.0
    """Smallest difference from nothing that the whole sample could detect; 0 where that question makes no sense."""

    @classmethod
    def exact(cls, value: float, unit: str) -> Quantity:
        return cls(value, value, value, unit)

    @property
    def is_exact(self) -> bool:
        return self.low == self.high

    def __str__(self) -> str:
        return f"{self.value:.4g} {self.unit} [{self.low:.4g} to {self.high:.4g}]"


@total_ordering
@dataclass(frozen=True, eq=False)
class Measurement:
    """One measured metric of one format of one model.

    ``quantities`` holds what limits may be set on; ``main`` names the one that the metric is known by. A
    measurement compares with numbers by that value and prints with its interval.
    """

    metric: str
    model: str
    format: str
    engine: str
    main: str
    quantities: Mapping[str, Quantity]
    identity: Mapping[str, Any]
    reference: str | None = None
    confidence: float | None = None
    """That all verdicts of one gate on it hold together; None where everything is exact."""
    alpha: float | None = None
    """Error rate of each interval: one of several questions of a gate has a share of its error only."""
    windows: tuple[int, int] | None = None
    """Used, and there in all; of what ``noun`` says."""
    noun: str = "windows"
    """What was drawn: windows of text, items of a task, prompts."""
    figures: Mapping[str, float] = field(default_factory=lambda: _NOTHING)
    """Numbers beside it: the format's value, the reference's, a standard error."""
    scores: tuple[float, ...] | None = None
    """What the format got in each used window (or item), in the drawn order: what a later commit is compared with."""
    reference_scores: tuple[float, ...] | None = None
    """The reference's mean NLL of each used window, nats; or what it got for each item."""
    weights: tuple[float, ...] | None = None
    """What each used window counts: its predicted tokens, or words."""
    lower_bounds: frozenset[str] = frozenset()
    """Quantities that are lower bounds of what their name says: their intervals have no upper end."""
    reference_stored: int = 0
    """Of the used windows, those for which the reference's word came from the store."""
    remark: str = ""
    """What the user should hear of a limit even where it holds."""
    engines: str = ""
    """That the reference ran on another engine, and what the engines alone make."""
    caveat: str = ""
    """Why a limit may stay open whatever is measured."""
    rounds: int | None = None
    """Of timed runs; None where nothing was timed."""
    spent: bool = True
    """Whether no more rounds are played."""
    bounds: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: _NOTHING)
    """What the hardware allows at best, by ``format`` and ``reference``."""
    conditions: tuple[tuple[str, str], ...] = ()
    """Name and sentence of what makes the number untrue."""
    proof: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    detail: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    """What people want to see behind the number: items that were lost, prompts that changed, layers. Plain data."""

    @property
    def complete(self) -> bool:
        """Whether nothing more is measured: all windows are scored, the budget for rounds is spent."""
        return self.spent if self.windows is None else self.windows[0] == self.windows[1]

    @property
    def quantity(self) -> Quantity:
        return self.quantities[self.main]

    @property
    def value(self) -> float:
        return self.quantity.value

    def __float__(self) -> float:
        return float(self.value)

    def __eq__(self, other: object) -> bool:
        number = _number(other)
        return NotImplemented if number is None else self.value == number

    def __lt__(self, other: object) -> bool:
        number = _number(other)
        if number is None:
            return NotImplemented
        if math.isnan(number):
            raise ValueError(f"{self.metric} compared with NaN, which is neither above nor below anything")
        if not math.isfinite(self.value):
            raise ValueError(f"{self.metric} is {self.value}: NaN and infinity keep no limit")
        low, high = self.quantity.low, self.quantity.high
        sampled = self.windows is not None or self.rounds is not None
        if sampled and low != high and low <= number <= high:
            instead = "" if self.rounds is not None else ", or without one"
            raise ValueError(
                f"{self.metric} is {self}, which does not decide whether it is below {number:g}: measure it with that "
                f"limit{instead}"
            )
        return self.value < number

    def __hash__(self) -> int:
        return hash(self.value)

    def __str__(self) -> str:
        quantity = self.quantity
        spread = "exact" if quantity.is_exact else f"{quantity.low:.4g} to {quantity.high:.4g}"
        sample = "" if self.windows is None else f", {self.windows[0]} of {self.windows[1]} {self.noun}"
        sample = sample if self.rounds is None else f", {self.rounds} rounds"
        return f"{quantity.value:.4g} {quantity.unit} [{spread}{sample}]"

    def __repr__(self) -> str:
        return f"<{self.metric} of {self.format}: {self}>"


def _number(other: object) -> float | None:
    if isinstance(other, (int, float, Measurement)) and not isinstance(other, bool):
        return float(other)
    return None
