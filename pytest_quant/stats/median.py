"""The median of a growing sample, with an interval that may be looked at after every value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import median


def median_interval(values: Sequence[float], alpha: float) -> tuple[float, float, float]:
    """``(median, low, high)`` of a sample: with probability ``1 - alpha`` the interval holds the median of what the
    sample is drawn from after every value at once, so that a rule which stops at any of them keeps that probability.

    It rests on nothing but each value being as likely above the median as below it, whatever was before: no shape, no
    moments, no equal spread. A bet on the signs of ``value - m`` wins that much only if ``m`` is not the median
    (Ville's inequality); the stakes are mixed by Beta(1/2, 1/2), as Krichevsky and Trofimov do (1981); the candidates
    ``m`` that survive lie between two order statistics (Howard and Ramdas, "Sequential estimation of quantiles with
    applications to A/B testing and best-arm identification", Bernoulli 2022). An end that is not bounded yet is
    infinite. Raises :class:`ValueError` for no values.
    """
    if not values:
        raise ValueError("the median of nothing")
    ordered = sorted(values)
    below = _fewest_below(len(ordered), alpha)
    if below == 0:
        return median(ordered), -math.inf, math.inf
    return median(ordered), ordered[below - 1], ordered[-below]


def fewest_values(alpha: float) -> int:
    """How many values bound the interval at all: with fewer, even signs that all agree prove nothing."""
    return next(count for count in range(1, 10_000) if _fewest_below(count, alpha))


@lru_cache(maxsize=4096)
def _fewest_below(count: int, alpha: float) -> int:
    """The smallest number of values below the median that ``count`` values leave possible."""
    survives = (k for k in range(count // 2 + 1) if _log_wealth(k, count) < -math.log(alpha))
    return next(survives, count // 2)


def _log_wealth(below: int, count: int) -> float:
    """Logarithm of what the bets have made of 1 when ``below`` of ``count`` signs were negative."""
    above = count - below
    mixed = math.lgamma(below + 0.5) + math.lgamma(above + 0.5) - math.lgamma(count + 1.0) - math.log(math.pi)
    return count * math.log(2.0) + mixed
