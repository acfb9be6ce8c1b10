"""A gate: the limits of one marker on one metric, and which of them a measurement keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pytest_quant.gates.measurement import Measurement, Quantity
from pytest_quant.gates.verdict import Verdict


@dataclass(frozen=True)
class Gate:
    """``limits`` and ``parameters`` are sorted pairs, so that equal gates are equal.

    Without limits (an imperative measurement) only the baseline judges.
    """

    metric: str
    limits: tuple[tuple[str, float], ...] = ()
    parameters: tuple[tuple[str, Any], ...] = ()
    min_effect: float | None = None
    """The change since the baseline that matters, in the metric's unit; None for the metric's own."""

    @property
    def needs_reference(self) -> bool:
        return self.metric != "memory_budget" or any(name == "max_ratio" for name, _ in self.limits)

    @property
    def is_timed(self) -> bool:
        """Whether it is answered from rounds of timed runs."""
        return self.metric in TIMED

    @property
    def is_quality(self) -> bool:
        """Whether it is answered from scored windows."""
        return self.metric in QUALITY

    @property
    def is_sampled(self) -> bool:
        """Whether it is answered from units of a population of its own: items of a task, prompts."""
        return self.metric in SAMPLED

    @property
    def is_scan(self) -> bool:
        """Whether it is answered from one layer after the other."""
        return self.metric in SCANNED


@dataclass(frozen=True)
class Judgement:
    """A verdict and, where it is not a plain pass, the sentence that explains it."""

    verdict: Verdict
    reason: str = ""
    note: str = ""
    """What the user should hear of a limit even where it holds."""


@dataclass(frozen=True)
class LimitKind:
    """What a limit is set on: the quantity, how many of its units make one of the limit's, and the side."""

    quantity: str
    unit: float = 1.0
    symbol: str = ""
    nothing: float = 0.0
    """The value of a format that is exactly as good as the reference."""
    word: str = ""
    """What the table calls the limit, where ``max`` or ``min`` does not say on what it is."""
    subject: str = ""
    """What stands before a value that keeps the limit or does not, where it is not the metric's own."""

    def shown(self, name: str, value: float) -> str:
        unit = self.symbol if self.symbol == "x" else f" {self.symbol}"
        return f"{self.word or name.split('_')[0]} {value:g}{unit}".rstrip()

    def smaller_is_better(self, name: str) -> bool:
        return not name.startswith("min")


NO_DIFFERENCE = -math.inf
"""Of a limit that is not on a difference: none is too small to be told from nothing."""
LIMITS: Mapping[str, Mapping[str, LimitKind]] = {
    "perplexity_delta": {
        "max": LimitKind("delta", symbol="ppl"),
        "max_ratio": LimitKind("ratio", symbol="x", nothing=1.0),
    },
    "kl_divergence": {
        "max": LimitKind("mean", symbol="nats"),
        "p90": LimitKind("p90", symbol="nats"),
        "p95": LimitKind("p95", symbol="nats"),
        "p99": LimitKind("p99", symbol="nats"),
        "p999": LimitKind("p999", symbol="nats"),
        "max_bound": LimitKind("bound", symbol="nats", word="bound"),
    },
    "token_agreement": {"min": LimitKind("share", nothing=1.0)},
    "task_accuracy": {
        "max_drop": LimitKind("drop", subject="a drop of "),
        "min_recovery": LimitKind("recovery", symbol="x", nothing=1.0, subject="a recovery of "),
        "min_accuracy": LimitKind(
            "reference_accuracy", word="reference min", nothing=NO_DIFFERENCE, subject="the reference's accuracy of "
        ),
    },
    "generation_match": {
        "min": LimitKind("share", nothing=1.0),
        "min_prefix": LimitKind("prefix", nothing=1.0, word="prefix min", subject="a common beginning of "),
        "min_same": LimitKind("same", nothing=1.0, word="same min", subject="the share of unchanged prompts of "),
    },
    "layer_sensitivity": {
        "max": LimitKind("nats", symbol="nats"),
        "max_kl": LimitKind("kl", symbol="nats", word="KL max", subject="a KL divergence of "),
    },
    "throughput_ratio": {"min": LimitKind("ratio", symbol="x")},
    "energy_ratio": {"max": LimitKind("ratio", symbol="x"), "max_joules": LimitKind("joules", symbol="J/tok")},
    "cost_ratio": {"max": LimitKind("ratio", symbol="x"), "max_usd": LimitKind("usd", symbol="$/Mtok")},
    "memory_budget": {
        "max_gb": LimitKind("bytes", 1e9, "GB"),
        "max_gib": LimitKind("bytes", 2.0**30, "GiB"),
        "max_ratio": LimitKind("ratio", symbol="x"),
    },
}
"""The limits that each metric's marker takes."""
QUALITY = ("perplexity_delta", "kl_divergence", "token_agreement")
"""The metrics that are answered from scored windows."""
SAMPLED = ("task_accuracy", "generation_match")
"""The metrics that are answered from units of a population of their own."""
SCANNED = ("layer_sensitivity",)
"""The metrics that are answered from one layer after the other."""
TIMED = ("throughput_ratio", "energy_ratio", "cost_ratio")
"""The metrics that are answered from rounds of timed runs."""
MAIN = {
    "perplexity_delta": "delta",
    "kl_divergence": "mean",
    "token_agreement": "share",
    "task_accuracy": "drop",
    "generation_match": "share",
    "layer_sensitivity": "nats",
    "throughput_ratio": "ratio",
    "energy_ratio": "ratio",
    "cost_ratio": "ratio",
    "memory_budget": "bytes",
}
"""What the value of each metric is called."""
NOUNS = {"task_accuracy": "items", "generation_match": "prompts"}
"""What the scores of a metric are of, where they are not of windows."""


