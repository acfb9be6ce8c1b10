"""Has a measurement moved since its baseline? Direction and tolerance belong to the metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from pytest_quant.gates.gate import QUALITY, SAMPLED, SCANNED, TIMED
from pytest_quant.gates.measurement import Measurement
from pytest_quant.gates.verdict import Verdict
from pytest_quant.stats import betting, sequence
from pytest_quant.stats.paired import paired_difference

MIN_EFFECT: Mapping[str, float] = {
    "perplexity_delta": 0.001,  # nats: the mean paired difference to the baseline's windows
    "kl_divergence": 0.001,  # nats, in the same way
    "token_agreement": 0.002,  # share of tokens
    "task_accuracy": 0.01,  # share of items, by the paired difference to the baseline's
    "generation_match": 0.02,  # share of tokens, by prompts in the same way
    "layer_sensitivity": 0.001,  # nats of the worst layer
    "throughput_ratio": 0.10,  # share of the baseline's ratio, beyond both intervals
    "energy_ratio": 0.10,  # in the same way
    "cost_ratio": 0.10,
    "memory_budget": 0.01,  # share of the baseline's bytes
}
"""A smaller change is real or not, but breaks nothing."""
PEAK_EFFECT = 0.10
"""For a peak and activations, which depend on how the allocator rounds."""


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


def change(now: Measurement, then: Accepted, min_effect: float | None = None, *, sampled: bool = False) -> Change:
    """Judge the change from ``then`` to ``now``, two measurements of one identity; only one of more than
    ``min_effect``, in the unit of :data:`MIN_EFFECT`, counts.

    What is not finite, or has nothing to be compared with, is ``incomparable``; ``inconclusive`` asks for more windows,
    and cannot be the answer when all were scored. ``then`` must hold the scores of all windows, unless it is known to
    be ``sampled``: then of as many of the first as ``now`` holds.
    """
    numbers = [now.value, then.value, *(now.scores or ()), *(then.scores or ())]
    if now.metric not in (*QUALITY, *SAMPLED):
        numbers += [end for end in (now.quantity.low, now.quantity.high) if math.isnan(end) or now.metric not in TIMED]
    if not all(math.isfinite(number) for number in numbers):
        return Change(
            Verdict.INCOMPARABLE, "not finite", "NaN and infinity cannot be compared; record the baseline anew"
        )
    effect = usual_effect(now) if min_effect is None else min_effect
    if now.metric in (*QUALITY, *SAMPLED):
        return _paired(now, then, effect, sampled)
    if now.metric in SCANNED:
        return _scanned(now, then, effect)
    if then.value == 0.0:
        return Change(Verdict.INCOMPARABLE, "from 0", "a share of 0 is no number; record the baseline anew")
    if now.metric in TIMED:
        return _timed(now, then, effect)
    return _memory(now, then, effect)


def withheld(now: Measurement, moved: Change) -> Change:
    """``inconclusive`` where a change cannot be told: a regression from a part of the windows (a limit broke first, and
    no more were scored), and any change of what was measured under conditions that make it untrue."""
    if moved.verdict is Verdict.REGRESSED and now.windows is not None and now.windows[0] < now.windows[1]:
        return replace(moved, verdict=Verdict.INCONCLUSIVE)
    if moved.verdict in (Verdict.REGRESSED, Verdict.IMPROVED) and now.conditions:
        conditions = "; ".join(text for _, text in now.conditions)
        return Change(Verdict.INCONCLUSIVE, moved.shown, f"{moved.reason}; not judged: {conditions}")
    return moved


def smallest_change(then: Measurement, min_effect: float | None = None) -> float:
    """By what share a later ratio must be worse than ``then`` to be called so, were it known exactly."""
    effect, quantity = usual_effect(then) if min_effect is None else min_effect, then.quantity
    if then.metric == "throughput_ratio":
        return 1.0 - quantity.low * (1.0 - effect) / quantity.value
    return quantity.high * (1.0 + effect) / quantity.value - 1.0


def reference_change(now: Sequence[float], then: Sequence[float], weights: Sequence[float]) -> float:
    """Mean change of the reference's NLL over the windows that both know, nats; :class:`ValueError` if none."""
    known = min(len(now), len(then), len(weights))
    return paired_difference(now[:known], then[:known], weights[:known]).mean


