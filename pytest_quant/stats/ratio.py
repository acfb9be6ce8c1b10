"""Ratio of two speeds from interleaved rounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_RESAMPLES = 4000
_SEED = 0


def ratio_of_medians(
    numerator: Sequence[float], denominator: Sequence[float], confidence: float
) -> tuple[float, float, float]:
    """``median(numerator) / median(denominator)`` with a percentile bootstrap interval (Efron and Tibshirani
    1993, chapter 13); rounds are resampled as pairs, since both of a round saw the same moment of the machine.

    Returns ``(value, low, high)``. Raises :class:`ValueError` for fewer than two rounds or unequal lengths.
    """
    import numpy as np

    if len(numerator) != len(denominator) or len(numerator) < 2:
        raise ValueError("need two or more rounds of both")
    top, bottom = np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float)
    picks = np.random.default_rng(_SEED).integers(0, len(top), size=(_RESAMPLES, len(top)))
    ratios = np.median(top[picks], axis=1) / np.median(bottom[picks], axis=1)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(ratios, [tail, 1.0 - tail])
    return float(np.median(top) / np.median(bottom)), float(low), float(high)
