"""Has a measurement moved since its baseline? Direction and tolerance belong to the metric."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pytest_quant.gates.measurement import Measurement
from pytest_quant.gates.verdict import Verdict
from pytest_quant.stats.paired import paired_difference

MIN_EFFECT: Mapping[str, float] = {
    "perplexity_delta": 0.001,  # nats: the mean paired difference to the baseline's windows
    "throughput_ratio": 0.10,  # share of the baseline's ratio, beyond both intervals
    "memory_budget": 0.01,  # share of the baseline's bytes
}
"""A smaller change is real or not, but breaks nothing."""
PEAK_EFFECT = 0.10
"""For a peak, which depends on how the allocator rounds."""


class Accepted(Protocol):
    """What a baseline remembers of a measurement."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...
    @property
    def scores(self) -> tuple[float, ...] | None: ...
    @property
    def reference_scores(self) -> tuple[float, ...] | None: ...


@dataclass(frozen=True)
class Change:
    """What became of a measurement since its baseline."""

    verdict: Verdict
    shown: str
    """The change in a few characters, with its unit."""
    reason: str = ""
    reference_moved: bool = False
    """The reference changed too: the stack drifted, not (only) the quantization."""


def change(now: Measurement, then: Accepted) -> Change:
    """Judge the change from ``then`` to ``now``, two measurements of one identity. What is not finite, or has
    nothing to be compared with, is ``incomparable``."""
    numbers = (now.value, now.quantity.low, now.quantity.high, then.value, *(now.scores or ()), *(then.scores or ()))
    if not all(math.isfinite(number) for number in numbers):
        return Change(
            Verdict.INCOMPARABLE, "not finite", "NaN and infinity cannot be compared; record the baseline anew"
        )
    if now.metric == "perplexity_delta":
        return _quality(now, then)
    if then.value == 0.0:
        return Change(Verdict.INCOMPARABLE, "from 0", "a share of 0 is no number; record the baseline anew")
    if now.metric == "throughput_ratio":
        return _speed(now, then)
    return _memory(now, then)


def _quality(now: Measurement, then: Accepted) -> Change:
    """By windows: what the format says of each now, against what it said then. The same code gives 0."""
    if not now.scores or now.tokens is None or not then.scores or len(then.scores) != len(now.scores):
        return Change(
            Verdict.INCOMPARABLE, "no windows", "the baseline holds no scores of these windows; record it anew"
        )
    moved = paired_difference(now.scores, then.scores, now.tokens).mean
    shown = f"{moved:+.4f} nats"
    verdict = _verdict(moved, MIN_EFFECT[now.metric])
    if verdict is Verdict.PASSED:
        return Change(verdict, shown)
    reference = 0.0
    if now.reference_scores and then.reference_scores and len(now.reference_scores) == len(then.reference_scores):
        reference = paired_difference(now.reference_scores, then.reference_scores, now.tokens).mean
    reason = (
        f"{moved:+.5f} nats a token against the baseline's windows "
        f"(perplexity delta {then.value:+.4g} before, {now.value:+.4g} now)"
    )
    if abs(reference) > MIN_EFFECT[now.metric]:
        reason += f"; the reference moved too, by {reference:+.5f} nats: the stack drifted, not only the quantization"
    return Change(verdict, shown, reason, reference_moved=abs(reference) > MIN_EFFECT[now.metric])


def _speed(now: Measurement, then: Accepted) -> Change:
    """By the ratio to the reference of the same run, and only beyond both intervals."""
    quantity = now.quantity
    low = then.value if then.low is None else then.low
    high = then.value if then.high is None else then.high
    effect = MIN_EFFECT[now.metric]
    verdict = Verdict.PASSED
    if quantity.high < low * (1.0 - effect):
        verdict = Verdict.REGRESSED
    elif quantity.low > high * (1.0 + effect):
        verdict = Verdict.IMPROVED
    reason = "" if verdict is Verdict.PASSED else f"{now} now, {then.value:.4g} [{low:.4g} to {high:.4g}] before"
    return Change(verdict, f"{quantity.value / then.value - 1.0:+.1%}", reason)


def _memory(now: Measurement, then: Accepted) -> Change:
    share = now.value / then.value - 1.0
    effect = PEAK_EFFECT if now.identity["metric"].get("of") == "peak" else MIN_EFFECT[now.metric]
    verdict = _verdict(share, effect)
    reason = "" if verdict is Verdict.PASSED else f"{now.value:,.0f} bytes now, {then.value:,.0f} before"
    return Change(verdict, f"{share:+.1%}", reason)


def _verdict(moved: float, effect: float) -> Verdict:
    """More nats, more bytes: worse."""
    if moved > effect:
        return Verdict.REGRESSED
    return Verdict.IMPROVED if moved < -effect else Verdict.PASSED
