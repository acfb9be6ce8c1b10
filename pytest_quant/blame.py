"""Who regressed: the stack, or the quantization?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from pytest_quant import baseline
from pytest_quant.environment import changed_packages
from pytest_quant.errors import QuantError
from pytest_quant.gates.measurement import Measurement
from pytest_quant.gates.regression import MIN_EFFECT, reference_change

_CHECKED = 16
"""Windows that the reference scores again when a regression was found."""


def blame(now: Measurement, entry: baseline.Entry, reference_now: Callable[[int], Sequence[float]] | None) -> str:
    """Whether the stack drifted or the quantization: does the reference answer now as it did for the baseline?"""
    versions = changed_packages(entry.recorded.get("packages"))
    since = f" (since then: {', '.join(versions)})" if versions else " (the same versions of all libraries)"
    if not isinstance(entry.recorded.get("packages"), Mapping) or not entry.recorded["packages"]:
        since = ""
    theirs: Sequence[float] = now.reference_scores or ()
    unknown = "whether the stack drifted too is not known:"
    if now.reference_stored:
        if reference_now is None:
            return f"{unknown} the reference was not measured again{since}"
        try:
            theirs = reference_now(min(_CHECKED, len(now.scores or ())))
        except QuantError as error:
            return f"{unknown} the reference cannot be measured here ({error}){since}"
    if not theirs or not entry.reference_scores or not now.weights:
        return f"{unknown} the baseline holds no scores of the reference{since}"
    if not all(math.isfinite(score) for score in theirs):
        return f"{unknown} the reference answers NaN or infinity here{since}"
    moved = reference_change(theirs, entry.reference_scores, now.weights)
    if abs(moved) > MIN_EFFECT["perplexity_delta"]:
        return f"the reference moved too, by {moved:+.5f} nats: the stack drifted, not only the quantization{since}"
    return f"the reference did not move ({moved:+.5f} nats): it is the quantization{since}"
