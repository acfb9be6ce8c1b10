"""Perplexity of a format against its reference's, paired by window."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pytest_quant.errors import NotFinite
from pytest_quant.gates.measurement import Quantity
from pytest_quant.metrics.evidence import Evidence, perplexity
from pytest_quant.stats import sequence
from pytest_quant.stats.paired import paired_difference, weighted_mean


def perplexity_delta(evidence: Evidence, alpha: float) -> tuple[Mapping[str, Quantity], Mapping[str, float]]:
    """Quantities ``delta`` (perplexity), ``ratio`` and ``ln_ratio`` (nats) and the figures behind them, with intervals
    for the whole population, exact when all its windows were scored.

    ``ln_ratio = D``, the mean paired difference; ``ratio = exp(D)``; ``delta = ppl_reference * (exp(D) - 1)``. Where
    the reference's mean is not known for all windows, its error enters the interval of ``delta`` to first order.
    Raises what :meth:`Evidence.check` raises, and :class:`NotFinite` for a perplexity beyond floats.
    """
    evidence.check()
    ours, theirs, weights = evidence.nll, evidence.reference_nll, evidence.weights
    difference = paired_difference(ours, theirs, weights)
    mean = sequence.mean([a - b for a, b in zip(ours, theirs, strict=True)], weights, evidence.total, alpha)
    known = evidence.reference_mean
    reference_mean = weighted_mean(theirs, weights) if known is None or evidence.complete else known
    base, value = perplexity(reference_mean), perplexity(reference_mean + difference.mean)
    if evidence.complete:
        value = perplexity(weighted_mean(ours, weights))
    if not math.isfinite(value) or not math.isfinite(base):
        raise NotFinite(f"the {evidence.format} model gave no finite perplexity: its mean NLL exceeds 700 nats")
    if known is None and not evidence.complete:
        errors = value * sequence.influences(ours, weights) - base * sequence.influences(theirs, weights)
        half = sequence.half_width(errors, evidence.total, alpha)
        low, high = value - base - half, value - base + half
    elif evidence.complete:
        low = high = value - base
    else:
        low, high = (perplexity(reference_mean + end) - base for end in (mean.low, mean.high))
    ratio = perplexity(difference.mean)
    quantities = {
        "delta": Quantity(value - base, low, high, "ppl", base * (perplexity(mean.detectable) - 1.0)),
        "ratio": Quantity(ratio, perplexity(mean.low), perplexity(mean.high), "x", perplexity(mean.detectable) - 1.0),
        "ln_ratio": Quantity(difference.mean, mean.low, mean.high, "nats", mean.detectable),
    }
    figures = {
        "format_value": value,
        "reference_value": base,
        "ratio": ratio,
        "nats": difference.mean,
        "nats_standard_error": difference.standard_error,
    }
    return quantities, figures
