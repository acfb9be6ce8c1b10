"""Confidence sequences: intervals of a finite population's mean that hold at every look at once.

Windows are drawn without replacement in a fixed random order. The interval is that of the normal mixture with unknown
variance, the anytime-valid t-test (Lai 1976; Wang and Ramdas, "Anytime-valid t-tests and confidence sequences for
Gaussian means with unknown variance"), which for many windows is the asymptotic confidence sequence of Waudby-Smith,
Arbour, Sinha, Kennedy and Ramdas ("Time-uniform central limit theory and asymptotic confidence sequences", Theorem
2.2); the variance is that of a sample without replacement, so that at n = N the width is 0. It holds for windows whose
values are about normal, as means of hundreds of tokens are. A fault that hides in a few windows of a large population
can be missed by any early stop.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

MIN_WINDOWS = 8
"""Before the first look: a variance from fewer is hardly known."""
TUNED_FOR = 16
"""Windows at which the sequence is tightest; elsewhere it is wider by a few percent."""
_POWER = 0.8


def next_look(drawn: int) -> int:
    """Windows after which to look again: after each at first, then after every sixteenth more."""
    return drawn + max(1, drawn // 16)


@dataclass(frozen=True)
class Estimate:
    """A number of the whole population, estimated from the windows that were drawn; exact when all were."""

    value: float
    low: float
    high: float
    detectable: float = 0.0
    """Smallest difference from 0 that all N windows, as a sample of such text, would detect four times in five."""


def half_width(influences: NDArray[np.float64], total: int, alpha: float, *, least_variance: float = 0.0) -> float:
    """Half-width of the two-sided interval of a statistic with these influences: one a drawn window, of mean 0, whose
    mean is the statistic's error to first order. ``total`` windows are there; 0 when all were drawn, infinite for one.
    """
    drawn = len(influences)
    if drawn >= total:
        return 0.0
    if drawn < 2:
        return math.inf
    variance = max(float(influences @ influences) / (drawn - 1), least_variance) * (1.0 - (drawn - 1) / total)
    # the mixture's precision that is tightest after TUNED_FOR windows (their appendix B.2, Lambert's W to first order)
    spread = -2.0 * math.log(alpha)
    mixed = drawn * (spread + math.log(spread) + 1.0) / TUNED_FOR
    wide = mixed + 1.0
    ratio = math.exp(math.log(wide / alpha**2) / drawn)
    if ratio >= wide:
        return math.inf
    return math.sqrt(variance / drawn * (drawn - 1) * wide * (ratio - 1.0) / (wide - ratio))


def detectable(influences: NDArray[np.float64], total: int, alpha: float, *, least_variance: float = 0.0) -> float:
    """Smallest difference from 0 that a sample of ``total`` windows would detect with a power of 0.8."""
    drawn = len(influences)
    if drawn < 2:
        return math.inf
    quantiles = NormalDist().inv_cdf(1.0 - alpha / 2.0) + NormalDist().inv_cdf(_POWER)
    return quantiles * math.sqrt(max(float(influences @ influences) / (drawn - 1), least_variance) / total)


def influences(values: Sequence[float] | NDArray[np.float64], weights: Sequence[float]) -> NDArray[np.float64]:
    """Those of the weighted mean: each window's distance from it, times its weight over the mean weight."""
    import numpy as np

    numbers, shares = np.asarray(values, dtype=float), np.asarray(weights, dtype=float)
    mean = np.average(numbers, weights=shares)
    found: NDArray[np.float64] = (numbers - mean) * (shares / shares.mean())
    return found


def mean(
    values: Sequence[float] | NDArray[np.float64],
    weights: Sequence[float],
    total: int,
    alpha: float,
    *,
    least_variance: float = 0.0,
) -> Estimate:
    """Weighted mean over all ``total`` windows, from the first of them. :class:`ValueError` without any."""
    import numpy as np

    if len(values) != len(weights) or len(values) == 0:
        raise ValueError("need a weight for each of one or more windows")
    value = float(np.average(np.asarray(values, dtype=float), weights=np.asarray(weights, dtype=float)))
    errors = influences(values, weights)
    half = half_width(errors, total, alpha, least_variance=least_variance)
    return Estimate(value, value - half, value + half, detectable(errors, total, alpha, least_variance=least_variance))


def share(hits: Sequence[int] | NDArray[np.int64], tokens: Sequence[int], total: int, alpha: float) -> Estimate:
    """Share of tokens that are hit, over all windows. Its variance is taken to be at least that of independent tokens,
    so that windows without a miss do not claim to know everything."""
    import numpy as np

    counted, size = np.asarray(hits, dtype=float), np.asarray(tokens, dtype=float)
    guess = (counted.sum() + 1.0) / (size.sum() + 2.0)
    found = mean(counted / size, list(size), total, alpha, least_variance=guess * (1.0 - guess) / float(size.mean()))
    return Estimate(found.value, max(found.low, 0.0), min(found.high, 1.0), found.detectable)


def quantile(windows: Sequence[NDArray[np.floating]], level: float, total: int, alpha: float) -> Estimate:
    """Quantile of all tokens' values, linear between ranks at ``level * (n - 1)``.

    The interval holds every x for which the share of tokens above x may be ``1 - level``: at each x that is a mean over
    windows, whose variance is taken to be at least that of independent tokens. An end is infinite while too few tokens
    were seen to bound it.
    """
    import numpy as np

    tokens = np.concatenate([np.asarray(window, dtype=float) for window in windows])
    value = float(np.quantile(tokens, level))
    if len(windows) >= total:
        return Estimate(value, value, value)
    sizes = np.array([len(window) for window in windows], dtype=float)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(int)
    least = level * (1.0 - level) / float(sizes.mean())
    ordered = np.sort(tokens)

    def misses(x: float) -> tuple[float, float]:
        """Share of tokens above x, less what it should be; and its half-width."""
        shares = np.add.reduceat((tokens > x).astype(float), starts) / sizes
        half = half_width(influences(shares, list(sizes)), total, alpha, least_variance=least)
        return float(np.average(shares, weights=sizes)) - (1.0 - level), half

    def too_low(x: float) -> bool:
        surplus, half = misses(x)
        return surplus > half

    def too_high(x: float) -> bool:
        surplus, half = misses(x)
        return -surplus > half

    places = range(len(ordered))
    first = bisect_left(places, True, key=lambda place: not too_low(float(ordered[place])))
    last = bisect_left(places, True, key=lambda place: too_high(float(ordered[place])))
    bounded = too_low(math.nextafter(float(ordered[0]), -math.inf))
    return Estimate(
        value,
        min(value, float(ordered[first])) if bounded else -math.inf,
        max(value, float(ordered[last])) if last < len(ordered) else math.inf,
    )
