"""What the windows scored so far answer to a quality gate."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pytest_quant.gates.gate import LIMITS, Gate, needs_full_kl
from pytest_quant.gates.measurement import Quantity
from pytest_quant.metrics import divergence
from pytest_quant.metrics.evidence import Evidence
from pytest_quant.metrics.perplexity import perplexity_delta


@dataclass(frozen=True)
class Answer:
    """The quantities of one metric, and what a later commit is compared with."""

    main: str
    """The quantity that the metric is known by."""
    quantities: Mapping[str, Quantity]
    figures: Mapping[str, float]
    scores: Sequence[float]
    """Of each window used, or item."""
    weights: Sequence[float]
    lower_bounds: frozenset[str] = frozenset()
    """Quantities of which only a lower bound is known."""
    reference_scores: Sequence[float] | None = None
    """Of each item used; of windows the evidence has them."""


def answer(gate: Gate, evidence: Evidence, alpha: float, *, all_quantities: bool = True) -> Answer:
    """The answer to a gate; without ``all_quantities`` only those that the gate limits, which is faster to look at.

    Raises what :meth:`Evidence.check` raises.
    """
    if gate.metric == "perplexity_delta":
        quantities, figures = perplexity_delta(evidence, alpha)
        return Answer("delta", quantities, figures, evidence.nll, evidence.weights)
    if gate.metric == "token_agreement":
        quantities, figures = divergence.token_agreement(evidence, alpha)
        agreed = divergence.window_means([score.agree for score in evidence.scores])
        return Answer("share", quantities, figures, agreed, evidence.tokens)
    return _kl(gate, evidence, alpha, all_quantities)


def _kl(gate: Gate, evidence: Evidence, alpha: float, all_quantities: bool) -> Answer:
    whole = evidence.has_kl and needs_full_kl(gate)
    main = "mean" if whole else "bound"
    limited = {LIMITS[gate.metric][name].quantity for name, _ in gate.limits}
    wanted: Collection[str] | None = None if all_quantities else {main, *limited}
    quantities, figures = divergence.kl_divergence(evidence, alpha, wanted)
    if all_quantities:
        quantities = {**quantities, **divergence.delta_p(evidence, alpha)}
    windows = [score.kl if whole and score.kl is not None else score.bound for score in evidence.scores]
    bounds = frozenset() if evidence.has_kl else frozenset({"mean", *divergence.KL_LEVELS}) & quantities.keys()
    return Answer(main, quantities, figures, divergence.window_means(windows), evidence.tokens, bounds)
