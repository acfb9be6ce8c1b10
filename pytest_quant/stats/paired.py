"""Paired differences over a finite set of windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class PairedDifference:
    """Mean of ``a - b`` over windows, weighted, in the unit of the scores."""

    mean: float
    standard_error: float
    """What a single draw of as many windows would vary by; not the error of a finite set known whole."""
    windows: int


def weighted_mean(scores: Sequence[float], weights: Sequence[float]) -> float:
    """Mean of the windows' scores, each counted by its weight."""
    import numpy as np

    return float(np.average(np.asarray(scores, dtype=float), weights=np.asarray(weights, dtype=float)))


def paired_difference(a: Sequence[float], b: Sequence[float], weights: Sequence[float]) -> PairedDifference:
    """The difference of two scores of the same windows. :class:`ValueError` if the lengths differ or are 0."""
    import numpy as np

    if not len(a) == len(b) == len(weights) or len(a) == 0:
        raise ValueError("paired scores must be of the same windows, and at least one")
    differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    shares = np.asarray(weights, dtype=float)
    shares = shares / shares.sum()
    mean = float(np.sum(shares * differences))
    count = len(differences)
    variance = float(np.sum(shares * (differences - mean) ** 2)) * count / (count - 1) if count > 1 else 0.0
    return PairedDifference(mean, (variance / count) ** 0.5, count)
