"""What two engines make of the same weights: below that a difference between them says nothing of a format."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class EngineFloor:
    """One model on two engines, on the same windows; ``mean`` and ``worst`` in nats a token (or word)."""

    windows: int
    mean: float
    """Of the second engine's NLL less the first's, over all windows by their weights."""
    worst: float
    """Of the same difference, the largest amount in one window."""
    first: float
    """Mean NLL of the first engine."""

    @property
    def second(self) -> float:
        """Mean NLL of the second engine."""
        return self.first + self.mean

    @property
    def perplexity(self) -> float:
        """By how much the second engine's perplexity is above the first's."""
        return math.exp(self.second) - math.exp(self.first)


def between(first: Sequence[float], second: Sequence[float], weights: Sequence[float]) -> EngineFloor:
    """The floor from the summed NLL of each window on both engines, nats, and what each window counts."""
    apart = [b - a for a, b in zip(first, second, strict=True)]
    total = sum(weights)
    return EngineFloor(
        windows=len(weights),
        mean=sum(apart) / total,
        worst=max(abs(each) / weight for each, weight in zip(apart, weights, strict=True)),
        first=sum(first) / total,
    )