def needs_full_kl(gate: Gate) -> bool:
    """Whether a gate asks for the divergence over the whole vocabulary, which takes both models; without limits
    it does."""
    limits = {name for name, _ in gate.limits}
    return gate.metric == "kl_divergence" and limits != {"max_bound"}


def decided(measurement: Measurement, limits: tuple[tuple[str, float], ...]) -> bool:
    """Whether more windows could not change what :func:`judge` says.

    Where only a lower bound is known, a limit on the divergence itself stays open however small the bound is; more
    windows could only show that the bound breaks it.
    """
    return judge(replace(measurement, lower_bounds=frozenset()), limits).verdict is not Verdict.INCONCLUSIVE


def judge(measurement: Measurement, limits: tuple[tuple[str, float], ...]) -> Judgement:
    """The worst verdict of all limits; ``inconclusive`` where an interval contains its limit.

    A value that is not finite never passes.
    """
    kinds = LIMITS[measurement.metric]
    found = [
        _judge_one(measurement.metric, _quantity(measurement, kinds[n].quantity), n, kinds[n], limit)
        for n, limit in limits
    ]
    note = "; ".join(filter(None, (_too_tight(measurement, n, kinds[n], limit) for n, limit in limits)))
    for verdict in (Verdict.FAILED, Verdict.INCONCLUSIVE):
        if reasons := [one.reason for one in found if one.verdict is verdict]:
            caveat = [measurement.caveat] if measurement.caveat and verdict is Verdict.INCONCLUSIVE else []
            return Judgement(verdict, "; ".join(reasons + caveat), note)
    return Judgement(Verdict.PASSED, note=note)


def _quantity(measurement: Measurement, name: str) -> Quantity:
    quantity = measurement.quantities[name]
    return replace(quantity, high=math.inf) if name in measurement.lower_bounds else quantity


def _too_tight(measurement: Measurement, name: str, kind: LimitKind, limit: float) -> str:
    """What to say of a limit that is closer to "no difference" than all windows together could tell apart."""
    quantity = measurement.quantities[kind.quantity]
    if not quantity.detectable > abs(limit - kind.nothing) or measurement.windows is None:
        return ""
    more = "text" if measurement.noun == "windows" else measurement.noun
    if not math.isfinite(quantity.detectable) or measurement.windows[1] == 1:
        return (
            f"{kind.shown(name, limit)} is tested on a single {measurement.noun[:-1]}, which is no sample of anything; "
            f"give more {more}"
        )
    if measurement.noun != "windows" and quantity.detectable >= 1.0:
        return f"{kind.shown(name, limit)} is tested on {measurement.windows[1]} {more}, too few to tell; give more"
    return (
        f"{kind.shown(name, limit)} is tighter than {measurement.windows[1]} {measurement.noun} can test: as a sample "
        f"of such {more} they detect differences from "
        f"{quantity.detectable:.2g}{_unit(measurement.metric, kind.symbol or quantity.unit)} up; give more {more} or a "
        f"wider limit"
    )


def _unit(metric: str, unit: str) -> str:
    """A unit as it stands behind a number."""
    if unit == "share":
        return {"task_accuracy": " of items"}.get(metric, " of tokens")
    return f" {unit}"


def _judge_one(metric: str, quantity: Quantity, name: str, kind: LimitKind, limit: float) -> Judgement:
    value, low, high = (number / kind.unit for number in (quantity.value, quantity.low, quantity.high))
    unit = "" if kind.subject and quantity.unit == "share" else _unit(metric, kind.symbol or quantity.unit)
    if not math.isfinite(value) or math.isnan(low) or math.isnan(high):
        broken = value if not math.isfinite(value) else math.nan
        return Judgement(Verdict.FAILED, f"{broken}{unit} is not a finite number")
    smaller_is_better = kind.smaller_is_better(name)
    if (high <= limit) if smaller_is_better else (low >= limit):
        return Judgement(Verdict.PASSED)
    side, bound = ("above", "at most") if smaller_is_better else ("below", "at least")
    shown = kind.subject + _apart(value, limit)
    if (low > limit) if smaller_is_better else (high < limit):
        return Judgement(Verdict.FAILED, f"{shown}{unit} is {side} the limit ({bound} {limit:g}{unit})")
    return Judgement(
        Verdict.INCONCLUSIVE,
        f"{shown}{unit} with the interval {low:.4g} to {high:.4g} does not decide the limit of {bound} {limit:g}{unit}",
    )


def _apart(value: float, limit: float) -> str:
    """The value in four digits, or in as many more as tell it from the limit."""
    bound = float(f"{limit:g}")
    texts = (f"{value:.{digits}g}" for digits in range(4, 17))
    return next((text for text in texts if float(text) != bound), repr(value))