def usual_effect(now: Measurement) -> float:
    peak = now.metric == "memory_budget" and now.identity["metric"].get("of") in ("peak", "activations")
    return PEAK_EFFECT if peak else MIN_EFFECT[now.metric]


_SHARES = {"token_agreement": "of tokens", "task_accuracy": "of items", "generation_match": "of tokens"}
"""The metrics of which more is better, and what their scores are shares of."""


def _paired(now: Measurement, then: Accepted, effect: float, sampled: bool) -> Change:
    """By windows, items or prompts: what the format got in each now, against what it got then. The same code gives
    0."""
    total = now.windows[1] if now.windows else None
    known = len(then.scores or ())
    whole = known == (len(now.scores or ()) if sampled else total)
    if total is None or not now.scores or now.weights is None or not then.scores or not whole:
        return Change(
            Verdict.INCOMPARABLE,
            f"no {now.noun}",
            f"the baseline holds no scores of these {now.noun}; record it anew",
        )
    changes = [after - before for after, before in zip(now.scores, then.scores, strict=False)]
    if now.metric in SAMPLED:  # few values, most of them 0: no normal approximation
        equal = "weights" not in now.identity.get("protocol", {})
        moved = betting.weighted_mean(changes, now.weights, total, now.alpha or 0.01, low=-1.0, high=1.0, equal=equal)
    else:
        moved = sequence.mean(changes, now.weights, total, now.alpha or 0.01)
    unit = _SHARES.get(now.metric, "nats a token")
    shown = f"{round(moved.value, 4) + 0.0:+.4f}{'' if now.metric in _SHARES else ' nats'}"
    worst, best = (moved.high, moved.low) if now.metric not in _SHARES else (-moved.low, -moved.high)
    if worst <= effect:
        verdict = Verdict.IMPROVED if worst < -effect else Verdict.PASSED
    else:
        verdict = Verdict.REGRESSED if best > effect else Verdict.INCONCLUSIVE
    if verdict is Verdict.PASSED:
        return Change(verdict, shown)
    reason = (
        f"{moved.value:+.5f} {unit} against the baseline's {now.noun} "
        f"({now.main} {then.value:.4g} before, {now.value:.4g} now)"
    )
    return Change(verdict, shown, reason)


def _timed(now: Measurement, then: Accepted, effect: float) -> Change:
    """By the ratio to the reference of the same run, and only beyond both intervals. More rounds can decide what is
    ``inconclusive``: whether it got worse by more than the effect."""
    quantity = now.quantity
    low = then.value if then.low is None else then.low
    high = then.value if then.high is None else then.high
    if now.metric == "throughput_ratio":
        tolerated, best = low * (1.0 - effect), high * (1.0 + effect)
        worse, unsure, better = quantity.high < tolerated, quantity.low < tolerated, quantity.low > best
    else:
        tolerated, best = high * (1.0 + effect), low * (1.0 - effect)
        worse, unsure, better = quantity.low > tolerated, quantity.high > tolerated, quantity.high < best
    shown = f"{quantity.value / then.value - 1.0:+.1%}"
    reason = f"{now} now, {then.value:.4g} [{low:.4g} to {high:.4g}] before"
    if worse:
        return Change(Verdict.REGRESSED, shown, reason)
    if unsure:
        return Change(Verdict.INCONCLUSIVE, shown, f"{reason}: whether it is worse by {effect:.0%} is not decided")
    return Change(Verdict.IMPROVED, shown, reason) if better else Change(Verdict.PASSED, shown)


def _scanned(now: Measurement, then: Accepted, effect: float) -> Change:
    """By what the worst layer costs, on the same windows."""
    moved = now.value - then.value
    reason = "" if _verdict(moved, effect) is Verdict.PASSED else f"{now.value:.4g} nats now, {then.value:.4g} before"
    return Change(_verdict(moved, effect), f"{round(moved, 4) + 0.0:+.4f} nats", reason)


def _memory(now: Measurement, then: Accepted, effect: float) -> Change:
    share = now.value / then.value - 1.0
    verdict = _verdict(share, effect)
    reason = "" if verdict is Verdict.PASSED else f"{now.value:,.0f} bytes now, {then.value:,.0f} before"
    return Change(verdict, f"{share:+.1%}", reason)


def _verdict(moved: float, effect: float) -> Verdict:
    """More nats, more bytes: worse."""
    if moved > effect:
        return Verdict.REGRESSED
    return Verdict.IMPROVED if moved < -effect else Verdict.PASSED
